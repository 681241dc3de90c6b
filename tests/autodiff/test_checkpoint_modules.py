# SPDX-License-Identifier: Apache-2.0
"""Recomputed functions that make modules, or put tensors into them, and results of another structure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from tests.autodiff.test_checkpoint import DOUBLE, MODES, leaf, second
from tests.oracle import assert_trees_close


def with_a_new_layer(x: torch.Tensor) -> torch.Tensor:
    layer = nn.Linear(2, 1, bias=False, dtype=DOUBLE)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
    return (x.sum() * layer(torch.ones(1, 2, dtype=DOUBLE))).square().sum()


OPPONENT = nn.Linear(2, 1, dtype=DOUBLE)


def with_a_copy(x: torch.Tensor) -> torch.Tensor:
    """One step of gradient descent for a copy of a module, as in learning with opponents."""
    other = copy.deepcopy(OPPONENT)
    data = torch.ones(1, 2, dtype=DOUBLE)
    params = dict(other.named_parameters())
    found = torch.autograd.grad((x.sum() * other(data)).square().sum(), list(params.values()), create_graph=True)
    new = {name: p - 0.1 * g for (name, p), g in zip(params.items(), found, strict=True)}
    return (torch.func.functional_call(other, new, (data,)) * x.sum()).square().sum()


def with_an_inner_loop(x: torch.Tensor) -> torch.Tensor:
    net = nn.Linear(2, 1, bias=False, dtype=DOUBLE)
    nn.init.constant_(net.weight, 0.5)
    optimizer = torchopt.MetaSGD(net, lr=x.sum())
    for _ in range(2):
        optimizer.step(lambda: net(torch.ones(1, 2, dtype=DOUBLE)).square().sum())
    return net(torch.ones(1, 2, dtype=DOUBLE)).square().sum()


@pytest.mark.parametrize('fun', [with_a_new_layer, with_a_copy, with_an_inner_loop])
def test_modules_made_inside(fun: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Modes do not intercept the constructor of a parameter, which is no tensor from outside nevertheless."""
    x = torch.tensor([0.1, 0.2], dtype=DOUBLE, requires_grad=True)
    (expected,) = torch.autograd.grad(fun(x), x)
    assert_trees_close(torch.autograd.grad(torchopt.checkpoint(fun)(x), x)[0], expected, 1e-12)
    for mode in MODES:
        assert_trees_close(second(fun, mode, x), second(fun, None, x), 1e-10)
    if fun is with_a_new_layer:  # the others call torch.autograd.grad
        assert_trees_close(torch.func.grad(torchopt.checkpoint(fun))(x.detach()), expected, 1e-12)


def test_a_parameter_from_outside_in_a_module_made_inside() -> None:
    shared = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=DOUBLE))

    def fun(x: torch.Tensor) -> torch.Tensor:
        layer = nn.Linear(2, 1, bias=False, dtype=DOUBLE)
        layer.weight = shared
        return (x.sum() * layer(torch.ones(1, 2, dtype=DOUBLE))).sin().sum()

    x = torch.tensor([0.1, 0.2], dtype=DOUBLE, requires_grad=True)
    expected = torch.autograd.grad(fun(x), (x, shared))
    assert_trees_close(torch.autograd.grad(torchopt.checkpoint(fun)(x), (x, shared)), expected, 1e-12)


@pytest.mark.parametrize('of_tensors', [lambda y: [y, 1.0], lambda y: [1.0, y]])
def test_another_number_of_results_is_refused(of_tensors: Callable[[torch.Tensor], Any]) -> None:
    """Cotangents would be paired with other results."""
    runs = iter(range(10))

    def fun(x: torch.Tensor) -> Any:
        return of_tensors(x.sin()) if next(runs) % 2 else [x.sin(), x.cos()]

    x = leaf(3)
    first = torchopt.checkpoint(fun)(x)[0]
    with pytest.raises(RuntimeError, match='tensors when it is recomputed'):
        torch.autograd.grad(first.sum(), x)


def test_buffers_of_functional_call_are_updated_once() -> None:
    """The second run must not change the buffers of the caller, which are no buffers of the module itself."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    data = torch.randn(8, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    params = {name: p.detach().requires_grad_() for name, p in net.named_parameters()}
    results = []
    for again in (False, True):
        buffers = {name: b.clone() for name, b in net.named_buffers()}

        def loss(params: Any, buffers: Any = buffers) -> torch.Tensor:
            return torch.func.functional_call(net, (params, buffers), (data,)).square().mean()

        value = (torchopt.checkpoint(loss) if again else loss)(params)
        results.append((torch.autograd.grad(value, list(params.values())), buffers))
    assert_trees_close(results[1], results[0], 1e-12)
    assert int(results[1][1]['1.num_batches_tracked']) == 1


def test_a_parameter_that_is_removed_after_the_first_run() -> None:
    """The second run has it, as the first did; afterwards the module is as the caller left it."""
    net = nn.Linear(3, 1, dtype=DOUBLE)
    x, weight = leaf(3), net.weight
    value = torchopt.checkpoint(net)(x).sum()
    del net.weight
    net.scale = nn.Parameter(torch.ones((), dtype=DOUBLE))
    assert_trees_close(torch.autograd.grad(value, [x, weight]), (weight[0].detach(), x[None].detach()), 1e-12)
    assert list(net._parameters) == ['bias', 'scale']


READS = {
    'shape': lambda w: w.shape[0],
    'size': lambda w: w.size(0),
    'numel': lambda w: w.numel(),
    'requires_grad': lambda w: 2 + w.requires_grad,
    'dtype': lambda w: torch.finfo(w.dtype).bits,
    'is_floating_point': lambda w: 2 + w.is_floating_point(),
}


@pytest.mark.parametrize('read', READS.values(), ids=READS)
def test_what_is_read_of_a_tensor_is_no_use_of_its_values(read: Callable[[torch.Tensor], float]) -> None:
    """So the tensor may be changed in place afterwards, and is no input of the node."""
    x, w = leaf(3), leaf(3)
    value = torchopt.checkpoint(lambda x: x.sin().sum() * read(w))(x)
    with torch.no_grad():
        w.add_(1.0)
    in_x, in_w = torch.autograd.grad(value, [x, w], allow_unused=True)
    assert_trees_close(in_x, x.detach().cos() * read(w), 1e-12)
    assert in_w is None
