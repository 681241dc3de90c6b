# SPDX-License-Identifier: Apache-2.0
"""Sophia, and the estimate of the Hessian that it needs."""

from __future__ import annotations

import io
import pickle
from typing import Any

import jax
import optax
import pytest
import torch

import torchopt
from tests.contrib.contrib_cases import EACH, entries, quartic, quartic_gradient
from tests.oracle import assert_trees_close, to_jax
from torchopt import contrib, tree

F64 = torch.float64


def mixing(p: Any) -> torch.Tensor:
    """A function whose Hessian is full."""
    x = torch.cat([q.reshape(-1) for q in p])
    return (x.sum() ** 2 * x.square().sum()).sin() + (x**3).sum()


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'b1': 0.5, 'b2': 0.8, 'gamma': 0.5, 'clip_threshold': 0.3, 'update_interval': 3, 'weight_decay': 0.1},
        {'clip_threshold': None, 'gamma': 1.0, 'eps': 9.0, 'update_interval': 2},
    ],
    ids=str,
)
@pytest.mark.parametrize('dtype', [F64, torch.float32], ids=str)
def test_sophia_equals_optax(options: dict[str, Any], dtype: torch.dtype) -> None:
    """On a diagonal Hessian the estimate is exact, whatever the signs are."""
    tolerance = 1e-8 if dtype is F64 else 1e-5
    ours, theirs = contrib.sophia(0.05, **options), optax.contrib.sophia(0.05, **options)
    p = [x.to(dtype) for x in EACH]
    q = to_jax(p)
    state, their_state = ours.init(p), theirs.init(q)
    update = jax.jit(lambda g, s, q: theirs.update(g, s, q, obj_fn=quartic))
    for _ in range(20):
        updates, state = ours.update(quartic_gradient(p), state, p, obj_fn=quartic)
        their_updates, their_state = update(quartic_gradient(q), their_state, q)
        p = torchopt.apply_updates(p, updates)
        q = [x + u for x, u in zip(q, their_updates)]
    assert_trees_close(p, q, tolerance)
    found, wanted = entries(state), entries(their_state)
    assert found.keys() == wanted.keys()
    for name in found.keys() - {'hessian_fn_state.key'}:
        assert_trees_close(found[name], wanted[name], tolerance)


def test_sophia_in_place_and_saved() -> None:
    tx = contrib.sophia(0.05, update_interval=2)
    p = [x.clone() for x in EACH]
    state, again = tx.init(p), pickle.loads(pickle.dumps(tx)).init(p)
    for _ in range(4):
        updates, state = tx.update(quartic_gradient(p), state, p, obj_fn=quartic)
        written, again = tx.update(quartic_gradient(p), again, p, obj_fn=quartic, inplace=True)
        assert_trees_close(written, updates, 1e-14)
        p = torchopt.apply_updates(p, updates)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(map(torch.equal, tree.leaves(loaded), tree.leaves(state)))


def test_sophia_under_transforms() -> None:
    tx = contrib.sophia(0.05, update_interval=2, gamma=0.5)

    def run(x: torch.Tensor) -> torch.Tensor:
        p = [x]
        state = tx.init(p)
        for _ in range(3):
            updates, state = tx.update(quartic_gradient(p), state, p, obj_fn=quartic)
            p = torchopt.apply_updates(p, updates, inplace=False)
        return p[0]

    both = torch.stack([EACH[0], EACH[0].flip(0)])
    together = torch.func.vmap(run)(both)
    assert_trees_close([together[0], together[1]], [run(both[0]), run(both[1])], 1e-10)
    torch.compiler.reset()
    p = [EACH[0]]
    state = tx.init(p)
    step = torch.compile(lambda g, s, p: tx.update(g, s, p, obj_fn=quartic), fullgraph=True, backend='eager')
    found, _ = step(quartic_gradient(p), state, p)
    assert_trees_close(found, tx.update(quartic_gradient(p), state, p, obj_fn=quartic)[0], 1e-10)


def test_sophia_says_how_much_it_clips(capsys: pytest.CaptureFixture[str]) -> None:
    tx = contrib.sophia(0.05, verbose=True, print_win_rate_every_n_steps=2)
    p = [torch.ones(2)]
    state = tx.init(p)
    for _ in range(4):
        _, state = tx.update(p, state, p, obj_fn=quartic)
    assert capsys.readouterr().out.count('not clipped') == 2
    with pytest.raises(ValueError, match='print_win_rate_every_n_steps'):
        contrib.sophia(0.05, verbose=True)


def test_sophia_asks_before_it_writes() -> None:
    tx = contrib.sophia(0.05)
    p = [torch.ones(2)]
    state = tx.init(p)
    with pytest.raises(TypeError, match='obj_fn'):
        tx.update(p, state, p, inplace=True)
    assert all(not x.any() for x in tree.leaves(state))
    with pytest.raises(ValueError, match='Parameters are required'):
        tx.update(p, state, obj_fn=quartic)


def test_hutchinson_is_right_on_average() -> None:
    """The mean of many estimates is the diagonal; each is r * (H r) with signs r."""
    tx = contrib.hutchinson_estimator_diag_hessian(3)
    p = [x.float().double() for x in EACH]
    flat = torch.cat([x.reshape(-1) for x in p])

    def of_vector(x: torch.Tensor) -> torch.Tensor:
        return mixing([x[:3], x[3:].reshape(2, 1)])

    hessian = torch.func.hessian(of_vector)(flat)
    state, total, seen = tx.init(p), torch.zeros(5, dtype=F64), set()
    n = 400
    for _ in range(n):
        estimate, state = tx.update(p, state, p, obj_fn=mixing)
        own = torch.cat([x.reshape(-1) for x in estimate])
        total += own / n
        seen.add(tuple(own.tolist()))
    spread = (hessian.square().sum(0) - hessian.diagonal().square()).sqrt() / n**0.5
    assert ((total - hessian.diagonal()).abs() < 5 * spread).all()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 5)
    possible = signs * (signs @ hessian)
    assert len(seen) > 10
    for own in seen:
        assert (possible - torch.tensor(own, dtype=F64)).abs().sum(1).min() < 1e-9


def test_hutchinson_follows_from_its_key() -> None:
    p = EACH

    def first(seed: Any) -> list[torch.Tensor]:
        tx = contrib.hutchinson_estimator_diag_hessian(seed)
        return tx.update(p, tx.init(p), p, obj_fn=mixing)[0]

    torch.manual_seed(0)
    once = first(7)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert all(map(torch.equal, once, first(7)))
    assert torch.equal(before, torch.get_rng_state())
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.cat([x.reshape(-1) for x in first(generator)]) for _ in range(4)]
    assert any(not torch.equal(drawn[0], x) for x in drawn[1:])
    with pytest.raises(TypeError, match='key'):
        contrib.hutchinson_estimator_diag_hessian(0.5)


def test_hutchinson_leaves_out_what_has_no_gradient() -> None:
    tx = contrib.hutchinson_estimator_diag_hessian()
    estimate, _ = tx.update([EACH[0], None], tx.init(EACH), EACH, obj_fn=quartic)
    assert estimate[1] is None
    torch.testing.assert_close(estimate[0], (12 * EACH[0] ** 2 + 2) / 2)
