# SPDX-License-Identifier: Apache-2.0
"""The solvers of torchopt, with the constructor arguments of JAXopt 0.8.5 in its order and with its defaults."""

from __future__ import annotations

import numpy as np

from torchopt import solver
from torchopt.compat.jaxopt.signatures import spelled
from torchopt.linear_solve import solve_cg, solve_gmres
from torchopt.prox import prox_none
from torchopt.solver import OSQP

__all__ = [
    'AndersonAcceleration',
    'AndersonWrapper',
    'ArmijoSGD',
    'BFGS',
    'BacktrackingLineSearch',
    'Bisection',
    'BlockCoordinateDescent',
    'BoxCDQP',
    'BoxOSQP',
    'Broyden',
    'CvxpyQP',
    'EqualityConstrainedQP',
    'FixedPointIteration',
    'GaussNewton',
    'GradientDescent',
    'HagerZhangLineSearch',
    'IterativeRefinement',
    'LBFGS',
    'LBFGSB',
    'LevenbergMarquardt',
    'MirrorDescent',
    'NonlinearCG',
    'OSQP',
    'OptaxSolver',
    'PolyakSGD',
    'ProjectedGradient',
    'ProximalGradient',
    'ScipyBoundedLeastSquares',
    'ScipyBoundedMinimize',
    'ScipyLeastSquares',
    'ScipyMinimize',
    'ScipyRootFinding',
    'ZoomLineSearch',
]

# fmt: off
AndersonAcceleration = spelled(
    solver.AndersonAcceleration, lambda fixed_point_fun, history_size=5, mixing_frequency=1, beta=1.0, maxiter=100,
    tol=1e-5, ridge=1e-5, has_aux=False, verbose=False, implicit_diff=True, implicit_diff_solve=None, jit=True,
    unroll='auto': None)

