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


@pytest.mark.parametrize('scale', [1e-25, 1e25])
@pytest.mark.parametrize('batched', [False, True])
@pytest.mark.parametrize('name', OBJECTIVES)
def test_gradients_of_objectives(name: str, batched: bool, scale: float) -> None:
    tol = 1e-3 * scale
    solver = OBJECTIVES[name](lambda x: scale * (x - 1.0).square().sum(), tol=tol, maxiter=50)
    run = torch.vmap(solver.run) if batched else solver.run
    params, state = run(torch.zeros(1, 3) if batched else torch.zeros(3))
    check(state, (2.0 * scale * (params.double() - 1.0)).norm(), tol)


@pytest.mark.parametrize('scale', [1e-25, 1e10])
def test_values_of_roots(scale: float) -> None:
    tol = 1e-3 * scale
    params, state = torchopt.Broyden(lambda x: scale * (x - 1.0), tol=tol, maxiter=50).run(torch.zeros(3))
    check(state, (scale * (params.double() - 1.0)).norm(), tol)


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
