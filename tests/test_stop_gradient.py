# SPDX-License-Identifier: Apache-2.0
"""Cutting modules, states, optimizers and trees loose from their graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchopt
from tests.module_cases import (
    Borrower,
    Tied,
    each_kind,
    each_optimizer,
    optimizer_tensors,
    same,
    saved,
    slots,
    step,
    take_a_step,
)


@each_kind
def test_stop_gradient_of_a_module(make):
    module = make()
    take_a_step(module)
    before = slots(module)
    requires_grad = [tensor.requires_grad for tensor in before]
    values = [tensor.detach().clone() for tensor in before]
    assert torchopt.stop_gradient(module) is None
    assert same(slots(module), before)  # in place
    assert all(tensor.grad_fn is None for tensor in before)
    assert [tensor.requires_grad for tensor in before] == requires_grad
    assert all(torch.equal(*pair) for pair in zip(before, values, strict=True))


def test_stop_gradient_leaves_buffers_and_meta_members_alone():
    phi = torch.ones((), requires_grad=True) * 2
    module = Borrower(nn.Linear(2, 3), phi)
    module.register_buffer('learned', phi * 3)
    take_a_step(module.backbone)
    take_a_step(module.head)
    torchopt.stop_gradient(module)
    assert module.head.weight.grad_fn is None
    assert phi.grad_fn is not None
    assert module.learned.grad_fn is not None
    assert module.backbone.weight.grad_fn is not None


def test_stop_gradient_of_a_state():
    module = nn.BatchNorm1d(2)
    take_a_step(module)
    module.running_mean = module.weight * 2
    state = torchopt.extract_state_dict(module)
    torchopt.stop_gradient(state)
    assert all(tensor.grad_fn is None for tensor in saved(state))
    assert state.buffers[0]['running_mean'].requires_grad
    assert not state.buffers[0]['running_var'].requires_grad


@each_optimizer
def test_stop_gradient_of_an_optimizer(optimizer_of):
    net = nn.Linear(2, 1)
    optimizer = optimizer_of(net)
    torchopt.stop_gradient(optimizer)
    step(optimizer, net)
    tensors = optimizer_tensors(optimizer)
    requires_grad = [tensor.requires_grad for tensor in tensors]
    torchopt.stop_gradient(optimizer)
    assert same(optimizer_tensors(optimizer), tensors)
    assert all(tensor.grad_fn is None for tensor in tensors)
    assert [tensor.requires_grad for tensor in tensors] == requires_grad


def test_stop_gradient_of_a_tree():
    net = nn.Linear(2, 1)
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    step(optimizer, net)
    state = torchopt.extract_state_dict(net, by='copy', enable_visual=True)
    w = torch.ones(2, requires_grad=True)
    target = {'net': net, 'rest': [optimizer, (state, None, 3, 'x', w * 2)], 'leaf': w}
    torchopt.stop_gradient(target)
    assert target['rest'][1][4].grad_fn is None
    assert target['rest'][1][4].requires_grad
    assert w.requires_grad
    for tensor in [*net.parameters(), *optimizer_tensors(optimizer), *saved(state)]:
        assert tensor.grad_fn is None


def test_stop_gradient_replaces_views_in_modules_and_states():
    flat = torch.arange(8.0, requires_grad=True) * 1
    module = Tied()
    module.encode._parameters['weight'] = flat[:3].expand(3, 3)
    module.decode._parameters['weight'] = module.encode.weight
    module.decode._parameters['bias'] = flat[3:6]
    state = torchopt.extract_state_dict(module)
    for target, places in ((module, lambda: list(module.parameters())), (state, lambda: saved(state)[:3])):
        values = [tensor.detach().clone() for tensor in places()]
        assert all(tensor.grad_fn is not None for tensor in places())
        torchopt.stop_gradient(target)
        assert all(tensor.is_leaf and tensor.requires_grad for tensor in places())
        assert all(torch.equal(*pair) for pair in zip(places(), values, strict=True))
    assert module.encode.weight is module.decode.weight
    assert state.params[0]['weight'] is state.params[1]['weight']


def test_stop_gradient_names_a_view_that_it_cannot_detach():
    w = torch.ones(4, requires_grad=True) * 1
    first = w * 2
    target = {'a': first, 'b': [None, w[:2]]}
    with pytest.raises(ValueError, match=r"target\['b'\]\[1\]: this tensor is a view of another"):
        torchopt.stop_gradient(target)
    assert first.grad_fn is not None  # nothing was detached
    constant = torch.ones(4)[:2]
    torchopt.stop_gradient([constant])  # a view without a graph is no obstacle
    with pytest.raises(ValueError, match=r'target: this tensor is a view'):
        torchopt.stop_gradient(w[:2])


def test_module_detach_returns_its_argument():
    net = nn.Linear(2, 1)
    take_a_step(net)
    assert torchopt.module_detach_(net) is net
    assert net.weight.grad_fn is None