AndersonWrapper = spelled(
    solver.AndersonWrapper, lambda solver, history_size=5, mixing_frequency=None, beta=1.0, ridge=1e-5, verbose=False,
    implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto': None)

ArmijoSGD = spelled(
    solver.ArmijoSGD, lambda fun, value_and_grad=False, has_aux=False, aggressiveness=0.9, decrease_factor=0.8,
    increase_factor=1.5, reset_option='increase', momentum=0.0, max_stepsize=1.0, pre_update=None, maxiter=500,
    maxls=15, tol=0.001, verbose=False, implicit_diff=False, implicit_diff_solve=None, jit=True, unroll='auto': None)

BFGS = spelled(
    solver.BFGS, lambda fun, value_and_grad=False, has_aux=False, maxiter=500, tol=0.001, stepsize=0.0,
    linesearch='zoom', linesearch_init='increase', condition=None, maxls=30, decrease_factor=None, increase_factor=1.5,
    max_stepsize=1.0, min_stepsize=1e-6, implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto',
    verbose=False: None)

BacktrackingLineSearch = spelled(
    solver.BacktrackingLineSearch, lambda fun, value_and_grad=False, has_aux=False, maxiter=30, tol=0.0,
    condition='strong-wolfe', c1=0.0001, c2=0.9, decrease_factor=0.8, max_stepsize=1.0, verbose=False, jit='auto',
    unroll='auto': None)

Bisection = spelled(
    solver.Bisection, lambda optimality_fun, lower, upper, maxiter=30, tol=1e-5, check_bracket=True, verbose=False,
    implicit_diff_solve=None, has_aux=False, jit=True, unroll='auto': None)

BlockCoordinateDescent = spelled(
    solver.BlockCoordinateDescent, lambda fun, block_prox, maxiter=500, tol=0.0001, verbose=False, implicit_diff=True,
    implicit_diff_solve=None, jit=True, unroll='auto': None)

BoxCDQP = spelled(
    solver.BoxCDQP, lambda maxiter=500, tol=0.0001, verbose=False, implicit_diff=True, implicit_diff_solve=None,
    jit=True, unroll='auto': None)

BoxOSQP = spelled(
    solver.BoxOSQP, lambda matvec_Q=None, matvec_A=None, fun=None, check_primal_dual_infeasability='auto', sigma=1e-6,
    momentum=1.6, eq_qp_solve='cg', rho_start=0.1, rho_min=1e-6, rho_max=1e6, stepsize_updates_frequency=10,
    primal_infeasible_tol=0.001, dual_infeasible_tol=0.001, maxiter=4000, tol=0.001, termination_check_frequency=5,
    verbose=False, implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto': None)

Broyden = spelled(
    solver.Broyden, lambda fun, has_aux=False, maxiter=500, tol=0.001, stepsize=0.0, linesearch='backtracking',
    stop_if_linesearch_fails=False, condition='wolfe', maxls=15, decrease_factor=0.8, increase_factor=1.5,
    max_stepsize=1.0, min_stepsize=1e-6, history_size=None, gamma=1.0, implicit_diff=True, implicit_diff_solve=None,
    jit=True, unroll='auto', verbose=False: None)

CvxpyQP = spelled(
    solver.CvxpyQP, lambda solver='OSQP', implicit_diff_solve=None: None)

EqualityConstrainedQP = spelled(
    solver.EqualityConstrainedQP, lambda matvec_Q=None, matvec_A=None, fun=None, solve=solve_gmres,
    refine_regularization=0.0, refine_maxiter=10, maxiter=1000, tol=1e-5, implicit_diff_solve=None, jit=True: None)

FixedPointIteration = spelled(
    solver.FixedPointIteration, lambda fixed_point_fun, maxiter=100, tol=1e-5, has_aux=False, verbose=False,
    implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto': None)

GaussNewton = spelled(
    solver.GaussNewton, lambda residual_fun, maxiter=30, tol=1e-5, implicit_diff=True, implicit_diff_solve=None,
    has_aux=False, verbose=False, jit=True, unroll='auto': None)

GradientDescent = spelled(
    solver.GradientDescent, lambda fun, prox=prox_none, value_and_grad=False, has_aux=False, stepsize=0.0, maxiter=500,
    maxls=15, tol=0.001, acceleration=True, decrease_factor=0.5, verbose=False, implicit_diff=True,
    implicit_diff_solve=None, jit=True, unroll='auto': None, unused=('prox',))

HagerZhangLineSearch = spelled(
    solver.HagerZhangLineSearch, lambda fun, value_and_grad=False, has_aux=False, maxiter=30, tol=0.0, c1=0.1, c2=0.9,
    expansion_factor=5.0, shrinkage_factor=0.66, max_stepsize=1.0, verbose=False, jit='auto', unroll='auto': None)

IterativeRefinement = spelled(
    solver.IterativeRefinement, lambda matvec_A=None, matvec_A_bar=None, solve=solver.IterativeRefinement.solve,
    maxiter=10, tol=1e-7, verbose=False, implicit_diff_solve=None, jit=True, unroll='auto': None)

LBFGS = spelled(
    solver.LBFGS, lambda fun, value_and_grad=False, has_aux=False, maxiter=500, tol=0.001, stepsize=0.0,
    linesearch='zoom', linesearch_init='increase', stop_if_linesearch_fails=False, condition=None, maxls=30,
    decrease_factor=None, increase_factor=1.5, max_stepsize=1.0, min_stepsize=1e-6, history_size=10, use_gamma=True,
    implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto', verbose=False: None)

LBFGSB = spelled(
    solver.LBFGSB, lambda fun, value_and_grad=False, has_aux=False, maxiter=50, tol=0.001, stepsize=0.0,
    linesearch='zoom', linesearch_init='increase', stop_if_linesearch_fails=False, condition=None, maxls=30,
    decrease_factor=None, increase_factor=1.5, max_stepsize=1.0, min_stepsize=1e-6, theta=1.0, history_size=10,
    use_gamma=True, implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto', verbose=False: None)

LevenbergMarquardt = spelled(
    solver.LevenbergMarquardt, lambda residual_fun, maxiter=30, damping_parameter=1e-6, stop_criterion='grad-l2-norm',
    tol=0.001, xtol=0.001, gtol=0.001, solver=solve_cg, geodesic=False, verbose=False, jac_fun=None,
    materialize_jac=False, implicit_diff=True, implicit_diff_solve=None, has_aux=False, jit=True, unroll='auto': None)

MirrorDescent = spelled(
    solver.MirrorDescent, lambda fun, projection_grad, stepsize, maxiter=500, tol=0.01, verbose=False,
    implicit_diff=True, implicit_diff_solve=None, has_aux=False, jit=True, unroll='auto': None)

NonlinearCG = spelled(
    solver.NonlinearCG, lambda fun, value_and_grad=False, has_aux=False, maxiter=100, tol=0.001, method='polak-ribiere',
    linesearch='zoom', linesearch_init='increase', condition=None, maxls=30, decrease_factor=None, increase_factor=1.2,
    max_stepsize=1.0, min_stepsize=1e-6, implicit_diff=True, implicit_diff_solve=None, jit=True, unroll='auto',
    verbose=False: None)

OptaxSolver = spelled(
    solver.OptaxSolver, lambda fun, opt, value_and_grad=False, pre_update=None, maxiter=500, tol=0.001, verbose=False,
    implicit_diff=False, implicit_diff_solve=None, has_aux=False, jit=True, unroll='auto': None)

PolyakSGD = spelled(
    solver.PolyakSGD, lambda fun, value_and_grad=False, has_aux=False, fun_min=0.0, variant='SPS_max', max_stepsize=1.0,
    delta=0.0, momentum=0.0, pre_update=None, maxiter=500, tol=0.001, verbose=False, implicit_diff=False,
    implicit_diff_solve=None, jit=True, unroll='auto': None)

ProjectedGradient = spelled(
    solver.ProjectedGradient, lambda fun, projection, value_and_grad=False, has_aux=False, stepsize=0.0, maxiter=500,
    maxls=15, tol=0.001, acceleration=True, decrease_factor=0.5, verbose=False, implicit_diff=True,
    implicit_diff_solve=None, jit=True, unroll='auto': None)

ProximalGradient = spelled(
    solver.ProximalGradient, lambda fun, prox=prox_none, value_and_grad=False, has_aux=False, stepsize=0.0, maxiter=500,
    maxls=15, tol=0.001, acceleration=True, decrease_factor=0.5, verbose=False, implicit_diff=True,
    implicit_diff_solve=None, jit=True, unroll='auto': None)

ScipyBoundedLeastSquares = spelled(
    solver.ScipyBoundedLeastSquares, lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None,
    has_aux=False, fun=None, loss='linear', options=None, use_jacrev=True: None)

ScipyBoundedMinimize = spelled(
    solver.ScipyBoundedMinimize, lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None,
    has_aux=False, fun=None, callback=None, tol=None, options=None, maxiter=500, value_and_grad=False: None)

ScipyLeastSquares = spelled(
    solver.ScipyLeastSquares, lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None, has_aux=False,
    fun=None, loss='linear', options=None, use_jacrev=True: None)

ScipyMinimize = spelled(
    solver.ScipyMinimize, lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None, has_aux=False,
    fun=None, callback=None, tol=None, options=None, maxiter=500, value_and_grad=False: None)

ScipyRootFinding = spelled(
    solver.ScipyRootFinding, lambda method=None, dtype=np.float64, jit=True, implicit_diff_solve=None, has_aux=False,
    optimality_fun=None, tol=None, options=None, use_jacrev=True: None)

ZoomLineSearch = spelled(
    solver.ZoomLineSearch, lambda fun, value_and_grad=False, has_aux=False, c1=0.0001, c2=0.9, c3=1e-6,
    rel_tol_cubic=0.2, rel_tol_quad=0.1, interval_threshold=1e-6, increase_factor=2.0, tol=0.0, maxiter=30,
    max_stepsize=None, verbose=False, jit='auto', unroll='auto': None)
