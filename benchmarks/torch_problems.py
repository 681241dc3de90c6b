# SPDX-License-Identifier: Apache-2.0
"""The problems in torch, shared by all peers that use torch, so that they differ only in the optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import problems
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workloads import SECOND, Workload

DEVICE = torch.device('cpu')  # the worker sets it


def tensors(arrays: Sequence[Any]) -> list[Tensor]:
    return [torch.tensor(a, device=DEVICE) for a in arrays]


@functools.lru_cache(maxsize=1)
def shared_tree(tree: str) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters (clone them) and gradients, one copy for all contestants of a process."""
    params, grads = problems.params_and_grads(tree)
    return tensors(params), tensors(grads)


def parameters(tree: str) -> list[Tensor]:
    """Leaves that require grad, with their gradients in ``.grad``."""
    params, grads = shared_tree(tree)
    params = [p.clone().requires_grad_() for p in params]
    for p, g in zip(params, grads):
        p.grad = g
    return params


def two_steps(step: Callable[[], Sequence[Tensor]], work: Workload) -> list[Tensor]:
    """The change of the parameters in two steps with different gradients; ``step`` returns the new parameters."""
    params, grads = shared_tree(work.tree)
    step()
    torch._foreach_mul_(grads, SECOND)
    new = [p.detach() for p in step()]
    torch._foreach_mul_(grads, 1.0 / SECOND)  # exact
    return [n - p for n, p in zip(new, params)]


class MLP(nn.Module):
    """The network of the meta-gradient; its parameters are named p0, p1, ... in the order of a list."""

    def __init__(self, weights: Sequence[Any]) -> None:
        super().__init__()
        self.names = [f'p{i}' for i in range(len(weights))]
        for name, w in zip(self.names, tensors(weights)):
            self.register_parameter(name, nn.Parameter(w))

    def forward(self, x: Tensor) -> Tensor:
        return mlp([getattr(self, name) for name in self.names], x)


def mlp(params: Sequence[Tensor], x: Tensor) -> Tensor:
    for i in range(0, len(params), 2):
        x = F.linear(x, params[i], params[i + 1])
        if i + 2 < len(params):
            x = torch.tanh(x)
    return x


def linear_layer(tree: str) -> tuple[nn.Linear, Callable[[Callable[[Tensor], Tensor]], Tensor]]:
    """A linear layer, and the loss of a function of its inputs; both losses of a meta-gradient are equal."""
    (weight, bias), (x, _) = shared_tree(tree)
    net = nn.Linear(*weight.shape[::-1], device=DEVICE)
    net.weight, net.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return net, lambda net: net(x).square().mean()


class Leaves(nn.Module):
    """Many parameters with a cheap loss whose gradient depends on them, so that the optimizer dominates the time."""

    def __init__(self) -> None:
        super().__init__()
        weights = problems.share_weights()
        self.names = [f'p{i}' for i in range(len(weights))]
        for name, w in zip(self.names, tensors(weights)):
            self.register_parameter(name, nn.Parameter(w))

    def forward(self) -> Tensor:
        return sum_of_squares([getattr(self, name) for name in self.names])


def sum_of_squares(params: Sequence[Tensor]) -> Tensor:
    return torch.stack([p.square().sum() for p in params]).sum()


def meta_losses() -> tuple[Callable[[Callable[[Tensor], Tensor]], Tensor], ...]:
    """The inner and the outer loss, as functions of a model that maps inputs to scores."""
    data = [tensors(batch) for batch in problems.batches()]
    return tuple(lambda net, x=x, y=y: F.cross_entropy(net(x), y) for x, y in data)
