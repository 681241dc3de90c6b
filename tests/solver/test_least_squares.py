# SPDX-License-Identifier: Apache-2.0
"""GaussNewton and LevenbergMarquardt against certified answers, SciPy's counts, JAXopt, and finite differences."""

from __future__ import annotations

import functools
import statistics
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    import jaxopt

import torchopt
from tests.solver.problems import more_garbow_hillstrom, nist_strd
from torchopt.linear_solve import solve_cg, solve_lu
from torchopt.solver import Status

jax.config.update('jax_enable_x64', True)

# One setting for all of NIST's regressions.
ROBUST: dict[str, Any] = {
    'solver': 'qr',
    'geodesic': True,
    'stop_criterion': 'madsen-nielsen',
    'maxiter': 2000,
    'tol': 1e-14,
    'xtol': 1e-14,
    'gtol': 1e-14,
}


# From one of its starts, MGH10 takes 900 steps.
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.long) if name == 'MGH10' else name for name in nist_strd.MODELS]
)
def test_nist(name: str) -> None:
    problem = nist_strd.load(name)
    solver = torchopt.LevenbergMarquardt(problem.residual, **ROBUST)
    for start in problem.starts:
        params, state = solver.run(start)
        assert problem.digits(params) >= 6
        assert Status(int(state.status)) in (Status.CONVERGED, Status.STALLED)  # stalled: at the precision of float64


@pytest.mark.parametrize('name', [name for name in nist_strd.MODELS if name not in ('MGH09', 'MGH10')])
def test_nist_gauss_newton(name: str) -> None:
    problem = nist_strd.load(name)
    start = problem.certified * (1 + 1e-3 * torch.cos(torch.arange(len(problem.certified), dtype=torch.float64)))
    params, _ = torchopt.GaussNewton(problem.residual, maxiter=100, tol=1e-14).run(start)
    assert problem.digits(params) >= 6


# The evaluations of scipy.optimize.least_squares(fun, start, jac, method='lm', xtol=1e-8, ftol=1e-8, gtol=1e-8), which
# solves all problems.
SCIPY = (
    *(21, 14, 19, 16, 9, 21, 11, 6, 4, 126, 23, 7, 37, 70, 18, 266, 18, 54),
    *(17, 8, 21, 66, 84, 151, 11, 28, 15, 5, 5, 6, 7, 2, 2, 2, 40),
)


@pytest.mark.long
def test_more_garbow_hillstrom() -> None:
    ratios = []
    for problem, count in zip(more_garbow_hillstrom.problems(), SCIPY):
        solver = torchopt.LevenbergMarquardt(
            problem.residual, solver='qr', stop_criterion='madsen-nielsen', maxiter=2000, xtol=1e-8, gtol=1e-8
        )
        _, state = solver.run(problem.start)
        value = 2 * state.value.item()
        assert any(abs(value - v) < 1e-5 * (v or 1.0) for v in problem.minima), (problem.name, value)
        ratios.append(state.num_fun_eval.item() / count)
    assert statistics.median(ratios) <= 1.2


T = np.linspace(0.0, 1.0, 9)


def residual(w: Any, a: Any) -> Any:
    """A curve of two parameters, for JAX and torch."""
    exp = torch.exp if isinstance(w, Tensor) else jnp.exp
    t = torch.from_numpy(T) if isinstance(w, Tensor) else T
    return w[0] * exp(-w[1] * t) - a * exp(-2.0 * t) + 0.1 * t


FACTORS = ('qr', 'cholesky', 'lu', 'inv')
START = np.array([1.0, 1.0])

SOLVERS = {
    'gauss_newton': lambda fun, **kw: torchopt.GaussNewton(fun, tol=1e-12, **kw),
    'qr': lambda fun, **kw: torchopt.LevenbergMarquardt(fun, tol=1e-10, maxiter=100, solver='qr', **kw),
    'geodesic': lambda fun, **kw: torchopt.LevenbergMarquardt(
        fun, tol=1e-10, maxiter=100, solver='cholesky', geodesic=True, **kw
    ),
    'cg': lambda fun, **kw: torchopt.LevenbergMarquardt(fun, tol=1e-10, maxiter=100, **kw),
    'cg_with_jacobian': lambda fun, **kw: torchopt.LevenbergMarquardt(
        fun, tol=1e-10, maxiter=100, materialize_jac=True, solver=solve_cg, **kw
    ),
}


