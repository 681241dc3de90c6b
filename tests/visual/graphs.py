# SPDX-License-Identifier: Apache-2.0
"""Graphs that the tests of torchopt.visual draw."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchopt

needs_engine = pytest.mark.skipif(
    not torchopt.accelerated_op_available(), reason='without the engine a step is not a single node'
)


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def inner_loop(steps: int = 2, face: Any = torchopt.MetaAdam, **options: Any) -> tuple[Tensor, Tensor, Any, Any, Any]:
    """Outer loss, meta-parameter, module, optimizer, and the states before and after every step."""
    net, meta = make_net(), torch.tensor(2.0, requires_grad=True)
    x, y = torch.linspace(-1.0, 1.0, 15).reshape(5, 3), torch.ones(5, 1)
    optimizer = face(net, lr=0.1, **options)
    states = [torchopt.extract_state_dict(net, enable_visual=True, visual_prefix='step0.')]
    for step in range(1, steps + 1):
        optimizer.step(meta * F.mse_loss(net(x), y))
        states.append(torchopt.extract_state_dict(net, enable_visual=True, visual_prefix=f'step{step}.'))
    return F.mse_loss(net(x), y), meta, net, optimizer, states


def tasks(count: int) -> tuple[Tensor, Any]:
    """The loss of several tasks with two inner steps each, and the names of what it begins with.

    They share the initial weights, a function of these, and a learned rate.
    """
    net, rate = make_net(), torch.tensor(-2.0, requires_grad=True)
    optimizer = torchopt.MetaAdam(net, lr=rate.exp())
    start, fresh = torchopt.extract_state_dict(net, enable_visual=True), torchopt.extract_state_dict(optimizer)
    penalty = net[0].weight.square().sum()
    losses = []
    for task in range(count):
        for _ in range(2):
            optimizer.step(F.mse_loss(net(torch.ones(5, 3)), torch.full((5, 1), float(task))) * penalty)
        losses.append(net(torch.ones(5, 3)).sum())
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(optimizer, fresh)
    return torch.stack(losses).sum(), [start, {'rate': rate}]


def labels(graph: Any, kind: str) -> list[str]:
    return [node.label for node in graph.nodes if node.kind == kind]


def edges(graph: Any) -> set[tuple[str, str, str]]:
    """The edges by the labels of their ends."""
    label = {node.id: node.label for node in graph.nodes}
    return {(label[e.tail], label[e.head], e.kind) for e in graph.edges}
