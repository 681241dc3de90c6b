# SPDX-License-Identifier: Apache-2.0
"""Complex parameters of proximal methods and projections, against pairs of real numbers and JAXopt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jaxopt
import numpy as np
import pytest
import torch

import torchopt
from torchopt import projections, prox

GOAL = torch.tensor([1.0 + 2.0j, -3.0 - 1.0j, 0.5j], dtype=torch.complex128)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
STARTS = torch.stack([torch.zeros(3, dtype=torch.complex128), 1.0j * GOAL])


def fun(z: torch.Tensor) -> torch.Tensor:
    return (WEIGHTS * (z - GOAL).abs() ** 2).sum()


def box(x: torch.Tensor, _: Any, scaling: Any) -> torch.Tensor:
    return torch.complex(x.real.clamp(0.0, 1.0), x.imag.clamp(-0.2, 0.3))


PROX: dict[str, Callable[..., Any]] = {
    'box': box,
    'ball': lambda x, _, scaling: projections.projection_l2_ball(x, 1.0),
    'l1 ball': lambda x, _, scaling: projections.projection_l1_ball(x, 2.0),
    'lasso': lambda x, _, scaling: prox.prox_lasso(x, 2.0, scaling),
    'elastic net': lambda x, _, scaling: prox.prox_elastic_net(x, (2.0, 0.5), scaling),
    'group lasso': lambda x, _, scaling: prox.prox_group_lasso(x, 2.0, scaling),
    'none': lambda x, _, scaling: x,
}


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('acceleration', [True, False])
@pytest.mark.parametrize('title', PROX)
def test_proximal_gradient_of_complex_numbers_is_that_of_pairs(title: str, acceleration: bool) -> None:
    operator = PROX[title]

    def of_pairs(x: torch.Tensor, _: Any, scaling: Any) -> torch.Tensor:
        return torch.view_as_real(operator(torch.view_as_complex(x), None, scaling))

    options: dict[str, Any] = {'acceleration': acceleration, 'tol': 1e-10, 'maxiter': 1000}
    solver = torchopt.ProximalGradient(fun, operator, **options)
    pairs = torchopt.ProximalGradient(lambda x: fun(torch.view_as_complex(x)), of_pairs, **options)
    expected = torch.stack([pairs.run(torch.view_as_real(x)).params for x in STARTS])
    found = torch.stack([solver.run(x).params for x in STARTS])
    torch.testing.assert_close(torch.view_as_real(found), expected, atol=1e-9, rtol=0.0)
    mapped = torch.vmap(lambda x: solver.run(x).params)(STARTS)
    torch.testing.assert_close(torch.view_as_real(mapped), expected, atol=1e-9, rtol=0.0)


@pytest.mark.filterwarnings('error')
def test_gradient_descent_with_complex_parameters() -> None:
    solver = torchopt.GradientDescent(fun, tol=1e-10)
    torch.testing.assert_close(torch.vmap(lambda x: solver.run(x).params)(STARTS), GOAL.expand(2, 3))


OPERATORS: dict[str, tuple[Any, Any, Any]] = {
    'prox_lasso': (prox.prox_lasso, jaxopt.prox.prox_lasso, 0.7),
    'prox_elastic_net': (prox.prox_elastic_net, jaxopt.prox.prox_elastic_net, (0.7, 0.3)),
    'prox_group_lasso': (prox.prox_group_lasso, jaxopt.prox.prox_group_lasso, 0.7),
    'prox_ridge': (prox.prox_ridge, jaxopt.prox.prox_ridge, 0.7),
    'projection_l1_ball': (projections.projection_l1_ball, jaxopt.projection.projection_l1_ball, 1.5),
    'projection_l1_sphere': (projections.projection_l1_sphere, jaxopt.projection.projection_l1_sphere, 1.5),
    'projection_l2_ball': (projections.projection_l2_ball, jaxopt.projection.projection_l2_ball, 1.5),
    'projection_l2_sphere': (projections.projection_l2_sphere, jaxopt.projection.projection_l2_sphere, 1.5),
}


@pytest.mark.parametrize('title', OPERATORS)
def test_operators_on_complex_numbers(title: str) -> None:
    ours, theirs, weight = OPERATORS[title]
    with jax.enable_x64(True):
        expected = np.asarray(theirs(jax.numpy.asarray(GOAL.numpy()), weight))
    torch.testing.assert_close(ours(GOAL, weight), torch.from_numpy(expected.copy()), atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda z: ours(z, weight), (GOAL.clone().requires_grad_(),))
