# SPDX-License-Identifier: Apache-2.0
"""Mixed precision of torch: autocast around the forward pass, scaled gradients, steps of ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt.interop import higher

X = torch.linspace(-1.0, 1.0, 24).reshape(8, 3)
Y = X.sum(1, keepdim=True)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(net: Any) -> torch.Tensor:
    with torch.autocast('cpu', torch.bfloat16):
        out = net(X)
        assert out.dtype is torch.bfloat16
    return (out.float() - Y).square().mean()


@pytest.mark.parametrize(
    ('ours', 'theirs'), [(torchopt.AdamW, torch.optim.AdamW), (torchopt.SGD, torch.optim.SGD)], ids=['AdamW', 'SGD']
)
def test_autocast_scaling_and_clipping(ours: Any, theirs: Any) -> None:
    """The recipe of torch: scale, unscale, clip, step, update; beside torch's own optimizer."""
    ends = []
    for make in (ours, theirs):
        net = network()
        optimizer, scaler = make(net.parameters(), lr=0.05, weight_decay=0.1), torch.amp.GradScaler('cpu', 2.0**8)
        first = loss_of(net).item()
        for _ in range(5):
            optimizer.zero_grad()
            scaler.scale(loss_of(net)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        assert loss_of(net).item() < first
        assert all(p.dtype is torch.float32 for p in net.parameters())
        ends.append((list(net.parameters()), scaler.state_dict()))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-5, atol=1e-6)
    assert ends[0][1] == ends[1][1]


def test_a_saved_run_goes_on() -> None:
    """Network, optimizer and scaler together, the last step of the first half left out as not finite."""
    net = network()
    optimizer, scaler = torchopt.Adam(net.parameters(), lr=0.05), torch.amp.GradScaler('cpu', 2.0**8)

    def train(net: nn.Module, optimizer: Any, scaler: Any, factors: list[float]) -> None:
        for factor in factors:
            optimizer.zero_grad()
            scaler.scale(loss_of(net) * factor).backward()
            scaler.step(optimizer)
            scaler.update()

    train(net, optimizer, scaler, [1.0, 1.0, float('inf')])
    saved = copy.deepcopy([x.state_dict() for x in (net, optimizer, scaler)])
    train(net, optimizer, scaler, [1.0, 1.0])
    twin = network()
    other, again = torchopt.Adam(twin.parameters(), lr=9.0), torch.amp.GradScaler('cpu')
    for x, state in zip((twin, other, again), saved, strict=True):
        x.load_state_dict(state)
    assert int(other.state_groups[0][0].count) == 2 and again.get_scale() == 2.0**7
    train(twin, other, again, [1.0, 1.0])
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize('way', ['MetaOptimizer', 'higher', 'functional'])
def test_meta_gradients(way: str) -> None:
    """Inner steps under autocast; the meta-gradient is that of single precision, but for the rounding."""
    net, exact = network(), network()
    if way == 'MetaOptimizer':
        start = list(net.parameters())
        optimizer = torchopt.MetaSGD(net, lr=0.1)
        for _ in range(2):
            optimizer.step(loss_of(net))
        grads = torch.autograd.grad(loss_of(net), start)
    elif way == 'higher':
        with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=0.1), copy_initial_weights=False) as pair:
            for _ in range(2):
                pair[1].step(loss_of(pair[0]))
            grads = torch.autograd.grad(loss_of(pair[0]), list(net.parameters()))
    else:
        params = dict(net.named_parameters())
        tx = torchopt.sgd(0.1)
        state = tx.init(params)
        for _ in range(2):
            loss = loss_of(lambda x, held=params: torch.func.functional_call(net, held, (x,)))
            own = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            updates, state = tx.update(dict(zip(params, own, strict=True)), state, params)
            params = torchopt.apply_updates(params, updates)
        grads = torch.autograd.grad(
            loss_of(lambda x: torch.func.functional_call(net, params, (x,))), list(net.parameters())
        )
    start = list(exact.parameters())
    optimizer = torchopt.MetaSGD(exact, lr=0.1)
    for _ in range(2):
        optimizer.step((exact(X) - Y).square().mean())
    expected = torch.autograd.grad((exact(X) - Y).square().mean(), start)
    for g, e in zip(grads, expected, strict=True):
        assert g.dtype is torch.float32 and g.isfinite().all()
        torch.testing.assert_close(g, e, rtol=0.1, atol=0.03)
