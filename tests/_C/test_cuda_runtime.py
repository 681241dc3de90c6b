# SPDX-License-Identifier: Apache-2.0
"""The engine on a CUDA device: nothing waits for it, streams and captured graphs, optimizers as on the CPU."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import torchopt
from tests import cases as optimizers
from tests._C.cases import AFFINES, BY_NAME, assert_same, columns, draw, flat, native, watched
from tests._C.device import DEVICE, assert_same_there, moved_to, needs_cuda, on_device
from torchopt import tree
from torchopt._C import fused

pytestmark = needs_cuda
F32, F64 = torch.float32, torch.float64


@pytest.fixture
def no_waiting():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    yield
    torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('learned', [False, True])
def test_nothing_waits_for_the_device(learned, request):
    """A step with its backward, with a learning rate on the device, or one that is a number."""
    lr = torch.tensor(0.1, device=DEVICE, requires_grad=True) if learned else 0.1
    start = [torch.randn(300, device=DEVICE, requires_grad=True) for _ in range(5)]
    tx = torchopt.adam(lr, weight_decay=0.1)
    state = tx.init(start)
    request.getfixturevalue('no_waiting')
    with watched() as watch:
        p = start
        for _ in range(2):
            updates, state = tx.update([torch.sin(x) for x in p], state, p)
            p = torchopt.apply_updates(p, updates)
        torch.autograd.grad(sum(x.sum() for x in p), [*start, *([lr] if learned else [])])
    watch.ran(0)


def test_another_stream():
    """Kernels run on torch's current stream: behind a long computation whose result they read."""
    case = BY_NAME['adam']
    g, moments, _ = columns(case, [(5000,)], F32)
    wanted = native(case.partials(), g, moments, None)
    (there, *moments) = moved_to(DEVICE, g, *moments)
    late = torch.zeros_like(there[0])
    busy = torch.randn(3000, 3000, device=DEVICE)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy = torch.tanh(busy @ busy)
        late.copy_(there[0] + 0 * busy[0, 0])
        found = native(case.partials(), [late], moments, None)
    stream.synchronize()
    assert_same_there(flat(found), flat(wanted), 2e-6)


def test_a_captured_graph():
    case, affine = BY_NAME['adam'], AFFINES['a whole step']
    g, moments, p = on_device(*columns(case, [(3000,), (7,), ()], F32))
    partials = affine.around(case.partials())
    twin = on_device(g, moments, p)
    warm = torch.cuda.Stream()
    warm.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm):
        native(partials, *on_device(g, moments, p), inplace=True, onto=True)
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        native(partials, g, moments, p, inplace=True, onto=True)
    for k in range(3):
        for x, y in zip(g, twin[0]):
            x.mul_(k + 1.0)
            y.copy_(x)
        graph.replay()
        native(partials, *twin, inplace=True, onto=True)
        assert_same_there(flat([p, *moments]), flat([twin[2], *twin[1]]), 1e-6)


def test_tensors_on_several_devices_are_refused():
    g = [draw('~', (n,), n, F32) for n in (3, 4)]
    result = fused._run(0, 0, [[g[0].to(DEVICE), g[1]], None], [-1], (1.0, 0.0, 1.0, 0.0), None, 1)
    assert isinstance(result, str)
    assert 'device' in result
    with pytest.raises(RuntimeError):
        tx = torchopt.sgd(0.1, momentum=0.9)
        tx.update([g[0].to(DEVICE)], tx.init([g[0]]))


# --- optimizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', optimizers.CASES, ids=lambda c: c.name)
def test_optimizers(case):
    def run(device, inplace):
        params = tree.map(lambda x: x.to(device), optimizers.mixed_tree(F64))
        tx = case.make()
        state = tx.init(params)
        for k in range(3):
            grads = tree.map(lambda p, k=k: torch.sin(3 * p + k), params)
            updates, state = tx.update(grads, state, params, inplace=inplace)
            params = torchopt.apply_updates(params, updates, inplace=inplace)
        return [x.cpu() for x in tree.leaves((params, state))]

    for inplace in (False, True):
        with watched() as watch:
            found = run(DEVICE, inplace)
        watch.ran(0)
        assert_same(found, run('cpu', inplace), 1e-11)


def test_a_model_is_trained_as_on_the_cpu():
    def train(device):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).double().to(device)
        x = draw('~', (32, 5), 1).to(device)
        optimizer = torchopt.Adam(net.parameters(), lr=0.01)
        losses = []
        for _ in range(20):
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses, [p.detach().cpu() for p in net.parameters()]

    (losses, found), (_, wanted) = train(DEVICE), train('cpu')
    assert losses[-1] < losses[0] / 2
    assert_same(found, wanted, 1e-8)


def test_transforms():
    def outer(x, lr):
        tx = torchopt.adam(lr, eps_root=1e-3)
        p, state = x, tx.init(x)
        for _ in range(2):
            updates, state = tx.update(torch.sin(3 * p), state, p)
            p = torchopt.apply_updates(p, updates)
        return (p**3).sum()

    x, rates = draw('~', (4, 3), 0), torch.tensor([0.05, 0.1, 0.2, 0.3], dtype=F64)
    for transform in (
        lambda x, r: torch.vmap(torch.func.grad(functools.partial(outer, lr=0.1)))(x),
        torch.vmap(torch.func.grad(outer, argnums=(0, 1))),
        lambda x, r: torch.func.hessian(functools.partial(outer, lr=0.1))(x[0]),
    ):
        found = tree.leaves(transform(x.to(DEVICE), rates.to(DEVICE)))
        assert_same([y.cpu() for y in found], tree.leaves(transform(x, rates)), 1e-10)
