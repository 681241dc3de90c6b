# SPDX-License-Identifier: Apache-2.0
"""The solvers of torchopt, with the constructor arguments of JAXopt 0.8.5 in its order and with its defaults."""

from __future__ import annotations

import numpy as np

from torchopt import solver
from torchopt.compat.jaxopt.signatures import spelled
from torchopt.linear_solve import solve_cg

__all__ = [
    'AndersonAcceleration',
    'AndersonWrapper',
    'BFGS',
    'BacktrackingLineSearch',
    'Bisection',
    'Broyden',
    'FixedPointIteration',
    'GaussNewton',
    'HagerZhangLineSearch',
    'IterativeRefinement',
    'LBFGS',
    'LBFGSB',
    'LevenbergMarquardt',
    'NonlinearCG',
    'ScipyBoundedLeastSquares',
    'ScipyBoundedMinimize',
    'ScipyLeastSquares',
    'ScipyMinimize',
    'ScipyRootFinding',
    'ZoomLineSearch',
]

# fmt: off
AndersonAcceleration = spelled(
    solver.AndersonAcceleration,
    lambda fixed_point_fun, history_size=5, mixing_frequency=1, beta=1.0, maxiter=100, tol=1e-5, ridge=1e-5,
           has_aux=False, verbose=False, implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto':
           None,
)

AndersonWrapper = spelled(
    solver.AndersonWrapper,
    lambda solver, history_size=5, mixing_frequency=None, beta=1.0, ridge=1e-5, verbose=False, implicit_diff=True,
           implicit_diff_solve=None, jit=True, unroll='auto': None,
)

BFGS = spelled(
    solver.BFGS,
    lambda fun, value_and_grad=False, has_aux=False, maxiter=500, tol=0.001, stepsize=0.0, linesearch='zoom',
           linesearch_init='increase', condition=None, maxls=30, decrease_factor=None, increase_factor=1.5,
           max_stepsize=1.0, min_stepsize=1e-6, implicit_diff=True, implicit_diff_solve=None, jit=True,
           unroll='auto', verbose=False: None,
)

BacktrackingLineSearch = spelled(
    solver.BacktrackingLineSearch,
    lambda fun, value_and_grad=False, has_aux=False, maxiter=30, tol=0.0, condition='strong-wolfe', c1=0.0001,
           c2=0.9, decrease_factor=0.8, max_stepsize=1.0, verbose=False, jit='auto', unroll='auto': None,
)

Bisection = spelled(
    solver.Bisection,
    lambda optimality_fun, lower, upper, maxiter=30, tol=1e-5, check_bracket=True, verbose=False,
           implicit_diff_solve=None, has_aux=False, jit=True, unroll='auto': None,
)

Broyden = spelled(
    solver.Broyden,
    lambda fun, has_aux=False, maxiter=500, tol=0.001, stepsize=0.0, linesearch='backtracking',
           stop_if_linesearch_fails=False, condition='wolfe', maxls=15, decrease_factor=0.8, increase_factor=1.5,
           max_stepsize=1.0, min_stepsize=1e-6, history_size=None, gamma=1.0, implicit_diff=True,
           implicit_diff_solve=None, jit=True, unroll='auto', verbose=False: None,
)

FixedPointIteration = spelled(
    solver.FixedPointIteration,
    lambda fixed_point_fun, maxiter=100, tol=1e-5, has_aux=False, verbose=False, implicit_diff=True,
           implicit_diff_solve=None, jit=True, unroll='auto': None,
)

GaussNewton = spelled(
    solver.GaussNewton,
    lambda residual_fun, maxiter=30, tol=1e-5, implicit_diff=True, implicit_diff_solve=None, has_aux=False,
           verbose=False, jit=True, unroll='auto': None,
)

