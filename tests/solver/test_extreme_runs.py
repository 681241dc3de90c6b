# SPDX-License-Identifier: Apache-2.0
"""Runs at the edge: no steps, no unknowns, tiny and huge numbers, half precision, NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchopt
from torchopt.solver import Status


def same(x: torch.Tensor, hyperparams: Any) -> torch.Tensor:
    return x


MIRROR = torchopt.MirrorDescent.make_projection_grad(same, lambda x: x)
SOLVERS: dict[str, Callable[..., Any]] = {
    'LBFGS': torchopt.LBFGS,
    'BFGS': torchopt.BFGS,
    'NonlinearCG': torchopt.NonlinearCG,
    'LBFGSB': torchopt.LBFGSB,
    'GradientDescent': torchopt.GradientDescent,
    'ProximalGradient': torchopt.ProximalGradient,
    'ProjectedGradient': lambda fun, **options: torchopt.ProjectedGradient(fun, same, **options),
    'MirrorDescent': lambda fun, **options: torchopt.MirrorDescent(fun, MIRROR, stepsize=0.1, **options),
    'ArmijoSGD': torchopt.ArmijoSGD,
    'PolyakSGD': torchopt.PolyakSGD,
    'OptaxSolver': lambda fun, **options: torchopt.OptaxSolver(fun, torchopt.adam(0.1), **options),
}


def bowl(x: torch.Tensor) -> torch.Tensor:
    return ((x - 3.0) ** 2).sum()


def ones(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.ones(2, dtype=dtype)


def run(name: str, fun: Any, start: Any, **options: Any) -> Any:
    bounds = [(-math.inf, math.inf)] if name == 'LBFGSB' else []
    return SOLVERS[name](fun, **options).run(start, *bounds)


def ending(state: Any) -> Status:
    return Status(int(state.status))


@pytest.mark.parametrize('name', SOLVERS)
def test_no_steps(name: str) -> None:
    params, state = run(name, bowl, ones(), maxiter=0)
    assert ending(state) is Status.MAXITER
    assert torch.equal(params, ones())


@pytest.mark.parametrize('name', SOLVERS)
def test_a_start_at_the_solution_and_a_constant(name: str) -> None:
    for fun in (bowl, lambda x: 0.0 * x.sum() + 1.0, lambda x: torch.tensor(2.0, dtype=torch.float64)):
        params, state = run(name, fun, 3.0 * ones(), tol=0.0)
        assert ending(state) is Status.CONVERGED
        assert torch.equal(params, 3.0 * ones())


@pytest.mark.parametrize('name', SOLVERS)
def test_no_unknowns(name: str) -> None:
    double = torch.zeros(0, dtype=torch.float64)
    for start, fun in ((double, lambda x: (x * x).sum()), ({}, lambda x: torch.tensor(1.0))):
        params, state = run(name, fun, start)
        assert ending(state) is Status.CONVERGED
        assert torch.equal(params, start) if isinstance(start, torch.Tensor) else params == start


@pytest.mark.parametrize('name', SOLVERS)
def test_one_unknown_in_every_shape(name: str) -> None:
    options = {'maxiter': 100, 'tol': 1e-5}
    for start in (torch.tensor(1.0), torch.ones(1), {'a': torch.ones(1, 1), 'b': torch.zeros(0)}):
        params, state = run(name, lambda p: bowl(p['a'] if isinstance(p, dict) else p), start, **options)
        x = params['a'] if isinstance(params, dict) else params
        torch.testing.assert_close(x, torch.full_like(x, 3.0), atol=0.1, rtol=0)
        assert ending(state) in (Status.CONVERGED, Status.MAXITER)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', SOLVERS)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    params, state = run(name, bowl, ones(dtype), maxiter=100)
    assert params.dtype == dtype
    torch.testing.assert_close(params.float(), torch.full((2,), 3.0), atol=0.1, rtol=0)
    if ending(state) is Status.CONVERGED and name not in ('ArmijoSGD', 'PolyakSGD', 'OptaxSolver'):
        assert 2.0 * (params.double() - 3.0).norm() <= 1e-2 + torch.finfo(dtype).eps * 6.0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', SOLVERS)
def test_steps_by_hand_in_half_precision(name: str, dtype: torch.dtype) -> None:
    solver = SOLVERS[name](bowl)
    data = [(-math.inf, math.inf)] if name == 'LBFGSB' else []
    params, state = ones(dtype), solver.init_state(ones(dtype), *data)
    for _ in range(3):
        params, state = solver.update(params, state, *data)
    assert params.dtype == dtype
    assert bowl(params.float()) < bowl(ones())


FOLLOWED: dict[str, Callable[..., Any]] = {
    'a start that requires grad': lambda run, x: run(x.clone().requires_grad_()),
    'vmap': lambda run, x: torch.vmap(run)(x[None])[0],
    'grad': lambda run, x: torch.func.grad_and_value(lambda x: run(x).sum())(x)[1] / 2 + 0 * x,
    'jvp': lambda run, x: torch.func.jvp(run, (x,), (x,))[0],
}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('transform', FOLLOWED)
@pytest.mark.parametrize('name', SOLVERS)
def test_runs_whose_numbers_are_tensors(name: str, transform: str, dtype: torch.dtype) -> None:
    """Numbers in the states of stochastic solvers changed their dtype between two steps."""
    unrolled = {'implicit_diff': False} if transform != 'vmap' else {}
    solve = lambda x: run(name, bowl, x, maxiter=60, **unrolled).params  # noqa: E731
    found = FOLLOWED[transform](solve, ones(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.detach().float(), torch.full((2,), 3.0), atol=0.15, rtol=0)


FURTHER: dict[str, Callable[..., Any]] = {
    **SOLVERS,
    'constant': lambda fun, **options: torchopt.LBFGS(fun, stepsize=0.2, **options),
    'backtracking': lambda fun, **options: torchopt.NonlinearCG(fun, linesearch='backtracking', **options),
    'constant projected': lambda fun, **options: torchopt.ProjectedGradient(fun, same, stepsize=0.1, **options),
    'FixedPointIteration': lambda fun, **options: torchopt.FixedPointIteration(lambda x: 0.5 * (x + 3.0), **options),
    'AndersonWrapper': lambda fun, **options: torchopt.AndersonWrapper(torchopt.GradientDescent(fun, **options)),
}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('name', [name for name in FURTHER if name != 'LBFGSB'])
def test_unrolled_runs_with_checkpoints(name: str, dtype: torch.dtype) -> None:
    """Numbers that a first run reads are tensors in the second one, of another dtype."""
    options = {'implicit_diff': False, 'maxiter': 5, 'tol': 0.0}

    def solve(x: torch.Tensor, **unroll: Any) -> torch.Tensor:
        return (FURTHER[name](bowl, **options, **unroll).run(x).params ** 2).sum()

    x = 2.0 * ones(dtype)
    expected, slope = torch.func.grad_and_value(solve)(x)
    found = torch.func.grad_and_value(lambda x: solve(x, unroll='checkpoint'))(x)
    torch.testing.assert_close(found, (expected, slope))
    _, tangent = torch.func.jvp(lambda x: solve(x, unroll='checkpoint'), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(tangent, expected.sum(), rtol=2e-2, atol=2e-2)


def test_half_precision_of_a_wrapped_solver() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        solver = torchopt.AndersonWrapper(torchopt.GradientDescent(bowl))
        found = torch.stack([solver.run(ones(dtype)).params, torch.vmap(solver.run)(ones(dtype)[None]).params[0]])
        torch.testing.assert_close(found, torch.full((2, 2), 3.0, dtype=dtype), atol=0.05, rtol=0)


HIDDEN = [
    ('a small objective', lambda x: 1e-30 * bowl(x), ones(), 1e-36),
    ('one whose squares underflow', lambda x: 1e-200 * bowl(x), ones(), 0.0),
    ('a small objective in float32', lambda x: 1e-25 * bowl(x), ones(torch.float32), 0.0),
    ('large parameters', lambda x: bowl(1e-30 * x), 1e30 * ones(), 1e-40),
    ('large parameters in float32', lambda x: bowl(1e-4 * (x - 1e4)), 1e4 * ones(torch.float32), 1e-8),
]


@pytest.mark.parametrize('row', HIDDEN, ids=[row[0] for row in HIDDEN])
@pytest.mark.parametrize('name', SOLVERS)
def test_steps_that_rounding_hides_are_no_convergence(name: str, row: Any) -> None:
    """A step below the precision of the parameters leaves them as they are, as at a solution."""
    _, fun, start, tol = row
    params, state = run(name, fun, start, tol=tol, maxiter=60)
    x = params.double().requires_grad_()
    (gradient,) = torch.autograd.grad(fun(x), x)
    if ending(state) is Status.CONVERGED:
        assert torch.linalg.vector_norm(gradient / tol if tol else gradient, dtype=torch.float64) <= (
            2.0 if tol else 0.0
        )


class _NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return torch.full((2,), math.nan, dtype=torch.float64)


@pytest.mark.parametrize('name', SOLVERS)
def test_nan(name: str) -> None:
    """At the start it is an error; in a gradient it ends the run, or is an error before it."""
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r'The objective is (nan|inf) at init_params'):
            run(name, lambda x, value=value: (x * x).sum() + value, ones())
    try:
        found = run(name, _NanGradient.apply, ones())
    except ValueError as error:
        assert 'gradient is not finite' in str(error)
    else:
        assert ending(found.state) is Status.NONFINITE


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('name', SOLVERS)
def test_everything_but_the_start_is_nan(name: str, bad: float) -> None:
    def fun(x: torch.Tensor) -> torch.Tensor:
        return (x * x).sum() + torch.where((x == 1.0).all(), 0.0, bad)

    state = run(name, fun, ones(), maxiter=100).state
    assert ending(state) in (Status.STALLED, Status.NONFINITE, Status.MAXITER)


@pytest.mark.parametrize('name', ['ArmijoSGD', 'PolyakSGD', 'OptaxSolver'])
def test_a_value_that_is_not_finite_ends_the_run(name: str) -> None:
    """The gradient of a clamped value is zero, which is no solution."""

    def fun(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x.sum() > 1.5, (x * x).sum(), math.nan)

    state = run(name, fun, ones()).state
    assert ending(state) is Status.NONFINITE
    assert int(state.iter_num) < 100


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS', 'NonlinearCG'])
def test_steps_by_hand_check_their_start_and_take_no_unknowns(name: str) -> None:
    solver = SOLVERS[name](bowl)
    for bad in (torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)):
        with pytest.raises(TypeError, match=r'init_params has dtype .*; expected a floating dtype'):
            solver.init_state(bad)
    empty = torch.zeros(0, dtype=torch.float64)
    params, state = solver.update(empty, solver.init_state(empty))
    assert torch.equal(params, empty)
    assert state.error.item() == 0.0
