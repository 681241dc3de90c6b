# SPDX-License-Identifier: Apache-2.0
"""The losses that JAXopt has too, with the label first: the table of the page on porting from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import torch

from torchopt import losses

RNG = np.random.default_rng(0)
X, TARGETS = 2 * RNG.standard_normal(6), RNG.standard_normal(6)
BITS, LABELS, SCORES = np.array([0, 1, 1, 0, 1, 0]), np.array([0, 2, 1, 2, 0, 1]), 2 * RNG.standard_normal((6, 3))

ROWS: dict[str, tuple[Callable[..., Any], Any, Any]] = {
    'huber_loss': (lambda y, x: losses.huber_loss(x, y, delta=1.0), TARGETS, X),
    'binary_logistic_loss': (lambda y, x: losses.sigmoid_binary_cross_entropy(x, y), BITS, X),
    'binary_sparsemax_loss': (lambda y, x: losses.sparsemax_loss(x, y), BITS, X),
    'binary_hinge_loss': (lambda y, x: losses.hinge_loss(x, 2 * y - 1), BITS, X),
    'binary_perceptron_loss': (lambda y, x: losses.perceptron_loss(x, 2 * y - 1), BITS, X),
    'multiclass_logistic_loss': (lambda y, x: losses.softmax_cross_entropy_with_integer_labels(x, y), LABELS, SCORES),
    'multiclass_sparsemax_loss': (lambda y, x: losses.multiclass_sparsemax_loss(x, y), LABELS, SCORES),
    'multiclass_hinge_loss': (lambda y, x: losses.multiclass_hinge_loss(x, y), LABELS, SCORES),
    'multiclass_perceptron_loss': (lambda y, x: losses.multiclass_perceptron_loss(x, y), LABELS, SCORES),
}


@pytest.mark.parametrize('name', ROWS)
def test_values_and_gradients(name: str) -> None:
    loss, y, x = ROWS[name]
    scores = torch.tensor(x, requires_grad=True)
    found = loss(torch.tensor(y), scores)
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    with jax.enable_x64(True):
        theirs = jax.vmap(getattr(jaxopt.loss, name))
        wanted, slope = theirs(jnp.asarray(y), jnp.asarray(x)), jax.grad(lambda s: theirs(jnp.asarray(y), s).sum())(x)
        np.testing.assert_allclose(found.detach(), wanted, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(gradient, slope, rtol=1e-12, atol=1e-15)


def test_fenchel_young() -> None:
    loss = losses.make_fenchel_young_loss(lambda s: torch.logsumexp(s, 0))
    with jax.enable_x64(True):
        theirs = jaxopt.loss.make_fenchel_young_loss(jax.scipy.special.logsumexp)
        wanted = [theirs(jnp.eye(3)[k], jnp.asarray(s)) for k, s in zip(LABELS, SCORES)]
        found = loss(torch.tensor(SCORES), torch.eye(3, dtype=torch.float64)[torch.tensor(LABELS)])
        np.testing.assert_allclose(found, np.asarray(wanted), rtol=1e-6)
