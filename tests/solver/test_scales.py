# SPDX-License-Identifier: Apache-2.0
"""Objectives far from one in float32: the error is that of the result, although its squares leave the range."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt.solver import Status

OBJECTIVES: dict[str, Callable[..., Any]] = {
    'LBFGS': torchopt.LBFGS,
    'BFGS': torchopt.BFGS,
    'NonlinearCG': torchopt.NonlinearCG,
}


@pytest.mark.parametrize(
    ('scale', 'dtype'), [(1e-30, torch.float32), (1e30, torch.float32), (1e-200, torch.float64), (1e200, torch.float64)]
)
@pytest.mark.parametrize('batched', [False, True])
@pytest.mark.parametrize('name', [*OBJECTIVES, 'LBFGSB'])
def test_solutions_of_extreme_objectives(name: str, batched: bool, scale: float, dtype: torch.dtype) -> None:
    """Products of gradients overflow or vanish; the run works on a multiple of the objective, the state does not."""
    weights, goal, start = torch.tensor([[1.0, 50.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], dtype=dtype)
    solver = getattr(torchopt, name)(lambda x: scale * (weights * (x - goal) ** 2).sum(), tol=1e-4 * scale)
    bounds = ((None, None),) if name == 'LBFGSB' else ()
    params, state = torch.vmap(lambda x: solver.run(x, *bounds))(start[None]) if batched else solver.run(start, *bounds)
    assert state.status.item() == Status.CONVERGED
    params, gradient = params.reshape(3).double(), state.grad.reshape(3).double() / scale
    torch.testing.assert_close(params, goal.double(), atol=1e-3, rtol=0)
    expected = 2.0 * weights.double() * (params - goal)
    torch.testing.assert_close(gradient, expected, atol=2e-5, rtol=0)
    assert state.value.item() / scale == pytest.approx((weights * (params - goal) ** 2).sum().item(), abs=1e-6)
    if name == 'LBFGS':  # its memory is that of the objective itself
        s, y = (x.reshape(-1, 3).double() for x in (state.s_history, state.y_history / scale))
        torch.testing.assert_close(y, 2.0 * weights.double() * s, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize('scale', [1e-25, 1e25])
@pytest.mark.parametrize('batched', [False, True])
@pytest.mark.parametrize('name', OBJECTIVES)
def test_gradients_of_objectives(name: str, batched: bool, scale: float) -> None:
    tol = 1e-3 * scale
    solver = OBJECTIVES[name](lambda x: scale * (x - 1.0).square().sum(), tol=tol, maxiter=50)
    run = torch.vmap(solver.run) if batched else solver.run
    params, state = run(torch.zeros(1, 3) if batched else torch.zeros(3))
    check(state, (2.0 * scale * (params.double() - 1.0)).norm(), tol)


@pytest.mark.parametrize(
    ('scale', 'dtype'), [(1e-25, torch.float32), (1e25, torch.float32), (1e-170, torch.float64), (1e160, torch.float64)]
)
def test_values_of_roots(scale: float, dtype: torch.dtype) -> None:
    tol = 1e-3 * scale
    solver = torchopt.Broyden(lambda x: scale * (x - 1.0 + 0.1 * x.sin()), tol=tol, gamma=1.0 / scale, maxiter=50)
    params, state = solver.run(torch.zeros(3, dtype=dtype))
    assert state.status.item() == Status.CONVERGED
    check(state, scale * (params.double() - 1.0 + 0.1 * params.double().sin()).norm(), tol)


STEPS: dict[str, Callable[..., Any]] = {
    'SPS_max': lambda fun, scale: torchopt.PolyakSGD(fun, tol=1e-4 * scale, max_stepsize=10.0 / scale),
    'SPS+': lambda fun, scale: torchopt.PolyakSGD(fun, variant='SPS+', tol=1e-4 * scale),
    'ArmijoSGD': lambda fun, scale: torchopt.ArmijoSGD(fun, tol=1e-4 * scale, max_stepsize=1.0 / scale),
}


@pytest.mark.parametrize('scale', [1e-10, 1.0, 1e10])
@pytest.mark.parametrize('name', STEPS)
def test_step_sizes_of_stochastic_gradients(name: str, scale: float) -> None:
    """The precision of the dtype, or 1e-30, decided about steps at any scale of the objective."""
    params, state = STEPS[name](lambda w: scale * (100.0 * (w - 3.0) ** 2).sum(), scale).run(torch.zeros(2))
    assert state.status.item() == Status.CONVERGED
    torch.testing.assert_close(params, torch.full((2,), 3.0))


def test_changes_of_blocks() -> None:
    """Squares of the changes underflow, which is no convergence."""
    X, w = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), 1e-24 * torch.arange(5.0)
    solver = torchopt.BlockCoordinateDescent(torchopt.objective.least_squares, torchopt.prox.prox_none, tol=1e-30)
    params, state = solver.run(torch.zeros(5), None, (X, X @ w))
    assert state.status.item() == Status.CONVERGED
    torch.testing.assert_close(1e24 * params, torch.arange(5.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize('scale', [1e-25, 1e25])
def test_residuals_of_fixed_points(scale: float) -> None:
    """The error is the residual before the last step, which at least halves it."""
    tol = 1e-3 * scale
    params, state = torchopt.AndersonAcceleration(lambda x: 0.5 * x + scale, tol=tol, maxiter=50).run(torch.zeros(3))
    assert state.status.item() == Status.CONVERGED
    assert 0.0 < 2 * (0.5 * params.double() - scale).norm().item() <= 1.01 * state.error.item() <= 1.01 * tol


def check(state: Any, error: Tensor, tol: float) -> None:
    """The state holds this error, and its status follows from it."""
    assert state.error.item() == pytest.approx(error.item(), rel=1e-3, abs=1e-3 * tol)
    assert (state.status.item() == Status.CONVERGED) == (error.item() <= tol)


@pytest.mark.parametrize(
    ('scale', 'dtype'), [(1.0, torch.float32), (1e-25, torch.float32), (1e25, torch.float32), (1e-130, torch.float64)]
)
@pytest.mark.parametrize('batched', [False, True])
def test_steps_of_conjugate_gradients_are_multiples_of_the_direction(
    batched: bool, scale: float, dtype: torch.dtype
) -> None:
    """The step size was that of the multiple of the objective on which the run works."""
    weights = torch.tensor([1.0, 5.0, 3.0], dtype=dtype)

    def state_after(steps: int) -> Any:
        solver = torchopt.NonlinearCG(lambda x: scale * (weights * (x - 1.0) ** 2).sum(), tol=0.0, maxiter=steps)
        run = torch.vmap(solver.run) if batched else solver.run
        return run(torch.zeros(1, 3, dtype=dtype) if batched else torch.zeros(3, dtype=dtype))

    assert state_after(0).state.stepsize.item() == 1000.0
    for steps in (0, 1):
        before, after = state_after(steps), state_after(steps + 1)
        moved = (after.params - before.params).double()
        direction = before.state.descent_direction.double()
        torch.testing.assert_close(after.state.stepsize.double() * direction, moved, atol=1e-5, rtol=1e-5)
        expected = (before.state.grad.double() * direction).sum().clamp(min=-torch.finfo(dtype).max)
        torch.testing.assert_close(
            after.state.slope.double().reshape(()), expected, atol=1e-45 if dtype == torch.float32 else 0.0, rtol=1e-5
        )


def test_the_largest_step_size_is_that_of_the_search() -> None:
    searches = {
        'zoom': 1000.0,
        'backtracking': 1.0,
        torchopt.BacktrackingLineSearch(torch.sum): 1.0,
        torchopt.BacktrackingLineSearch(torch.sum, max_stepsize=3.0): 3.0,
        torchopt.ZoomLineSearch(torch.sum): 1000.0,
        torchopt.ZoomLineSearch(torch.sum, max_stepsize=5.0): 5.0,
        torchopt.HagerZhangLineSearch(torch.sum): 1000.0,
    }
    for search, expected in searches.items():
        assert torchopt.NonlinearCG(torch.sum, linesearch=search).max_stepsize == expected
        assert torchopt.NonlinearCG(torch.sum, linesearch=search, max_stepsize=2.0).max_stepsize == 2.0
