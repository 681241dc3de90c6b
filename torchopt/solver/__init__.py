# SPDX-License-Identifier: Apache-2.0
"""Solvers with JAXopt's names: differentiable, and batched by ``torch.vmap``."""

from torchopt.solver.base import IterativeSolver, KKTSolution, OptStep, Solver, StochasticSolver
from torchopt.solver.bfgs import BFGS
from torchopt.solver.fixed_point import AndersonAcceleration, AndersonWrapper, FixedPointIteration
from torchopt.solver.gradient_descent import GradientDescent
from torchopt.solver.lbfgs import LBFGS
from torchopt.solver.lbfgsb import LBFGSB
from torchopt.solver.least_squares import GaussNewton, LevenbergMarquardt
from torchopt.solver.linesearch import BacktrackingLineSearch, HagerZhangLineSearch, LineSearchStep, ZoomLineSearch
from torchopt.solver.nonlinear_cg import NonlinearCG
from torchopt.solver.proximal import BlockCoordinateDescent, MirrorDescent, ProjectedGradient, ProximalGradient
from torchopt.solver.quadratic import OSQP, BoxCDQP, BoxOSQP, CvxpyQP, EqualityConstrainedQP
from torchopt.solver.root import Bisection, Broyden, IterativeRefinement
from torchopt.solver.scipy import (
    ScipyBoundedLeastSquares,
    ScipyBoundedMinimize,
    ScipyLeastSquares,
    ScipyMinimize,
    ScipyRootFinding,
)
from torchopt.solver.status import Status
from torchopt.solver.stochastic import ArmijoSGD, OptaxSolver, PolyakSGD

__all__ = [
    'BlockCoordinateDescent',
    'MirrorDescent',
    'ProjectedGradient',
    'ProximalGradient',
    'OSQP',
    'BoxCDQP',
    'BoxOSQP',
    'CvxpyQP',
    'EqualityConstrainedQP',
    'BFGS',
    'LBFGS',
    'AndersonAcceleration',
    'AndersonWrapper',
    'LBFGSB',
    'ArmijoSGD',
    'BacktrackingLineSearch',
    'Bisection',
    'Broyden',
    'FixedPointIteration',
    'GaussNewton',
    'GradientDescent',
    'HagerZhangLineSearch',
    'IterativeRefinement',
    'IterativeSolver',
    'KKTSolution',
    'LevenbergMarquardt',
    'LineSearchStep',
    'NonlinearCG',
    'OptStep',
    'OptaxSolver',
    'PolyakSGD',
    'ScipyBoundedLeastSquares',
    'ScipyBoundedMinimize',
    'ScipyLeastSquares',
    'ScipyMinimize',
    'ScipyRootFinding',
    'Solver',
    'Status',
    'StochasticSolver',
    'ZoomLineSearch',
]
