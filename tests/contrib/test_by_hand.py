# SPDX-License-Identifier: Apache-2.0
"""Methods against their equations, written by hand, where Optax has no twin or fewer digits."""

from __future__ import annotations

import math
from typing import Any

import optax
import pytest
import torch

import torchopt
from tests.cases import mixed_tree
from tests.contrib.contrib_cases import EACH, quartic_gradient
from tests.oracle import assert_trees_close, to_jax
from torchopt import contrib, transform, tree

F64 = torch.float64


def test_cautious_is_what_the_paper_says() -> None:
    """Against a loop written by hand, for AdamW's step and for momentum."""
    p = mixed_tree(F64)
    tx = torchopt.chain(contrib.cautious(torchopt.adam(0.1)), transform.add_decayed_weights(0.0))
    state = tx.init(p)
    leaves, spec = tree.flatten(p)
    mine = [x.clone() for x in leaves]
    m, v = [torch.zeros_like(x) for x in leaves], [torch.zeros_like(x) for x in leaves]
    for t in range(1, 21):
        g = tree.map(lambda x, t=t: torch.cos(3.0 * x + t), p)
        u, state = tx.update(g, state, p)
        p = torchopt.apply_updates(p, u)
        for i, own in enumerate(tree.leaves(g)):
            m[i] = 0.9 * m[i] + 0.1 * own
            v[i] = 0.999 * v[i] + 0.001 * own**2
            step = (m[i] / (1 - 0.9**t)) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8)
            agree = (step * own > 0).to(F64)
            share = max(float(agree.mean()) if agree.numel() else 0.0, 1e-3)
            mine[i] = mine[i] - 0.1 * step * agree / share
    assert_trees_close(p, tree.unflatten(spec, mine), 1e-10)


def test_cautious_never_climbs() -> None:
    tx = contrib.cautious(torchopt.sgd(0.1, momentum=0.95))
    state = tx.init([torch.zeros(50)])
    for step in range(10):
        g = torch.cos(torch.arange(50) * (step + 1.0))
        (u,), state = tx.update([g], state)
        assert (u * g <= 0).all()


def test_galore_in_double_precision() -> None:
    """Against the equations, to more digits than Optax's singular vectors have, which are of float32."""
    torch.manual_seed(0)
    p = torch.randn(6, 4, dtype=F64)
    tx = contrib.scale_by_galore(rank=2, update_proj_gap=3, scale=0.25, base_optimizer=transform.trace(0.9))
    state = tx.init([p])
    low = torch.zeros(2, 4, dtype=F64)
    basis = torch.zeros(6, 2, dtype=F64)
    for step in range(7):
        g = torch.randn(6, 4, dtype=F64)
        if step % 3 == 0:
            basis = torch.linalg.svd(g)[0][:, :2]
        low = 0.9 * low + basis.T @ g
        (u,), state = tx.update([g], state)
        torch.testing.assert_close(u, 0.25 * basis @ low, rtol=1e-10, atol=1e-12)
    assert state.projector[0].shape == (6, 2)


