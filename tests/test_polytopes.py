# SPDX-License-Identifier: Apache-2.0
"""Projections onto polyhedra and transportation polytopes: JAXopt, quadratic programs, finite differences, extremes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import torch

import torchopt
from tests.solver.derivatives import assert_derivatives
from torchopt import polytopes

rng = np.random.default_rng(0)
S = rng.standard_normal((4, 5))
a, b = rng.uniform(0.1, 1.0, 4), rng.uniform(0.1, 1.0, 5)
a, b = a / a.sum(), b / b.sum()
TENSORS = [torch.tensor(v) for v in (S, a, b)]
A, G, X = rng.standard_normal((1, 4)), rng.standard_normal((3, 4)), rng.standard_normal(4)
POLYHEDRON = (A, A @ np.ones(4), G, G @ np.ones(4) + 0.1)
TRANSPORT = ['projection_transport', 'kl_projection_transport']


def lbfgs(fun: Any) -> Any:
    return torchopt.LBFGS(fun, tol=1e-10, maxiter=500)


@pytest.mark.parametrize('name', TRANSPORT)
def test_transport_against_jaxopt(name: str) -> None:
    with jax.enable_x64(True):
        make_solver = functools.partial(jaxopt.LBFGS, tol=1e-11, maxiter=1000)
        f = functools.partial(getattr(jaxopt.projection, name), make_solver=make_solver)
        expected = jax.jit(f)(jnp.asarray(S), (jnp.asarray(a), jnp.asarray(b)))
    found = getattr(polytopes, name)(TENSORS[0], tuple(TENSORS[1:]))
    np.testing.assert_allclose(found, expected, atol=1e-8)
    np.testing.assert_allclose(found.sum(1), a, atol=1e-12)
    np.testing.assert_allclose(found.sum(0), b, atol=1e-12)
    for use_semi_dual in (True, False):
        plan = getattr(polytopes, name)(TENSORS[0], tuple(TENSORS[1:]), lbfgs, use_semi_dual)
        torch.testing.assert_close(plan, found, atol=1e-6, rtol=0)


@pytest.mark.parametrize('name', TRANSPORT)
def test_transport_derivatives_and_batches(name: str) -> None:
    f = getattr(polytopes, name)

    def plan(S: Any, a: Any, b: Any) -> Any:
        return f(S, (a / a.sum(), b / b.sum()))

    assert_derivatives(plan, TENSORS, second=True)
    batch = torch.stack([TENSORS[0], 3 * TENSORS[0]])
    rows = torch.vmap(lambda S: plan(S, *TENSORS[1:]))(batch)
    torch.testing.assert_close(rows[1], plan(batch[1], *TENSORS[1:]), atol=1e-10, rtol=0)


def test_birkhoff_is_the_nearest_doubly_stochastic_matrix() -> None:
    n = 3
    matrix = torch.tensor(rng.standard_normal((n, n)))
    found = polytopes.projection_birkhoff(matrix)
    eye = torch.eye(n, dtype=torch.float64)
    sums = torch.cat([torch.kron(eye, torch.ones(1, n)), torch.kron(torch.ones(1, n), eye)]).double()
    program = torchopt.BoxOSQP(tol=1e-10)
    constraints = torch.cat([sums, torch.eye(n * n, dtype=torch.float64)])
    low, high = torch.cat([torch.ones(2 * n), torch.zeros(n * n)]), torch.cat([torch.ones(2 * n), torch.ones(n * n)])
    objective = torch.eye(n * n, dtype=torch.float64), -matrix.reshape(-1)
    expected = program.run(None, objective, constraints, (low.double(), high.double())).params.primal[0]
    torch.testing.assert_close(found, expected.reshape(n, n), atol=1e-8, rtol=0)
    entropic = polytopes.kl_projection_birkhoff(matrix)
    torch.testing.assert_close(entropic.sum(0), torch.ones(n, dtype=torch.float64))
    # Of the form exp(S + a_i + b_j): its double differences vanish.
    potentials = entropic.log() - matrix
    differences = potentials - potentials[:1] - potentials[:, :1] + potentials[0, 0]
    torch.testing.assert_close(differences, torch.zeros_like(matrix), atol=1e-9, rtol=0)


@pytest.mark.parametrize('name', TRANSPORT)
@pytest.mark.parametrize('scale', [1e-3, 1e2])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_transport_at_scales(name: str, scale: float, dtype: torch.dtype) -> None:
    S, a, b = (v.to(dtype) for v in TENSORS)
    plan = getattr(polytopes, name)(scale * S, (a, b))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(plan.sum(1), a, atol=tolerance, rtol=0)
    torch.testing.assert_close(plan.sum(0), b, atol=tolerance, rtol=0)
    assert (plan >= 0).all() and plan.dtype == dtype
    column = torch.zeros_like(b)
    column[1] = 1.0
    empty = polytopes.projection_transport(S, (a, column))
    torch.testing.assert_close(empty[:, 1], a, atol=tolerance, rtol=0)


def test_polyhedron() -> None:
    tensors = [torch.tensor(v) for v in (X, *POLYHEDRON)]
    found = polytopes.projection_polyhedron(tensors[0], tuple(tensors[1:]))
    with jax.enable_x64(True):
        program = jaxopt.OSQP(tol=1e-9, eq_qp_solve='lu')
        A, b, G, h = map(jnp.asarray, POLYHEDRON)
        expected = program.run(None, (jnp.eye(4), -jnp.asarray(X)), (A, b), (G, h)).params.primal
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert_derivatives(lambda x, *h: polytopes.projection_polyhedron(x, h), tensors)
    batch = torch.vmap(lambda x: polytopes.projection_polyhedron(x, tuple(tensors[1:])))(
        torch.stack([tensors[0], found])
    )
    torch.testing.assert_close(batch, torch.stack([found, found]), atol=1e-9, rtol=0)
    single = polytopes.projection_polyhedron(tensors[0].float(), tuple(v.float() for v in tensors[1:]))
    torch.testing.assert_close(single, found.float(), atol=1e-4, rtol=0)


x, ONES = torch.zeros(2), torch.ones(2)
ERRORS = {
    'empty': (
        lambda: polytopes.projection_polyhedron(x, (None, None, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), -ONES)),
        'The polyhedron is empty',
    ),
    'shapes': (lambda: polytopes.projection_transport(torch.ones(2, 3), (x, x)), 'expected those of the rows'),
    'totals': (lambda: polytopes.projection_transport(torch.ones(2, 2), (x, x + 1)), 'expected the same sum'),
    'square': (lambda: polytopes.projection_birkhoff(torch.ones(2, 3)), 'expected a square matrix'),
    'four': (lambda: polytopes.projection_polyhedron(x, (x, x)), r'expected \(A, b, G, h\)'),
}


@pytest.mark.parametrize(('call', 'message'), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
