# SPDX-License-Identifier: Apache-2.0
"""What solvers share, as ``jaxopt.base`` has it."""

from torchopt.objective import LinearOperator
from torchopt.solver import IterativeSolver, KKTSolution, OptStep, StochasticSolver

__all__ = ['IterativeSolver', 'KKTSolution', 'LinearOperator', 'OptStep', 'StochasticSolver']
