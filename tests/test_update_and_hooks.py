# SPDX-License-Identifier: Apache-2.0
"""apply_updates treats each parameter as its role demands; hooks see the gradients that flow back."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import torchopt
from torchopt import hook


def test_a_weight_in_plain_training_is_updated_in_place():
    net = nn.Linear(2, 1)
    params, version = list(net.parameters()), net.weight._version
    new = torchopt.apply_updates(params, [torch.ones_like(p) for p in params])
    assert new[0] is net.weight
    assert net.weight._version > version
    assert net.weight.is_leaf


@pytest.mark.parametrize('alias', ['sgd', 'adam', 'adamw', 'rmsprop'])
def test_a_plain_loop_trains_the_module_and_grows_no_graph(alias):
    """Also with weight decay, which reads the parameters themselves."""
    torch.manual_seed(0)
    net, x = nn.Linear(3, 1), torch.randn(16, 3)
    tx = getattr(torchopt, alias)(0.05, weight_decay=0.01)
    params = dict(net.named_parameters())
    state, losses = tx.init(params), []
    for _ in range(20):
        loss = (functional_call(net, params, (x,)) - x.sum(1, keepdim=True)).square().mean()
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values()))))
        updates, state = tx.update(grads, state, params)
        assert not any(u.requires_grad for u in updates.values())
        params = torchopt.apply_updates(params, updates)
        losses.append(loss.item())
    assert params['weight'] is net.weight
    assert losses[-1] < losses[0]


def test_all_other_parameters_are_added_out_of_place():
    leaf = torch.ones(2, requires_grad=True)
    update = (leaf * 2).detach().requires_grad_() * 1.0
    assert torchopt.apply_updates([leaf], [update])[0] is not leaf
    plain = torch.ones(2)
    assert torchopt.apply_updates([plain], [torch.ones(2)])[0] is not plain
    assert torch.equal(plain, torch.ones(2))
    inner = leaf * 1.0
    assert torchopt.apply_updates([inner], [torch.ones(2)])[0].grad_fn is not None


def test_nothing_is_mutated_under_a_transform():
    leaf = torch.ones(3, requires_grad=True)
    vmap(lambda u: torchopt.apply_updates([leaf], [u])[0])(torch.ones(2, 3))
    grad(lambda u: torchopt.apply_updates([leaf], [u])[0].sum())(torch.ones(3))
    assert torch.equal(leaf, torch.ones(3))


def test_the_choice_can_be_forced():
    leaf, plain = torch.ones(2, requires_grad=True), torch.ones(2)
    new = torchopt.apply_updates([leaf], [torch.ones(2)], inplace=False)[0]
    assert new is not leaf
    assert new.requires_grad
    assert torchopt.apply_updates([plain], [torch.ones(2)], inplace=True)[0] is plain
    assert torch.equal(plain, torch.full((2,), 2.0))


def test_none_and_dtypes():
    p = {'a': torch.ones(2, dtype=torch.bfloat16), 'b': torch.ones(1), 'c': None}
    new = torchopt.apply_updates(p, {'a': torch.ones(2), 'b': None, 'c': None})
    assert new['a'].dtype is torch.bfloat16
    assert new['b'] is p['b']
    assert new['c'] is None


@pytest.mark.parametrize('inplace', [None, True, False])
@pytest.mark.parametrize(
    ('params', 'updates', 'error', 'message'),
    [
        ({'a': torch.ones(2)}, {'b': torch.ones(2)}, ValueError, "updates['a']"),
        ({'a': torch.ones(2)}, {'a': torch.ones(3)}, ValueError, "updates['a'] and params['a']"),
        ([torch.ones(1), torch.ones(2)], [torch.ones(1), torch.ones(1)], ValueError, 'updates[1]'),
        ([torch.ones(2, dtype=torch.int64)], [torch.ones(2)], TypeError, 'params[0] has dtype torch.int64'),
        ([torch.ones(2)], [torch.ones(2, dtype=torch.complex64)], TypeError, 'updates[0] is complex'),
        ([None], [torch.ones(2)], ValueError, 'params[0] is None'),
        ([torch.ones(2)], [1.0], ValueError, 'updates[0]'),
    ],
)
def test_misfits_are_named_and_change_nothing(params, updates, error, message, inplace):
    leaves = params.values() if isinstance(params, dict) else params
    before = [p.clone() for p in leaves if p is not None]
    with pytest.raises(error) as caught:
        torchopt.apply_updates(params, updates, inplace=inplace)
    assert message in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, [p for p in leaves if p is not None]))


def test_register_hook_registers_it():
    g = torch.zeros(2, requires_grad=True) * 1.0
    tx = torchopt.register_hook(hook.zero_nan_hook)
    updates, state = tx.update([g], None)
    assert updates[0] is g
    assert state is None
    assert next(iter(g._backward_hooks.values())) is hook.zero_nan_hook
    with pytest.raises(RuntimeError):
        tx.update([torch.zeros(2)], None)


def test_hooks_replace_what_is_not_a_number():
    bad = torch.tensor([float('nan'), float('inf'), -float('inf'), 1.0])
    assert hook.zero_nan_hook(bad)[0] == 0.0
    replaced = pickle.loads(pickle.dumps(hook.nan_to_num_hook(1.0, 2.0, 3.0)))(bad)
    assert torch.equal(replaced, torch.tensor([1.0, 2.0, 3.0, 1.0]))
    torch.testing.assert_close(hook.nan_to_num_hook()(bad), bad.nan_to_num())


def test_nan_to_num_works_on_a_bare_tensor():
    tx = torchopt.nan_to_num(nan=5.0)
    g = torch.tensor([float('nan'), 1.0])
    updates, state = tx.update(g, None)
    assert torch.equal(updates, torch.tensor([5.0, 1.0]))
    assert state is None
    assert g[0].isnan()
