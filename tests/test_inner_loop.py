# SPDX-License-Identifier: Apache-2.0
"""Inner loops: buffers go back to where they started, and memory is released."""

from __future__ import annotations

import copy
import gc
import itertools

import pytest
import torch
from torch import nn

import torchopt
from tests.module_cases import same


def test_batch_norm_in_an_inner_loop():
    """Every task starts from the same buffers: outer gradients do not depend on the order."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    params = list(net.parameters())
    tasks = [(torch.randn(6, 3).double(), torch.randn(6, 1).double()) for _ in range(3)]
    optimizer = torchopt.MetaSGD(net, lr=0.1)
    start = torchopt.extract_state_dict(net, by='reference', detach_buffers=True)
    clean = copy.deepcopy(net.state_dict())
    optimizer_start = torchopt.extract_state_dict(optimizer)

    def adapt(x, y):
        for _ in range(2):
            optimizer.step((net(x) - y).square().mean())
        grads = torch.autograd.grad((net(x) - y).square().mean(), params, allow_unused=True)
        assert net[1].num_batches_tracked == 3
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(optimizer, optimizer_start)
        return [grad for grad in grads if grad is not None]

    once = [adapt(*task) for task in tasks]
    for name, value in net.state_dict().items():
        assert torch.equal(value, clean[name]), name
    again = [adapt(*task) for task in reversed(tasks)][::-1]
    for first, second in zip(once, again, strict=True):
        assert len(first) == len(params)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert same(net.parameters(), params)


class Probe(torch.autograd.Function):
    """The identity. Its node is a Python object that lives exactly as long as its graph."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return Probe.apply(grad)


def census() -> tuple[int, int, int]:
    """Live tensors, graph nodes that they lead to, and probes in graphs whoever holds them."""
    gc.collect()
    alive = gc.get_objects()
    tensors = [x for x in alive if issubclass(type(x), torch.Tensor)]
    probes = [x for x in alive if type(x).__name__ == 'ProbeBackward']
    nodes = {tensor.grad_fn for tensor in tensors} - {None}
    todo = list(nodes)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in nodes:
                nodes.add(node)
                todo.append(node)
    return len(tensors), len(nodes), len(probes)


class Recover:
    """Every outer iteration starts from the same state."""

    def __init__(self, *targets, by):
        self.targets = targets
        self.states = [torchopt.extract_state_dict(target, by=by) for target in targets]

    def __call__(self):
        for target, state in zip(self.targets, self.states, strict=True):
            torchopt.recover_state_dict(target, state)


class CopyAndRecover:
    """Every outer iteration goes on from a copy without a graph."""

    def __init__(self, *targets):
        self.targets = targets

    def __call__(self):
        for target in self.targets:
            state = torchopt.extract_state_dict(target, by='deepcopy', detach_buffers=True)
            torchopt.recover_state_dict(target, state)


class Stop:
    """Every outer iteration goes on from where the last one ended."""

    def __init__(self, *targets):
        self.targets = targets

    def __call__(self):
        for target in self.targets:
            torchopt.stop_gradient(target)


# Outer iterations, and what is done at the end of each.
RELEASES = {
    'recover by reference': (300, lambda *targets: Recover(*targets, by='reference')),
    'recover by copy': (60, lambda *targets: Recover(*targets, by='copy')),
    'recover by deepcopy': (60, lambda *targets: Recover(*targets, by='deepcopy')),
    'extract and recover': (60, CopyAndRecover),
    'stop_gradient': (300, Stop),
    'stop_gradient of a tuple': (60, lambda *targets: Stop(targets)),
}
META = {
    'MetaSGD': lambda net: torchopt.MetaSGD(net, lr=0.01, momentum=0.9),
    'MetaAdam': lambda net: torchopt.MetaAdam(net, lr=0.01),
}


def outer_loop(optimizer_of, release_of, iterations, every, retain_graph=False):
    """Train a learned penalty through two inner steps; take a census every so often."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))
    penalty = torch.zeros((), requires_grad=True)
    inner = optimizer_of(net)
    outer = torch.optim.Adam([penalty], lr=0.01)
    release = release_of(net, inner)
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    found = []
    for i in range(iterations):
        for _ in range(2):
            shrink = penalty.exp() * net[0].weight.square().sum()
            inner.step(Probe.apply(net(x) - y).square().mean() + shrink)
        loss = (net(x) - y).square().mean()
        outer.zero_grad()
        loss.backward(inputs=[penalty], retain_graph=retain_graph)
        assert penalty.grad.abs() > 0
        outer.step()
        del loss, shrink
        release()
        if i % every == every - 1:
            found.append(census())
    return found


@pytest.mark.parametrize('optimizer_of', META.values(), ids=META)
@pytest.mark.parametrize(('iterations', 'release_of'), RELEASES.values(), ids=RELEASES)
def test_memory_is_released(optimizer_of, iterations, release_of):
    found = outer_loop(optimizer_of, release_of, iterations, every=iterations // 6)
    assert len(found) == 6
    assert set(found) == {found[0]}


def test_memory_is_kept_without_release():
    """What the test above would see if nothing were released."""
    found = outer_loop(META['MetaAdam'], lambda *targets: lambda: None, iterations=4, every=1, retain_graph=True)
    for earlier, later in itertools.pairwise(found):
        assert all(x < y for x, y in zip(earlier, later, strict=True))
