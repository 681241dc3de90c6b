# SPDX-License-Identifier: Apache-2.0
"""Inner loops of `higher` over models with parameters that do not enter the loss, or entered it in some steps only."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt.interop import higher

X = torch.linspace(-1.0, 2.0, 8, dtype=torch.float64).reshape(4, 2)


class Partial(nn.Module):
    """Each of three layers can be left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(2, 2).double() for _ in range(3))

    def forward(self, used: tuple[int, ...]) -> Tensor:
        return sum(self.layers[i](X).square().mean() for i in used)


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    'sgd': (torch.optim.SGD, {'momentum': 0.9, 'dampening': 0.5}),
    'adam': (torch.optim.Adam, {'weight_decay': 0.1}),
    'adamw': (torch.optim.AdamW, {}),
    'adamax': (torch.optim.Adamax, {}),
    'adagrad': (torch.optim.Adagrad, {'lr_decay': 0.5}),
    'radam': (torch.optim.RAdam, {}),
    'adadelta': (torch.optim.Adadelta, {}),
    'rmsprop': (torch.optim.RMSprop, {'momentum': 0.9}),
}


def warmed(kind: Any, options: dict[str, Any], net: Partial) -> torch.optim.Optimizer:
    """An optimizer with two groups, whose layers have taken 2, 1 and no steps."""
    first = [*net.layers[0].parameters(), *net.layers[1].parameters()]
    opt: torch.optim.Optimizer = kind(
        [{'params': [*first, net.layers[2].weight], 'lr': 0.1}, {'params': [net.layers[2].bias]}], lr=0.2, **options
    )
    for used in ((0, 1), (0,)):
        opt.zero_grad()
        net(used).backward()
        opt.step()
    return opt


@pytest.mark.parametrize('case', KINDS)
def test_a_group_may_have_taken_different_numbers_of_steps(case: str) -> None:
    net = Partial()
    opt = warmed(*KINDS[case], net)
    expected, theirs = copy.deepcopy((net, opt))
    saved = copy.deepcopy(opt.state_dict())
    with higher.innerloop_ctx(net, opt, override={'lr': [0.1, 0.2]}) as (fmodel, diffopt):
        assert [group['lr'] for group in diffopt.param_groups] == [0.1, 0.2]
        for _ in range(3):
            diffopt.step(fmodel((0, 1, 2)))
            theirs.zero_grad()
            expected((0, 1, 2)).backward()
            theirs.step()
        torch.testing.assert_close(list(fmodel.parameters()), list(expected.parameters()), rtol=1e-10, atol=1e-10)
        diffopt.param_groups[0]['lr'] = 0.0
        before = fmodel.fast_params
        after = diffopt.step(fmodel((0, 1, 2)))
    assert [torch.equal(old, new) for old, new in zip(before, after, strict=True)] == [True] * 5 + [False]
    torch.testing.assert_close(opt.state_dict(), saved)
    assert [len(group['params']) for group in opt.param_groups] == [5, 1]


def test_an_empty_group() -> None:
    net = nn.Linear(2, 1)
    opt = torch.optim.Adam([{'params': []}, {'params': net.parameters(), 'lr': 0.1}])
    with higher.innerloop_ctx(net, opt) as (fmodel, diffopt):
        diffopt.step(fmodel(torch.ones(2)).sum())
        assert [group['lr'] for group in diffopt.param_groups] == [0.001, 0.1]


@pytest.mark.parametrize('warm', [False, True])
def test_without_tracking_unused_parameters_have_no_graph(warm: bool) -> None:
    """Those outside of the optimizer keep theirs, so that the gradients of an encoder reach the model."""
    net = Partial()
    opt = torch.optim.Adam([*net.layers[0].parameters(), *net.layers[1].parameters()])
    if warm:
        net((0,)).backward()
        opt.step()
        opt.zero_grad()
    with higher.innerloop_ctx(net, opt, copy_initial_weights=False, track_higher_grads=False) as (fmodel, diffopt):
        diffopt.step(fmodel((0, 2)))
        fmodel((0, 1, 2)).backward()
    assert [p.grad is None for p in net.parameters()] == [True] * 4 + [False] * 2
    assert all(p.grad is not None for p in fmodel.layers[1].parameters())


def test_plain_steps_detach_unused_parameters() -> None:
    optimizer = torchopt.FuncOptimizer(torchopt.sgd(0.1), differentiable=False)
    params = [2.0 * torch.ones(2, requires_grad=True) for _ in range(2)]
    new = optimizer.step(params[0].sum(), params)
    assert all(p.is_leaf and p.requires_grad for p in new)
    again = optimizer.step(new[0].sum(), new)
    assert again[1] is new[1] and again[0] is not new[0]