HagerZhangLineSearch = spelled(
    solver.HagerZhangLineSearch,
    lambda fun, value_and_grad=False, has_aux=False, maxiter=30, tol=0.0, c1=0.1, c2=0.9, expansion_factor=5.0,
           shrinkage_factor=0.66, max_stepsize=1.0, verbose=False, jit='auto', unroll='auto': None,
)

IterativeRefinement = spelled(
    solver.IterativeRefinement,
    lambda matvec_A=None, matvec_A_bar=None, solve=solver.IterativeRefinement.solve, maxiter=10, tol=1e-7,
           verbose=False, implicit_diff_solve=None, jit=True, unroll='auto': None,
)

LBFGS = spelled(
    solver.LBFGS,
    lambda fun, value_and_grad=False, has_aux=False, maxiter=500, tol=0.001, stepsize=0.0, linesearch='zoom',
           linesearch_init='increase', stop_if_linesearch_fails=False, condition=None, maxls=30,
           decrease_factor=None, increase_factor=1.5, max_stepsize=1.0, min_stepsize=1e-6, history_size=10,
           use_gamma=True, implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto', verbose=False:
           None,
)

LBFGSB = spelled(
    solver.LBFGSB,
    lambda fun, value_and_grad=False, has_aux=False, maxiter=50, tol=0.001, stepsize=0.0, linesearch='zoom',
           linesearch_init='increase', stop_if_linesearch_fails=False, condition=None, maxls=30,
           decrease_factor=None, increase_factor=1.5, max_stepsize=1.0, min_stepsize=1e-6, theta=1.0,
           history_size=10, use_gamma=True, implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto',
           verbose=False: None,
)

LevenbergMarquardt = spelled(
    solver.LevenbergMarquardt,
    lambda residual_fun, maxiter=30, damping_parameter=1e-6, stop_criterion='grad-l2-norm', tol=0.001, xtol=0.001,
           gtol=0.001, solver=solve_cg, geodesic=False, verbose=False, jac_fun=None, materialize_jac=False,
           implicit_diff=True, implicit_diff_solve=None, has_aux=False, jit=True, unroll='auto': None,
)

NonlinearCG = spelled(
    solver.NonlinearCG,
    lambda fun, value_and_grad=False, has_aux=False, maxiter=100, tol=0.001, method='polak-ribiere',
           linesearch='zoom', linesearch_init='increase', condition=None, maxls=30, decrease_factor=None,
           increase_factor=1.2, max_stepsize=1.0, min_stepsize=1e-6, implicit_diff=True, implicit_diff_solve=None,
           jit=True, unroll='auto', verbose=False: None,
)

ScipyBoundedLeastSquares = spelled(
    solver.ScipyBoundedLeastSquares,
    lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None, has_aux=False, fun=None,
           loss='linear', options=None, use_jacrev=True: None,
)

ScipyBoundedMinimize = spelled(
    solver.ScipyBoundedMinimize,
    lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None, has_aux=False, fun=None,
           callback=None, tol=None, options=None, maxiter=500, value_and_grad=False: None,
)

ScipyLeastSquares = spelled(
    solver.ScipyLeastSquares,
    lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None, has_aux=False, fun=None,
           loss='linear', options=None, use_jacrev=True: None,
)

ScipyMinimize = spelled(
    solver.ScipyMinimize,
    lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None, has_aux=False, fun=None,
           callback=None, tol=None, options=None, maxiter=500, value_and_grad=False: None,
)

ScipyRootFinding = spelled(
    solver.ScipyRootFinding,
    lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None, has_aux=False, optimality_fun=None,
           tol=None, options=None, use_jacrev=True: None,
)

ZoomLineSearch = spelled(
    solver.ZoomLineSearch,
    lambda fun, value_and_grad=False, has_aux=False, c1=0.0001, c2=0.9, c3=1e-6, rel_tol_cubic=0.2,
           rel_tol_quad=0.1, interval_threshold=1e-6, increase_factor=2.0, tol=0.0, maxiter=30, max_stepsize=None,
           verbose=False, jit='auto', unroll='auto': None,
)
