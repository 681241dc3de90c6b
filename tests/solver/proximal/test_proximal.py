# SPDX-License-Identifier: Apache-2.0
"""Proximal methods: JAXopt's solutions and Jacobians, its defects, batches, options, errors."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import torch

import torchopt
from tests.solver.derivatives import assert_derivatives
from torchopt import objective, polytopes, projections, prox
from torchopt.solver import Status

rng = np.random.default_rng(0)
# Columns that are nearly orthogonal, so that all methods converge within a few dozen steps.
X, y = np.linalg.qr(rng.standard_normal((12, 5)))[0] * np.linspace(3.0, 4.5, 5), 3.0 * rng.standard_normal(12)
X[:, 1] += 0.3 * X[:, 0]
DATA = torch.tensor(X), torch.tensor(y)
LABELS = torch.tensor(rng.integers(0, 3, 12))
START = torch.zeros(5, dtype=torch.float64)


def least_squares(w: Any, data: Any) -> Any:
    X, y = data
    return 0.5 * ((X @ w - y) ** 2).mean()


def simplex(w: Any, hyperparams: Any = None) -> Any:
    return projections.projection_simplex(w, 1.0 if hyperparams is None else hyperparams)


def softmax(z: Any, hyperparams: Any) -> Any:
    return torch.softmax(z, -1)


MIRROR = torchopt.MirrorDescent.make_projection_grad(softmax, torch.log)
UNIFORM = torch.full((5,), 0.2, dtype=torch.float64)
# title: how a solver solves for hyper-parameters and data
SOLVERS: dict[str, Any] = {
    'lasso': lambda h, *data: (torchopt.ProximalGradient(least_squares, prox.prox_lasso, tol=1e-10), START, h, data),
    'lasso without acceleration': lambda h, *data: (
        torchopt.ProximalGradient(least_squares, prox.prox_lasso, tol=1e-10, acceleration=False, maxiter=2000),
        START,
        h,
        data,
    ),
    'lasso with a step size': lambda h, *data: (
        torchopt.ProximalGradient(least_squares, prox.prox_lasso, stepsize=lambda count: 0.5, tol=1e-10, maxiter=2000),
        START,
        h,
        data,
    ),
    'lasso by coordinates': lambda h, *data: (
        torchopt.BlockCoordinateDescent(objective.least_squares, prox.prox_lasso, tol=1e-11),
        START,
        h,
        data,
    ),
    'simplex': lambda h, *data: (torchopt.ProjectedGradient(least_squares, simplex, tol=1e-10), UNIFORM, h, data),
    'mirror descent': lambda h, *data: (
        torchopt.MirrorDescent(least_squares, MIRROR, stepsize=1.0, tol=1e-12, maxiter=4000),
        UNIFORM,
        None,
        (data[0], h * data[1]),
    ),
}


def solve(title: str, h: Any, *data: Any) -> Any:
    solver, start, hyperparams, data = SOLVERS[title](h, *data)
    return solver.run(start, hyperparams, data)


@pytest.mark.parametrize('title', SOLVERS)
def test_solutions_and_derivatives(title: str) -> None:
    h = torch.tensor(0.1 if 'lasso' in title else 0.8, dtype=torch.float64)
    params, state = solve(title, h, *DATA)
    assert state.status == Status.CONVERGED
    solver, _, hyperparams, data = SOLVERS[title](h, *DATA)
    assert solver.l2_optimality_error(params, hyperparams, data) < 1e-7
    assert_derivatives(lambda *v: solve(title, *v).params, (h, *DATA))

    def one(y: Any) -> Any:
        step = solve(title, h, DATA[0], y)
        return step.params, step.state.status

    rows, ends = torch.vmap(one)(torch.stack([DATA[1], 3 * DATA[1], 0 * DATA[1]]))
    torch.testing.assert_close(rows[0], params, atol=1e-8, rtol=0)
    assert ends.tolist() == [Status.CONVERGED] * 3


def test_jaxopt_agrees() -> None:
    """Solutions and Jacobians, also where JAXopt cannot differentiate: its issues 338 and 419."""
    found = solve('lasso', 0.1, *DATA).params
    jacobian = torch.func.jacrev(lambda y: solve('lasso', 0.1, DATA[0], y).params)(DATA[1])
    with jax.enable_x64(True):
        solver = jaxopt.ProximalGradient(least_squares, jaxopt.prox.prox_lasso, tol=1e-10)

        def run(y: Any) -> Any:
            return solver.run(jnp.zeros(5), 0.1, (jnp.asarray(X), y)).params

        np.testing.assert_allclose(found, run(jnp.asarray(y)), atol=1e-8)
        np.testing.assert_allclose(jacobian, jax.jacrev(run)(jnp.asarray(y)), atol=1e-5)


def test_jacobians_through_a_projection_onto_a_polyhedron() -> None:
    """A solver inside of a solver, in both modes."""
    A, b = torch.ones(1, 5, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    G, h = -torch.eye(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    solver = torchopt.ProjectedGradient(least_squares, polytopes.projection_polyhedron, tol=1e-8)

    def run(y: Any) -> Any:
        return solver.run(UNIFORM, (A, b, G, h), (DATA[0], y)).params

    expected = torch.func.jacrev(lambda y: solve('simplex', 1.0, DATA[0], y).params)(DATA[1])
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(run)(DATA[1]), expected, atol=1e-5, rtol=1e-4)


def test_jaxopt_cannot_differentiate_it() -> None:
    """JAXopt's issues 338 and 419: a projection that runs a solver, inside of a solver."""
    solver = jaxopt.ProjectedGradient(least_squares, jaxopt.projection.projection_polyhedron, tol=1e-8)
    set_ = (jnp.ones((1, 5)), jnp.ones(1), -jnp.eye(5), jnp.zeros(5))
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jacrev(lambda y: solver.run(jnp.full(5, 0.2), set_, (jnp.asarray(X), y)).params)(jnp.asarray(y))


