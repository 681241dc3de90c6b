# SPDX-License-Identifier: Apache-2.0
"""Masks and partitions."""

from __future__ import annotations

import numpy as np
import optax
import pytest
import torch

import torchopt
from tests.oracle import assert_trees_close, to_jax
from torchopt import tree
from torchopt.transform import MaskedNode, masked, partition, scale, scale_by_adam

G = {
    'a': {'w': torch.tensor([1.0, 2.0], dtype=torch.float64), 'b': torch.tensor(3.0, dtype=torch.float64)},
    'c': [torch.tensor(4.0, dtype=torch.float64)],
}

MASKS = [{'a': {'w': True, 'b': False}, 'c': [True]}, {'a': True, 'c': False}, {'a': False, 'c': [True]}, True, False]


@pytest.mark.parametrize('mask', MASKS, ids=str)
def test_masked_equals_optax(mask):
    ours, theirs = masked(scale_by_adam(), mask), optax.masked(optax.scale_by_adam(), mask)
    state, their_state = ours.init(G), theirs.init(to_jax(G))
    for _ in range(3):
        updates, state = ours.update(G, state)
        wanted, their_state = theirs.update(to_jax(G), their_state)
    assert_trees_close(updates, wanted, 1e-12)
    if tree.leaves(state.inner_state.mu):
        assert_trees_close(state.inner_state.mu, their_state.inner_state.mu, 1e-12)


def test_hidden_leaves_pass_as_the_same_tensors():
    tx = masked(scale(2.0), {'a': {'w': True, 'b': False}, 'c': False})
    updates, _ = tx.update(G, tx.init(G))
    assert updates['a']['b'] is G['a']['b']
    assert updates['c'][0] is G['c'][0]
    assert masked(scale_by_adam(), {'a': False, 'c': True}).init(G).inner_state.mu['a'] == MaskedNode()


def test_no_mask_means_everywhere():
    tx = masked(scale(2.0))
    updates, _ = tx.update(G, tx.init(G))
    assert_trees_close(updates, tree.map(lambda g: 2 * g, G), 1e-15)


@pytest.mark.parametrize('boolean', [True, np.bool_(True), torch.tensor(True)], ids=lambda b: type(b).__name__)
def test_booleans_of_every_kind(boolean):
    tx = masked(scale(2.0), {'a': boolean, 'c': False})
    assert tx.update(G, tx.init(G))[0]['a']['b'] == 6.0


def test_callable_mask_with_none_gradients():
    """The mask is made from the parameters, so that a missing gradient does not move it."""
    tx = torchopt.adamw(0.1, mask=lambda params: tree.map(lambda p: p.dim() > 0, params))
    state = tx.init(G)
    _, state = tx.update(G, state, G)
    updates, state = tx.update({'a': {'w': None, 'b': G['a']['b']}, 'c': G['c']}, state, G)
    assert updates['a']['w'] is None
    updates, _ = tx.update(G, state, G)
    assert updates['a']['w'].isfinite().all()


@pytest.mark.parametrize('mask', [{'w': True, 'b': False}, lambda params: {'w': True, 'b': False}])
def test_adamw_decays_only_what_the_mask_names(mask):
    params = {'w': torch.tensor(2.0), 'b': torch.tensor(2.0)}
    grads = {'w': torch.tensor(1.0), 'b': torch.tensor(1.0)}
    tx = torchopt.adamw(0.1, weight_decay=0.5, mask=mask)
    updates, _ = tx.update(grads, tx.init(params), params)
    torch.testing.assert_close(updates, {'w': torch.tensor(-0.2), 'b': torch.tensor(-0.1)})


def test_masked_arguments_reach_the_inner_transformation():
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra, params=params)
        return updates, state

    inner = torchopt.base.GradientTransformationExtraArgs(torchopt.base.init_empty_state, update)
    tx = masked(inner, {'a': False, 'c': True}, mask_compatible_extra_args=True)
    tx.update(G, tx.init(G), G, like_params=G, value=1.0)
    assert seen['like_params']['a'] == MaskedNode()
    assert seen['params']['a'] == MaskedNode()
    assert seen['value'] == 1.0


LABELS = [
    {'a': {'w': 'adam', 'b': 'sgd'}, 'c': ['sgd']},
    {'a': 'adam', 'c': 'sgd'},
    lambda params: {'a': 'sgd', 'c': 'sgd'},
]


@pytest.mark.parametrize('labels', LABELS, ids=['leaves', 'prefix', 'function'])
def test_partition_equals_optax(labels):
    ours = partition({'adam': torchopt.adam(0.1), 'sgd': torchopt.sgd(0.5)}, labels)
    theirs = optax.partition({'adam': optax.adam(0.1), 'sgd': optax.sgd(0.5)}, labels)
    state, their_state = ours.init(G), theirs.init(to_jax(G))
    for _ in range(3):
        updates, state = ours.update(G, state, G)
        wanted, their_state = theirs.update(to_jax(G), their_state, to_jax(G))
    assert_trees_close(updates, wanted, 1e-12)
    assert set(state.inner_states) == set(their_state.inner_states)


@pytest.mark.parametrize(
    ('tx', 'error', 'message'),
    [
        (masked(scale(1.0), {'a': True}), ValueError, "['c']"),
        (masked(scale(1.0), {'a': 1, 'c': True}), TypeError, "mask['a'] is 1 of type int"),
        (partition({'x': scale(1.0)}, {'a': 'x', 'c': 'y'}), ValueError, "param_labels['c'] is 'y'"),
        (partition({'x': scale(1.0)}, {'a': 'x'}), ValueError, "['c']"),
    ],
)
def test_misuse(tx, error, message):
    with pytest.raises(error) as caught:
        tx.init(G)
    assert message in str(caught.value)
