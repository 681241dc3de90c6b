# SPDX-License-Identifier: Apache-2.0
"""Solvers with JAXopt's names: differentiable, and batched by ``torch.vmap``."""

from torchopt.solver.base import IterativeSolver, KKTSolution, OptStep, Solver, StochasticSolver
from torchopt.solver.bfgs import BFGS
from torchopt.solver.gradient_descent import GradientDescent
from torchopt.solver.lbfgs import LBFGS
from torchopt.solver.lbfgsb import LBFGSB
from torchopt.solver.linesearch import BacktrackingLineSearch, HagerZhangLineSearch, LineSearchStep, ZoomLineSearch
from torchopt.solver.nonlinear_cg import NonlinearCG
from torchopt.solver.status import Status

__all__ = [
    'BFGS',
    'LBFGS',
    'LBFGSB',
    'BacktrackingLineSearch',
    'GradientDescent',
    'HagerZhangLineSearch',
    'IterativeSolver',
    'KKTSolution',
    'LineSearchStep',
    'NonlinearCG',
    'OptStep',
    'Solver',
    'Status',
    'StochasticSolver',
    'ZoomLineSearch',
]
