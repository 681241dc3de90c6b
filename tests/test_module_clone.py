# SPDX-License-Identifier: Apache-2.0
"""Cloning modules, optimizers and trees of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchopt
from tests.module_cases import (
    Borrower,
    Mixed,
    Tied,
    check_replica,
    each_by,
    each_kind,
    each_optimizer,
    loss_of,
    mixed_state,
    optimizer_tensors,
    pattern,
    same,
    saved,
    slots,
    step,
    take_a_step,
)


@each_by
@each_kind
@pytest.mark.parametrize('stepped', [False, True], ids=['fresh', 'after a step'])
def test_clone_of_a_module(make, by, stepped):
    module = make()
    if stepped:
        take_a_step(module)
    twin = torchopt.module_clone(module, by=by)
    assert type(twin) is type(module)
    originals = {id(part) for part in module.modules()}
    for part in twin.modules():
        assert id(part) not in originals
    for ours, theirs in zip(module.modules(), twin.modules(), strict=True):
        for kind in ('_parameters', '_buffers', '_modules'):
            assert getattr(ours, kind) is not getattr(theirs, kind)
            assert list(getattr(ours, kind)) == list(getattr(theirs, kind))
    for original, replica in zip(slots(module), slots(twin), strict=True):
        check_replica(by, original, replica)
    assert pattern(slots(module)) == pattern(slots(twin))


@each_by
def test_clone_keeps_meta_members_and_attributes(by):
    module = Borrower(nn.Linear(2, 3), torch.ones((), requires_grad=True) * 2)
    take_a_step(module.backbone)
    module.cache.append(module.penalty * 3)  # copy.deepcopy refuses tensors with a graph
    twin = torchopt.module_clone(module, by=by)
    ours, theirs = dict(module.named_meta_parameters()), dict(twin.named_meta_parameters())
    assert list(ours) == list(theirs) == ['penalty', 'backbone.weight', 'backbone.bias']
    for name, original in ours.items():
        check_replica(by, original, theirs[name])
    for original, replica in zip(module.cache, twin.cache, strict=True):
        check_replica(by, original, replica)
    assert twin.cache is not module.cache
    assert twin.backbone is not module.backbone
    twin.again = twin.penalty
    assert 'again' in twin._meta_parameters


def test_clone_with_detached_buffers():
    module = nn.BatchNorm1d(2)
    twin = torchopt.module_clone(module, by='reference', detach_buffers=True)
    assert twin.weight is module.weight
    assert twin.running_mean is not module.running_mean
    twin(torch.randn(4, 2))
    assert module.num_batches_tracked == 0
    assert twin.num_batches_tracked == 1


@each_by
@each_kind
def test_clone_to_meta_device(make, by):
    twin = torchopt.module_clone(make(), by=by, device='meta')
    assert all(tensor.device.type == 'meta' for tensor in slots(twin))
    assert pattern(slots(twin)) == pattern(slots(make()))


@each_by
def test_clone_of_a_recurrent_module_computes_the_same(by):
    torch.manual_seed(0)
    module = nn.LSTM(2, 3)
    twin = torchopt.module_clone(module, by=by)
    x = torch.randn(4, 1, 2)
    assert torch.equal(module(x)[0], twin(x)[0])


@each_by
@each_optimizer
def test_clone_of_an_optimizer(optimizer_of, by):
    net = nn.Linear(2, 1)
    optimizer = optimizer_of(net)
    step(optimizer, net)
    twin = torchopt.module_clone(optimizer, by=by)
    assert twin is not optimizer
    assert twin.state_groups is not optimizer.state_groups
    for original, replica in zip(optimizer_tensors(optimizer), optimizer_tensors(twin), strict=True):
        if original.is_floating_point():
            check_replica(by, original, replica)


@each_by
def test_clones_made_together_stay_together(by):
    net = Tied()
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    step(optimizer, net)
    twins = torchopt.module_clone({'net': net, 'optimizer': optimizer}, by=by)
    theirs = twins['net']
    values = [tensor.detach().clone() for tensor in slots(net)]
    step(twins['optimizer'], theirs)
    step(optimizer, net)
    assert all(torch.equal(*pair) for pair in zip(slots(net), slots(theirs), strict=True))
    assert not torch.equal(slots(net)[0], values[0])
    assert theirs.encode.weight is theirs.decode.weight


@each_by
def test_clone_of_a_tree(by):
    w = torch.ones(2, requires_grad=True)
    target = {'w': w, 'again': (w, None, 3, 'x'), 'state': mixed_state()}
    twin = torchopt.module_clone(target, by=by)
    check_replica(by, w, twin['w'])
    assert twin['again'][0] is twin['w']
    assert twin['again'][1:] == (None, 3, 'x')
    assert type(twin['state']) is Mixed
    assert torch.equal(twin['state'].moment['w'], target['state'].moment['w'])


@each_by
@each_kind
def test_clone_of_a_state(make, by):
    module = make()
    state = torchopt.extract_state_dict(module, enable_visual=True)
    twin = torchopt.module_clone([state, module], by=by)[0]
    assert type(twin) is type(state)
    assert twin.visual_contents == state.visual_contents
    for original, replica in zip(saved(state), saved(twin), strict=True):
        check_replica(by, original, replica)
    assert pattern(saved(twin)) == pattern(saved(state))
    torchopt.recover_state_dict(module, twin)


def test_training_a_clone_does_not_touch_the_original():
    net = nn.Linear(2, 1)
    twin = torchopt.module_clone(net, by='reference')
    before = slots(net)
    optimizer = torchopt.MetaSGD(twin, lr=0.1)
    step(optimizer, twin)
    assert same(slots(net), before)
    (grad,) = torch.autograd.grad(loss_of(twin), net.weight)
    torch.testing.assert_close(grad, 2 * 0.8 * 0.8 * net.weight)  # loss = |0.8 w|^2