def of_tree(w: dict[str, Tensor], a: Tensor, *, shift: Any = 0.0) -> dict[str, Tensor]:
    t = torch.from_numpy(T)
    return {'curve': w['a'] * torch.exp(-w['b'][0] * t) - a * torch.exp(-2.0 * t) + 0.1 * t, 'shift': w['c'] - shift}


def start() -> dict[str, Tensor]:
    one = torch.ones((), dtype=torch.float64)
    return {'a': one, 'b': [one], 'c': one}  # type: ignore[dict-item]


def loss(solver: Any, a: Tensor) -> Tensor:
    w = solver.run(start(), a, shift=2 * a).params
    return w['a'] * w['b'][0] + w['c'] ** 2


@pytest.mark.parametrize('name', SOLVERS)
def test_trees_derivatives_and_batches(name: str) -> None:
    solver = SOLVERS[name](of_tree, implicit_diff_solve=solve_lu)
    a = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    single = torch.stack([loss(solver, x) for x in a])
    torch.testing.assert_close(torch.vmap(lambda x: loss(solver, x))(a), single, rtol=1e-7, atol=0.0)
    h = 1e-4
    slopes = torch.stack([(loss(solver, x + h) - loss(solver, x - h)) / (2 * h) for x in a])
    grads = torch.vmap(torch.func.grad(lambda x: loss(solver, x)))(a)
    torch.testing.assert_close(grads, slopes, rtol=1e-5, atol=0.0)
    x = a[1].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(solver, x), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    torch.testing.assert_close(first.detach(), grads[1], rtol=1e-7, atol=0.0)
    curvature = (loss(solver, a[1] + h) - 2 * loss(solver, a[1]) + loss(solver, a[1] - h)) / h**2
    torch.testing.assert_close(second, curvature, rtol=1e-3, atol=1e-4)
    tangent = torch.func.jvp(lambda y: loss(solver, y), (a[1],), (torch.ones_like(a[1]),))[1]
    torch.testing.assert_close(tangent, grads[1], rtol=1e-7, atol=0.0)


def test_unrolled_derivatives_are_those_at_the_solution() -> None:
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    implicit = torch.autograd.grad(loss(SOLVERS['qr'](of_tree, implicit_diff_solve=solve_lu), a), a)
    for unroll in ('auto', 'checkpoint'):
        for name in ('qr', 'gauss_newton'):
            unrolled = torch.autograd.grad(loss(SOLVERS[name](of_tree, implicit_diff=False, unroll=unroll), a), a)
            torch.testing.assert_close(unrolled, implicit, rtol=1e-6, atol=0.0)


def test_a_tensor_in_the_closure_gets_its_gradient() -> None:
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    solver = torchopt.LevenbergMarquardt(lambda w: residual(w, a), solver='qr', tol=1e-10)
    (inside,) = torch.autograd.grad(solver.run(torch.from_numpy(START)).params.sum(), a)
    passed = torchopt.LevenbergMarquardt(residual, solver='qr', tol=1e-10)
    (outside,) = torch.autograd.grad(passed.run(torch.from_numpy(START), a).params.sum(), a)
    torch.testing.assert_close(inside, outside)


