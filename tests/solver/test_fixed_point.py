# SPDX-License-Identifier: Apache-2.0
"""FixedPointIteration, AndersonAcceleration and AndersonWrapper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt.linear_solve import solve_lu
from torchopt.solver import Status


def contraction(x: dict[str, Tensor], a: Tensor) -> dict[str, Tensor]:
    return {'u': 0.9 * torch.cos(x['v']) + 0.1 * a, 'v': 0.9 * torch.sin(a * x['u'])}


OPTIONS: dict[str, Any] = {'tol': 1e-12, 'maxiter': 400, 'implicit_diff_solve': solve_lu}
SOLVERS = {
    'iteration': lambda fun, **kw: torchopt.FixedPointIteration(fun, **{**OPTIONS, **kw}),
    'anderson': lambda fun, **kw: torchopt.AndersonAcceleration(fun, history_size=3, ridge=1e-12, **{**OPTIONS, **kw}),
    'mixing': lambda fun, **kw: torchopt.AndersonAcceleration(
        fun, history_size=2, mixing_frequency=3, beta=0.7, ridge=1e-12, **{**OPTIONS, **kw}
    ),
    'wrapper': lambda fun, **kw: torchopt.AndersonWrapper(
        torchopt.FixedPointIteration(fun, **{**OPTIONS, **kw}),
        history_size=2,
        ridge=1e-12,
        implicit_diff_solve=solve_lu,
        **{k: v for k, v in kw.items() if k != 'tol'},
    ),
}


def solved(solver: Any, a: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=torch.float64)
    x = solver.run({'u': zero, 'v': zero}, a).params
    return x['u'] - 2 * x['v']


@pytest.mark.parametrize('name', SOLVERS)
def test_trees_derivatives_and_batches(name: str) -> None:
    solver = SOLVERS[name](contraction)
    a = torch.tensor([0.5, 1.1], dtype=torch.float64)
    single = torch.stack([solved(solver, x) for x in a])
    torch.testing.assert_close(torch.vmap(lambda x: solved(solver, x))(a), single, rtol=1e-9, atol=1e-10)
    h = 1e-5
    slopes = torch.stack([(solved(solver, x + h) - solved(solver, x - h)) / (2 * h) for x in a])
    grads = torch.vmap(torch.func.grad(lambda x: solved(solver, x)))(a)
    torch.testing.assert_close(grads, slopes, rtol=1e-6, atol=1e-9)
    x = a[0].clone().requires_grad_()
    for unroll in ('auto', 'checkpoint'):
        unrolled = SOLVERS[name](contraction, implicit_diff=False, unroll=unroll, tol=1e-10)
        (found,) = torch.autograd.grad(solved(unrolled, x), x)
        torch.testing.assert_close(found, grads[0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ['FixedPointIteration', 'AndersonAcceleration'])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    params = getattr(torchopt, name)(lambda x: 0.5 * x + 1.0, tol=1e-2).run(torch.zeros(3, dtype=dtype)).params
    assert params.dtype == dtype
    torch.testing.assert_close(params, torch.full_like(params, 2.0), atol=0.05, rtol=0)


def test_anderson_takes_fewer_steps_and_finds_repelling_points() -> None:
    def fun(x: Tensor) -> Tensor:
        return torch.cos(x)

    start = torch.tensor([1.0, 0.2], dtype=torch.float64)
    plain = torchopt.FixedPointIteration(fun, tol=1e-10).run(start)
    fast = torchopt.AndersonAcceleration(fun, tol=1e-10, history_size=2, ridge=1e-14).run(start)
    torch.testing.assert_close(plain.params, fast.params)
    assert fast.state.iter_num <= plain.state.iter_num // 1.5
    # x = 4 - 2x: each plain step doubles the distance.
    params, state = torchopt.AndersonAcceleration(lambda x: 4.0 - 2.0 * x, history_size=2, ridge=1e-14).run(start)
    torch.testing.assert_close(params, torch.full_like(start, 4 / 3), rtol=1e-5, atol=0.0)
    assert state.status == Status.CONVERGED


@pytest.mark.parametrize('name', SOLVERS)
def test_one_problem_of_a_batch_fails(name: str) -> None:
    solver = SOLVERS[name](lambda x, a: 0.5 * torch.cos(a * x))
    a = torch.tensor([1.0, float('nan'), 0.1], dtype=torch.float64)
    params, state = torch.vmap(solver.run)(torch.ones(3, dtype=torch.float64), a)
    assert state.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    singles = [solver.run(torch.ones((), dtype=torch.float64), x) for x in (a[0], a[2])]
    torch.testing.assert_close(params[[0, 2]], torch.stack([s.params for s in singles]))
    assert [state.iter_num[0], state.iter_num[2]] == [s.state.iter_num for s in singles]


def test_singular_systems_of_weights_are_left_out() -> None:
    """All residuals are the same, and there is no regularization."""
    solver = torchopt.AndersonAcceleration(lambda x: x + 1.0, history_size=2, ridge=0.0, maxiter=10)
    params, state = solver.run(torch.zeros(2))
    assert params.tolist() == [10.0, 10.0]
    assert state.status == Status.MAXITER


def test_a_diverging_iteration_is_not_a_result() -> None:
    _, state = torchopt.FixedPointIteration(lambda x: 2.0 * x + 1.0, maxiter=50).run(torch.tensor(1.0))
    assert state.status == Status.MAXITER
    _, state = torchopt.FixedPointIteration(lambda x: x**2, maxiter=50).run(torch.tensor(3.0))
    assert state.status == Status.NONFINITE


def test_auxiliary_output_and_counts() -> None:
    def fun(x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * x, x

    for solver in (
        torchopt.FixedPointIteration(fun, has_aux=True),
        torchopt.AndersonAcceleration(fun, has_aux=True, ridge=1e-12),
    ):
        params, state = solver.run(torch.tensor([8.0]))
        assert state.aux.shape == params.shape
        assert state.num_fun_eval == state.iter_num + 1


def test_options_and_bad_input() -> None:
    for make, error, message in [
        (lambda: torchopt.AndersonAcceleration(torch.cos, history_size=1), ValueError, 'history_size'),
        (lambda: torchopt.AndersonAcceleration(torch.cos, mixing_frequency=0), ValueError, 'mixing_frequency'),
        (lambda: torchopt.AndersonAcceleration(torch.cos, ridge=-1.0), ValueError, 'ridge'),
        (lambda: torchopt.AndersonWrapper(torch.cos), TypeError, 'solver'),
        (lambda: torchopt.FixedPointIteration(3), TypeError, 'fixed_point_fun'),
        (lambda: torchopt.FixedPointIteration(torch.sum).run(torch.ones(2)), ValueError, 'fixed_point_fun'),
        (lambda: torchopt.FixedPointIteration(torch.cos, has_aux=True).run(torch.ones(2)), TypeError, 'has_aux'),
    ]:
        with pytest.raises(error, match=message):
            make()


def test_a_wrapped_descent() -> None:
    H = torch.diag(torch.tensor([1.0, 0.05], dtype=torch.float64))
    descent = torchopt.GradientDescent(
        lambda x: 0.5 * x @ H @ x, stepsize=1.0, acceleration=False, maxiter=60, tol=1e-8
    )
    start = torch.ones(2, dtype=torch.float64)
    plain = descent.run(start).params
    params, _ = torchopt.AndersonWrapper(descent, history_size=2, ridge=1e-14).run(start)
    assert params.norm() < 1e-2 * plain.norm()
