# SPDX-License-Identifier: Apache-2.0
"""Modules and optimizers, and helpers for the tests of their states."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

import torchopt
from torchopt.utils import ModuleState


class Tied(nn.Module):
    """A weight and a buffer, each under two names."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = nn.Linear(3, 3)
        self.decode.weight = self.encode.weight
        self.encode.register_buffer('shift', torch.zeros(3))
        self.decode.register_buffer('shift', self.encode.shift)

    def forward(self, x):
        return self.decode(torch.tanh(self.encode(x)))


class Collections(nn.Module):
    """Parameters in a list and a dict, and a parameter that is None."""

    def __init__(self):
        super().__init__()
        self.listed = nn.ParameterList([torch.ones(2), torch.ones(3)])
        self.named = nn.ParameterDict({'b': torch.ones(2), 'a': torch.ones(1)})
        self.own = nn.Parameter(torch.ones(4))
        self.register_parameter('reserved', None)
        self.register_buffer('nothing', None)


class Borrower(torchopt.nn.MetaGradientModule):
    """An inner module on a borrowed backbone, which also has a tensor that is not registered."""

    def __init__(self, backbone, penalty):
        super().__init__()
        self.backbone = backbone
        self.penalty = penalty
        self.head = nn.Linear(3, 1)
        self.cache = [torch.ones(2)]

    def forward(self, x):
        return self.head(self.backbone(x)) + self.penalty


def frozen():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    return module


KINDS = {
    'Linear': lambda: nn.Linear(2, 3),
    'Conv and BatchNorm': lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()),
    'nested': lambda: nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Linear(2, 1)),
    'tied': Tied,
    'collections': Collections,
    'frozen': frozen,
    'no parameters': lambda: nn.Sequential(nn.Tanh(), nn.Flatten()),
    'no affine': lambda: nn.BatchNorm1d(3, affine=False),
    'borrower': lambda: Borrower(nn.Linear(2, 3), torch.ones((), requires_grad=True)),
}
BY = {
    'reference': 'reference',
    'ref': 'reference',
    'copy': 'copy',
    'clone': 'copy',
    'deepcopy': 'deepcopy',
    'deepclone': 'deepcopy',
}
each_kind = pytest.mark.parametrize('make', KINDS.values(), ids=KINDS)
each_by = pytest.mark.parametrize('by', BY)


def slots(module: nn.Module) -> list[torch.Tensor]:
    """The tensors of a module, one for every name, so tied ones are repeated."""
    return [
        tensor
        for part in module.modules()
        for kind in (part._parameters, part._buffers)
        for tensor in kind.values()
        if tensor is not None
    ]


def live_parameters(module: nn.Module) -> list[torch.Tensor]:
    found = [param for part in module.modules() for param in part._parameters.values()]
    return [param for param in found if param is not None]


def pattern(tensors) -> list[int]:
    """The index of the first tensor that is the same object, for each tensor; it describes the ties."""
    first: dict[int, int] = {}
    return [first.setdefault(id(tensor), i) for i, tensor in enumerate(tensors)]


def saved(state: ModuleState) -> list[torch.Tensor]:
    return [tensor for part in state.params + state.buffers for tensor in part.values()]


def optimizer_tensors(optimizer) -> list[torch.Tensor]:
    return [x for x in torchopt.tree.leaves(optimizer.state_groups) if isinstance(x, torch.Tensor)]


def same(xs, ys) -> bool:
    xs, ys = list(xs), list(ys)
    return len(xs) == len(ys) and all(x is y for x, y in zip(xs, ys, strict=True))


def check_replica(by: str, original: torch.Tensor, replica: torch.Tensor) -> None:
    assert torch.equal(original, replica)
    if BY[by] == 'reference':
        assert replica is original
        return
    assert replica.data_ptr() != original.data_ptr()
    if BY[by] == 'copy':
        assert type(replica) is torch.Tensor
        if original.requires_grad:
            assert type(replica.grad_fn).__name__ == 'CloneBackward0'
            (grad,) = torch.autograd.grad(replica.sum(), original)
            assert torch.equal(grad, torch.ones_like(original))
        return
    assert replica.is_leaf
    assert replica.requires_grad == original.requires_grad
    assert isinstance(replica, nn.Parameter) == isinstance(original, nn.Parameter)


def take_a_step(module: nn.Module) -> None:
    """Replace all trained parameters as a meta-optimizer does, with the same ties, and change the buffers."""
    new: dict[torch.Tensor, torch.Tensor] = {}
    for part in module.modules():
        for name, param in part._parameters.items():
            if param is not None and param.requires_grad:
                part._parameters[name] = new.setdefault(param, param * 2 + 1)
    for buffer in module.buffers():
        buffer.add_(1)


def loss_of(module):
    return sum(param.square().sum() for param in module.parameters())


OPTIMIZERS = {
    'MetaSGD': lambda net: torchopt.MetaSGD(net, lr=0.1),
    'MetaSGD with momentum': lambda net: torchopt.MetaSGD(net, lr=0.1, momentum=0.9),
    'MetaAdam': lambda net: torchopt.MetaAdam(net, lr=0.1),
    'Adam': lambda net: torchopt.Adam(net.parameters(), lr=0.1),
    'SGD with momentum': lambda net: torchopt.SGD(net.parameters(), lr=0.1, momentum=0.9),
}
each_optimizer = pytest.mark.parametrize('optimizer_of', OPTIMIZERS.values(), ids=OPTIMIZERS)


def step(optimizer, net):
    if isinstance(optimizer, torchopt.MetaOptimizer):
        optimizer.step(loss_of(net))
    else:
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()


class Mixed(NamedTuple):
    count: int
    nothing: None
    name: str
    moment: dict
    tied: torch.Tensor


def mixed_state():
    w = torch.ones(2, requires_grad=True)
    return Mixed(3, None, 'x', {'w': w * 2, 'none': None}, w)