def test_muon_orthogonalizes_each_matrix_of_a_batch() -> None:
    axes = contrib.MuonDimensionNumbers(reduction_axis=(0, 3), output_axis=2)
    tx = contrib.scale_by_muon((1.5, -0.5, 0.0), 40, nesterov=False, weight_dimension_numbers=axes)
    g = torch.randn(2, 5, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    (u,), _ = tx.update([g], tx.init([g]))
    for i in range(5):
        matrix = g[:, i].permute(0, 2, 1).reshape(8, 3)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close(u[:, i].permute(0, 2, 1).reshape(8, 3), left @ right)


def test_estimates_survive_gradients_of_zero() -> None:
    """Optax divides zero by zero, and its estimate is NaN ever after."""
    for tx in (contrib.dadapt_adamw(), contrib.prodigy(), contrib.normalize(), contrib.dowg(), contrib.dog()):
        p = [torch.ones(2)]
        state = tx.init(p)
        for g in (torch.zeros(2), torch.ones(2)):
            u, state = tx.update([g], state, p)
        assert all(x.isfinite().all() for x in [*u, *tree.leaves(state)])


def test_schedule_free_parameters_for_evaluation_are_optaxs() -> None:
    ours, theirs = contrib.schedule_free_adamw(0.1), optax.contrib.schedule_free_adamw(0.1)
    p = [x.clone() for x in EACH]
    q = to_jax(p)
    state, their_state = ours.init(p), theirs.init(q)
    for _ in range(5):
        u, state = ours.update(quartic_gradient(p), state, p)
        v, their_state = theirs.update(quartic_gradient(q), their_state, q)
        p, q = [x + y for x, y in zip(p, u)], [x + y for x, y in zip(q, v)]
    found = contrib.schedule_free_eval_params(state, p)
    assert_trees_close(found, optax.contrib.schedule_free_eval_params(their_state, q), 1e-9)
    with pytest.raises(ValueError, match='ScheduleFreeState'):
        contrib.schedule_free_eval_params(torchopt.adam().init(p), p)


def test_schedule_free_averages() -> None:
    """With a constant rate the result is the plain average of the iterates."""
    tx = contrib.schedule_free(torchopt.sgd(0.1), 0.1, b1=0.7)
    y, z, seen = EACH[0], EACH[0], []
    state = tx.init([y])
    for _ in range(6):
        g = quartic_gradient([y])[0]
        z = z - 0.1 * g
        seen.append(z)
        (u,), state = tx.update([g], state, [y])
        y = y + u
    torch.testing.assert_close(state.z[0], z)
    torch.testing.assert_close(contrib.schedule_free_eval_params(state, [y])[0], torch.stack(seen).mean(0))


@pytest.mark.parametrize('as_tensor', [False, True])
def test_prodigy_decays_what_its_mask_says(as_tensor: bool) -> None:
    """Each parameter moves as in the whole that decays, or in that which does not."""
    p = {'w': torch.tensor([1.0, -2.0]), 'b': {'x': torch.tensor(0.5), 'y': None}, 'n': torch.tensor(math.nan)}
    g = {'w': torch.tensor([0.3, 0.1]), 'b': {'x': torch.tensor(-0.2), 'y': None}, 'n': None}

    def step(weight_decay: float, **options: Any) -> Any:
        tx = contrib.prodigy(estim_lr0=0.1, weight_decay=weight_decay, **options)
        return tx.update(g, tx.init(p), p)[0]

    yes, no = (torch.tensor(True), torch.tensor(False)) if as_tensor else (True, False)
    decayed, plain = step(0.5), step(0.0)
    assert not torch.equal(decayed['w'], plain['w'])
    masks = [{'w': yes, 'b': no, 'n': yes}, lambda params: {'w': yes, 'b': no, 'n': yes}]
    for mask in masks:
        found = step(0.5, weight_decay_mask=mask)
        assert torch.equal(found['w'], decayed['w'])
        assert torch.equal(found['b']['x'], plain['b']['x'])
    with pytest.raises(TypeError, match=r"mask\['w'\] is 1 of type int"):
        step(0.5, weight_decay_mask={'w': 1, 'b': no, 'n': no})


def test_adabelief_decays_decoupled() -> None:
    """As AdaBelief, decay and learning rate in a chain; none by default."""
    p, g = (
        {'w': torch.tensor([1.0, -2.0]), 'b': torch.tensor(3.0)},
        {'w': torch.tensor([0.3, 0.1]), 'b': torch.ones(())},
    )
    tx = torchopt.adabelief(0.1, weight_decay=0.5, weight_decay_mask={'w': True, 'b': False})
    updates, _ = tx.update(g, tx.init(p), p)
    plain = torchopt.adabelief(0.1)
    wanted, _ = plain.update(g, plain.init(p))
    torch.testing.assert_close(updates['w'], wanted['w'] - 0.05 * p['w'])
    assert torch.equal(updates['b'], wanted['b'])


def test_dpsgd_takes_a_key_or_a_seed() -> None:
    g, p = [torch.ones(2, 3)], [torch.zeros(3)]
    by_key, by_seed = (contrib.dpsgd(0.1, 1.0, 1.0, **{name: 3}) for name in ('key', 'seed'))
    assert torch.equal(by_key.update(g, by_key.init(p))[0][0], by_seed.update(g, by_seed.init(p))[0][0])
    for given in ({}, {'key': 0, 'seed': 0}):
        with pytest.raises(TypeError, match=r'dpsgd got key=.* and seed=.* Pass key only'):
            contrib.dpsgd(0.1, 1.0, 1.0, **given)
