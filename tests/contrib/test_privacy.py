# SPDX-License-Identifier: Apache-2.0
"""Gradients with differential privacy."""

from __future__ import annotations

from typing import Any

import optax
import pytest
import torch

from tests.oracle import assert_trees_close, to_jax
from torchopt import contrib, tree

F64 = torch.float64


def test_private_gradients_without_noise_are_optaxs() -> None:
    g = {'w': torch.randn(5, 3, 2, dtype=F64), 'b': torch.randn(5, dtype=F64)}
    ours = contrib.dpsgd(0.3, 0.7, 0.0, 0, momentum=0.9, nesterov=True)
    with pytest.warns(DeprecationWarning):
        theirs = optax.contrib.dpsgd(0.3, 0.7, 0.0, 0, momentum=0.9, nesterov=True)
    p = {'w': torch.zeros(3, 2, dtype=F64), 'b': torch.zeros((), dtype=F64)}
    state, their_state = ours.init(p), theirs.init(to_jax(p))
    for step in range(5):
        now = tree.map(lambda x, s=step: x * (s + 1) / 3, g)
        updates, state = ours.update(now, state)
        wanted, their_state = theirs.update(to_jax(now), their_state)
        assert_trees_close(updates, wanted, 1e-10)


def test_private_noise_has_its_size() -> None:
    tx = contrib.differentially_private_aggregate(0.5, 3.0, key=1)
    g = [torch.zeros(4, 20000, dtype=F64)]
    state = tx.init([torch.zeros(20000)])
    (u,), following = tx.update(g, state)
    assert abs(float(u.mean())) < 0.01
    assert abs(float(u.std()) - 0.5 * 3.0 / 4) < 0.01
    assert torch.equal(tx.update(g, state)[0][0], u)
    (v,), _ = tx.update(g, following)
    assert abs(float((u * v).mean())) < 0.01


def test_private_keys_and_seeds() -> None:
    g = [torch.ones(2, 3)]

    def noise(**options: Any) -> torch.Tensor:
        tx = contrib.differentially_private_aggregate(1.0, 1.0, **options)
        return tx.update(g, tx.init(g))[0][0]

    assert torch.equal(noise(), noise(key=0))
    assert not torch.equal(noise(key=1), noise(key=0))
    with pytest.warns(DeprecationWarning, match='key'):
        assert torch.equal(noise(seed=1), noise(key=1))
    with pytest.raises(ValueError, match='both'):
        noise(key=1, seed=1)
    drawn = torch.func.vmap(lambda g: noise_of([g]))(torch.ones(2, 2, 3))
    assert drawn.shape == (2, 3)


def noise_of(g: Any) -> torch.Tensor:
    tx = contrib.differentially_private_aggregate(1.0, 1.0, 0)
    return tx.update(g, tx.init(g))[0][0]