def test_acceleration_does_not_diverge() -> None:
    """JAXopt halves the step 15 times and then takes it, however much the objective grows."""
    Q = np.diag([1e6, 1e4, 1e3])

    def fun(x: Any, Q: Any) -> Any:
        return 0.5 * x @ (Q @ x)

    params, state = torchopt.ProximalGradient(fun, maxiter=3000, tol=1e-5).run(
        torch.ones(3).double(), None, torch.tensor(Q)
    )
    assert state.status == Status.CONVERGED and params.abs().max() < 1e-4
    with jax.enable_x64(True):
        theirs = jaxopt.ProximalGradient(fun, maxiter=300).run(jnp.ones(3), None, jnp.asarray(Q)).params
    assert not np.abs(theirs).max() < 1.0


def test_nan_trials_shorten_the_step() -> None:
    def fun(x: Any) -> Any:
        return x.sum() - x.log().sum()  # not defined beyond zero

    params, state = torchopt.ProximalGradient(fun, tol=1e-8).run(torch.tensor([1e-2, 3.0], dtype=torch.float64))
    assert state.status == Status.CONVERGED
    torch.testing.assert_close(params, torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize('acceleration', [True, False])
def test_unrolled_trees_auxiliary_output(acceleration: bool) -> None:
    def fun(w: Any, data: Any) -> Any:
        residuals = data[0] @ torch.cat([w['a'], w['b']]) - data[1]
        return 0.5 * residuals.square().mean(), residuals

    start = {'a': START[:2], 'b': START[2:]}
    options = {'has_aux': True, 'tol': 1e-10, 'maxiter': 2000, 'acceleration': acceleration}
    params, state = torchopt.ProximalGradient(fun, prox.prox_lasso, **options).run(start, 0.1, DATA)
    expected = solve('lasso', 0.1, *DATA).params
    torch.testing.assert_close(torch.cat([params['a'], params['b']]), expected, atol=1e-8, rtol=0)
    assert state.aux.shape == (12,)
    unrolled = torchopt.ProximalGradient(fun, prox.prox_lasso, implicit_diff=False, **options)
    leaf = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(unrolled.run(start, leaf, DATA).params['b'].sum(), leaf)
    (implicit,) = torch.autograd.grad(solve('lasso', leaf, *DATA).params[2:].sum(), leaf)
    torch.testing.assert_close(g, implicit, atol=1e-6, rtol=0)


def test_classes_by_blocks() -> None:
    start = torch.zeros(5, 3, dtype=torch.float64)
    by_blocks = torchopt.BlockCoordinateDescent(objective.multiclass_logreg, prox.prox_group_lasso, tol=1e-10)
    found = by_blocks.run(start, 0.05, (DATA[0], LABELS)).params

    def rows(x: Any, weight: Any, scaling: Any) -> Any:
        return torch.vmap(lambda row: prox.prox_group_lasso(row, weight, scaling))(x)

    whole = torchopt.ProximalGradient(objective.multiclass_logreg, rows, tol=1e-10, maxiter=2000)
    torch.testing.assert_close(found, whole.run(start, 0.05, (DATA[0], LABELS)).params, atol=1e-8, rtol=0)


def test_svm_dual() -> None:
    """The constants of JAXopt's objective lack the regularization, so that for a small one its steps are too long."""
    Y = torch.nn.functional.one_hot(LABELS, 3)  # integers
    start = torch.full_like(Y, 1 / 3, dtype=torch.float64)
    solver = torchopt.BlockCoordinateDescent(
        objective.multiclass_linear_svm_dual, lambda row, h, scaling: projections.projection_simplex(row), tol=1e-9
    )
    params, state = solver.run(start, None, l2reg=0.1, data=(DATA[0], Y))
    assert state.status == Status.CONVERGED
    assert solver.l2_optimality_error(params, None, l2reg=0.1, data=(DATA[0], Y)) < 1e-6


def test_reports_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    solver = torchopt.ProximalGradient(least_squares, prox.prox_lasso, maxiter=2, tol=0.0, verbose=True)
    assert solver.run(START, 0.1, DATA).state.status == Status.MAXITER
    assert 'Step size' in capsys.readouterr().out
    single = torchopt.ProximalGradient(least_squares, prox.prox_lasso, tol=1e-4)
    params, state = single.run(START.float(), 0.1, (DATA[0].float(), DATA[1].float()))
    assert params.dtype == state.error.dtype == torch.float32
    torch.testing.assert_close(params.double(), solve('lasso', 0.1, *DATA).params, atol=1e-3, rtol=0)


ERRORS = {
    'factor': (lambda: torchopt.ProximalGradient(least_squares, decrease_factor=1.0), ValueError, 'decrease_factor'),
    'searches': (lambda: torchopt.ProximalGradient(least_squares, maxls=0), ValueError, 'Invalid maxls'),
    'step size': (lambda: torchopt.MirrorDescent(least_squares, MIRROR, 0.0), ValueError, 'Invalid stepsize'),
    'kind of objective': (
        lambda: torchopt.BlockCoordinateDescent(least_squares, prox.prox_lasso),
        TypeError,
        'expected a torchopt.objective.CompositeLinearFunction',
    ),
    'blocks': (
        lambda: torchopt.BlockCoordinateDescent(objective.least_squares, prox.prox_lasso).run(START[:3], 0.1, DATA),
        ValueError,
        'init_params has 3 blocks, but the data have 5 columns',
    ),
    'integers': (
        lambda: torchopt.ProjectedGradient(least_squares, simplex).run(torch.zeros(5, dtype=torch.int64), 1.0, DATA),
        TypeError,
        'init_params has dtype torch.int64',
    ),
    'no scalar': (
        lambda: torchopt.ProximalGradient(lambda w: w).run(START),
        ValueError,
        'fun returned a tensor of shape',
    ),
    'nan': (lambda: torchopt.ProximalGradient(least_squares).run(START / 0, None, DATA), ValueError, 'NaN or infinite'),
}


@pytest.mark.parametrize(('call', 'error', 'message'), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize('acceleration', [False, True])
@pytest.mark.parametrize('factor', [0.5, 0.25])
def test_each_search_begins_with_a_larger_step_size(acceleration: bool, factor: float) -> None:
    """As in JAXopt.  The model bounds a parabola of curvature 1e-3 up to a step size of 1000."""
    solver = torchopt.GradientDescent(
        lambda x: 0.5e-3 * (x**2).sum(), acceleration=acceleration, decrease_factor=factor, tol=0.0
    )
    params = torch.ones(3, dtype=torch.float64)
    state, tried = solver.init_state(params), 1.0
    for _ in range(14):
        at = state.velocity if acceleration else params
        while tried > 1000.0:
            tried *= factor
        params, state = solver.update(params, state)
        torch.testing.assert_close(params, at - tried * 1e-3 * at)
        tried /= factor
        assert float(state.stepsize) == tried


@pytest.mark.parametrize('acceleration', [False, True])
def test_rounding_does_not_let_the_step_size_grow(acceleration: bool) -> None:
    """Far beyond the precision of the objective, steps that are too long would not come closer to the solution."""
    weights = torch.logspace(-1, 1, 5, dtype=torch.float64)
    solver = torchopt.GradientDescent(
        lambda x: 1.0 + (weights * (x - 1.0) ** 2).sum(), acceleration=acceleration, tol=1e-11, maxiter=3000
    )
    params, state = solver.run(torch.zeros(5, dtype=torch.float64))
    assert int(state.status) == torchopt.solver.Status.CONVERGED
    torch.testing.assert_close(params, torch.ones_like(params), rtol=1e-10, atol=0.0)
