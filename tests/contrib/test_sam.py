# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware minimization in both of its modes."""

from __future__ import annotations

from typing import Any

import optax
import pytest
import torch

import torchopt
from tests.contrib.contrib_cases import EACH, quartic, quartic_gradient
from tests.oracle import assert_trees_close, to_jax
from torchopt import contrib


@pytest.mark.parametrize('period', [1, 2, 3])
@pytest.mark.parametrize('reset', [True, False])
def test_opaque_sam_equals_optax(period: int, reset: bool) -> None:
    def make(x: Any, c: Any) -> Any:
        climb = x.chain(c.normalize(), x.sgd(0.1, momentum=0.9))
        return c.sam(x.adam(0.1), climb, sync_period=period, reset_state=reset, opaque_mode=True)

    ours, theirs = make(torchopt, contrib), make(optax, optax.contrib)
    p = [x.clone() for x in EACH]
    q = to_jax(p)
    state, their_state = ours.init(p), theirs.init(q)
    for _ in range(10):
        u, state = ours.update(quartic_gradient(p), state, p, grad_fn=lambda p, i: quartic_gradient(p))
        v, their_state = theirs.update(quartic_gradient(q), their_state, q, grad_fn=lambda q, i: quartic_gradient(q))
        p, q = [x + y for x, y in zip(p, u)], [x + y for x, y in zip(q, v)]
    assert_trees_close(p, q, 1e-9)
    assert state.cache is None


def test_transparent_and_opaque_sam_are_one() -> None:
    climb = torchopt.chain(contrib.normalize(), torchopt.sgd(0.1))
    whole, parts = (contrib.sam(torchopt.adam(0.1), climb, 3, opaque_mode=o) for o in (True, False))
    p = [x.clone() for x in EACH]
    q = [x.clone() for x in EACH]
    state, own = whole.init(p), parts.init(q)
    for _ in range(4):
        u, state = whole.update(quartic_gradient(p), state, p, grad_fn=lambda p, i: quartic_gradient(p))
        p = torchopt.apply_updates(p, u)
        for _ in range(3):
            u, own = parts.update(quartic_gradient(q), own, q)
            q = torchopt.apply_updates(q, u)
        assert_trees_close(q, p, 1e-12)


def test_sam_of_one_step_is_the_outer_optimizer() -> None:
    """In Optax's transparent mode the step then begins at the parameters before the last."""
    tx, plain = contrib.sam(torchopt.adam(0.1), torchopt.sgd(1.0), sync_period=1), torchopt.adam(0.1)
    p, q = [EACH[0]], [EACH[0]]
    state, own = tx.init(p), plain.init(q)
    for _ in range(4):
        u, state = tx.update(quartic_gradient(p), state, p)
        v, own = plain.update(quartic_gradient(q), own, q)
        p, q = [p[0] + u[0]], [q[0] + v[0]]
    assert_trees_close(p, q, 1e-14)


def test_opaque_sam_trains_weights() -> None:
    """grad_fn gets weights where the parameters are weights, for torch.autograd.grad and torch.func.grad alike."""
    climb = torchopt.chain(contrib.normalize(), torchopt.sgd(0.05))
    tx = contrib.sam(torchopt.sgd(0.1), climb, opaque_mode=True)
    found = []
    for gradient in (
        lambda p, i=0: torch.autograd.grad(quartic(p), p),
        lambda p, i=0: tuple(torch.func.grad(lambda x: quartic([x]))(p[0]).detach()[None]),
    ):
        p = (EACH[0].clone().requires_grad_(),)
        state = tx.init(p)
        for _ in range(3):
            u, state = tx.update(gradient(p), state, p, grad_fn=gradient)
            assert not u[0].requires_grad
            p = torchopt.apply_updates(p, u)
        found.append(p[0].detach())
    torch.testing.assert_close(found[0], found[1])


def test_sam_refuses() -> None:
    make = contrib.sam
    with pytest.raises(ValueError, match='sync_period'):
        make(torchopt.sgd(0.1), torchopt.sgd(0.1), 0)
    with pytest.raises(ValueError, match='named axes'):
        make(torchopt.sgd(0.1), torchopt.sgd(0.1), batch_axis_name='batch')
    tx = make(torchopt.sgd(0.1), torchopt.sgd(0.1), opaque_mode=True)
    with pytest.raises(ValueError, match='grad_fn'):
        tx.update(EACH, tx.init(EACH), EACH)