def test_each_problem_of_a_batch_stops_by_itself() -> None:
    solver = torchopt.LevenbergMarquardt(residual, solver='qr', tol=1e-8, maxiter=50)
    a = torch.tensor([0.5, float('nan'), 50.0, 3.0], dtype=torch.float64)
    starts = torch.from_numpy(np.stack([START, START, START, START + [2.0, 1.0]]))
    params, state = torch.vmap(solver.run)(starts, a)
    singles = [solver.run(x, y) for x, y in zip(starts, a)]
    torch.testing.assert_close(params[[0, 2, 3]], torch.stack([singles[i].params for i in (0, 2, 3)]))
    assert state.iter_num.tolist() == [int(s.state.iter_num) for s in singles]
    assert len(set(state.iter_num.tolist())) > 2
    assert state.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED, Status.CONVERGED]


def test_auxiliary_output() -> None:
    def fun(w: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return w**2 - 2.0, {'square': w**2}

    for solver in (torchopt.GaussNewton(fun, has_aux=True), torchopt.LevenbergMarquardt(fun, has_aux=True, tol=1e-6)):
        state = solver.run(torch.tensor([1.0, 3.0])).state
        torch.testing.assert_close(state.aux['square'], torch.tensor([2.0, 2.0]))


def test_a_rank_deficient_problem_has_the_shortest_step() -> None:
    params, _ = torchopt.GaussNewton(lambda w: w[0] + w[1] - 2.0).run(torch.zeros(2))
    torch.testing.assert_close(params, torch.ones(2))
    params, state = torchopt.LevenbergMarquardt(lambda w: w[0] + w[1] - 2.0, solver='qr').run(torch.zeros(2))
    torch.testing.assert_close(params, torch.ones(2), atol=1e-3, rtol=0.0)
    assert state.status == Status.CONVERGED


@pytest.mark.parametrize('solver', ['qr', 'cholesky', 'lu', 'inv', pytest.param(solve_cg, id='cg')])
def test_at_a_point_without_slope(solver: Any) -> None:
    """The Jacobian is zero, and so is the damping factor: no step, and no error."""
    params, state = torchopt.LevenbergMarquardt(lambda w: w**2 + 1.0, solver=solver).run(torch.zeros(2))
    assert params.tolist() == [0.0, 0.0]
    assert state.status == Status.CONVERGED


def test_values_that_are_not_finite_shorten_the_step() -> None:
    def fun(w: Tensor) -> Tensor:
        return torch.log(w) + 3.0  # the first step leads to negative numbers

    params, state = torchopt.LevenbergMarquardt(fun, solver='qr', tol=1e-5, maxiter=100).run(torch.tensor([1.0]))
    torch.testing.assert_close(params, torch.exp(torch.tensor([-3.0])))
    assert state.status == Status.CONVERGED


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    start = torch.tensor([1.0, 3.0], dtype=dtype)
    for solver in (torchopt.GaussNewton, *(functools.partial(torchopt.LevenbergMarquardt, solver=s) for s in FACTORS)):
        params = solver(lambda w: w**2 - 2.0).run(start).params
        assert params.dtype == dtype
        torch.testing.assert_close(params.float(), torch.full((2,), 2.0**0.5), rtol=1e-2, atol=0.0)


def test_a_start_without_a_finite_value() -> None:
    start = torch.tensor([1000.0])
    for solver in (torchopt.LevenbergMarquardt(torch.exp, solver='qr'), torchopt.GaussNewton(torch.exp)):
        assert solver.run(start).state.status == Status.NONFINITE


def test_single_precision_stalls_and_says_so() -> None:
    solver = torchopt.LevenbergMarquardt(
        lambda w: torch.stack([10 * (w[1] - w[0] ** 2), 1 - w[0], w[0] - 0.9]), solver='qr', tol=0.0, maxiter=1000
    )
    _, state = solver.run(torch.tensor([-1.2, 1.0]))
    assert state.status == Status.STALLED
    assert state.iter_num < 200


# Defects of JAXopt.


def jacobian_of(w: Any, a: Any) -> Any:
    exp, stack = (torch.exp, torch.stack) if isinstance(w, Tensor) else (jnp.exp, jnp.stack)
    t = torch.from_numpy(T) if isinstance(w, Tensor) else T
    return stack([exp(-w[1] * t), -w[0] * t * exp(-w[1] * t)], 1)


def test_issue_639_qr_with_a_jacobian_of_the_user() -> None:
    options: dict[str, Any] = {'solver': 'qr', 'jac_fun': jacobian_of, 'materialize_jac': True, 'tol': 1e-10}
    with pytest.raises(AttributeError):
        jaxopt.LevenbergMarquardt(residual, **options).run(jnp.array(START), 3.0)
    expected = torchopt.LevenbergMarquardt(residual, solver='qr', tol=1e-10).run(torch.from_numpy(START), 3.0)
    for geodesic in (False, True):
        found = torchopt.LevenbergMarquardt(residual, geodesic=geodesic, **options).run(torch.from_numpy(START), 3.0)
        torch.testing.assert_close(found.params, expected.params, rtol=1e-8, atol=0.0)


def test_issue_277_a_step_costs_few_evaluations() -> None:
    """In JAXopt a step traces the residuals many times over, which takes half a minute where they are large."""
    calls = []

    def counted(w: Tensor) -> Tensor:
        calls.append(1)
        return residual(w, 3.0)

    _, state = torchopt.LevenbergMarquardt(counted, solver='qr', tol=1e-8).run(torch.from_numpy(START))
    assert len(calls) <= 4 * int(state.iter_num) + 8
    calls.clear()

    def theirs(w: Any) -> Any:
        calls.append(1)
        return residual(w, 3.0)

    _, state = jaxopt.LevenbergMarquardt(theirs, tol=1e-8, jit=False).run(jnp.array(START))
    assert len(calls) > 2 * (4 * int(state.iter_num) + 8)


def test_issue_505_parameters_in_a_tree() -> None:
    def theirs(w: dict[str, Any]) -> Any:
        return residual(jnp.stack([w['a'], w['b']]), 3.0)

    with pytest.raises(TypeError):
        jaxopt.LevenbergMarquardt(theirs, jit=False).run({'a': 1.0, 'b': 1.0})
    one = torch.ones((), dtype=torch.float64)
    found = torchopt.LevenbergMarquardt(lambda w: residual(torch.stack([w['a'], w['b']]), 3.0), solver='qr', tol=1e-9)
    assert set(found.run({'a': one, 'b': one}).params) == {'a', 'b'}


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ('no function', lambda: torchopt.LevenbergMarquardt(3), TypeError, 'residual_fun'),
    ('no function', lambda: torchopt.GaussNewton(3), TypeError, 'residual_fun'),
    ('solver', lambda: torchopt.LevenbergMarquardt(abs, solver='svd'), ValueError, "solver: 'svd'"),
    ('criterion', lambda: torchopt.LevenbergMarquardt(abs, stop_criterion='x'), ValueError, 'stop_criterion'),
    ('damping', lambda: torchopt.LevenbergMarquardt(abs, damping_parameter=-1.0), ValueError, 'damping_parameter'),
    ('maxiter', lambda: torchopt.GaussNewton(abs, maxiter=-1), ValueError, 'maxiter'),
    ('integers', lambda: torchopt.GaussNewton(abs).run(torch.ones(2, dtype=torch.int64)), TypeError, 'init_params'),
    ('NaN', lambda: torchopt.GaussNewton(abs).run(torch.tensor([float('nan')])), ValueError, 'init_params'),
    ('integer residuals', lambda: torchopt.GaussNewton(lambda w: w.long()).run(torch.ones(2)), TypeError, 'residual'),
    ('a pair', lambda: torchopt.GaussNewton(lambda w: (w, 'x')).run(torch.ones(2)), TypeError, 'has_aux'),
    ('no pair', lambda: torchopt.GaussNewton(abs, has_aux=True).run(torch.ones(2)), TypeError, 'has_aux'),
    (
        'Jacobian',
        lambda: torchopt.LevenbergMarquardt(abs, solver='qr', jac_fun=lambda w: torch.ones(3, 2)).run(torch.ones(2)),
        ValueError,
        'jac_fun',
    ),
]


@pytest.mark.parametrize(('make', 'error', 'message'), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
