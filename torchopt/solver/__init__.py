# SPDX-License-Identifier: Apache-2.0
"""Solvers with JAXopt's names: differentiable, and batched by ``torch.vmap``."""

from torchopt.solver.base import IterativeSolver, KKTSolution, OptStep, Solver, StochasticSolver
from torchopt.solver.gradient_descent import GradientDescent
from torchopt.solver.least_squares import GaussNewton, LevenbergMarquardt
from torchopt.solver.status import Status

__all__ = [
    'GaussNewton',
    'GradientDescent',
    'IterativeSolver',
    'KKTSolution',
    'LevenbergMarquardt',
    'OptStep',
    'Solver',
    'Status',
    'StochasticSolver',
]
