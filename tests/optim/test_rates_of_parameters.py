# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of each parameter in the classes: by name for modules, in order for lists of parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt.optim.gradients import hide_integers, without_integers

F64 = torch.float64
X = torch.linspace(-1.0, 2.0, 12, dtype=F64).reshape(4, 3)


class Net(nn.Module):
    """Two layers, weights that are frozen, and a count that is an integer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(3, 2, dtype=F64), nn.Linear(2, 1, dtype=F64)
        self.frozen = nn.Parameter(torch.ones(2, dtype=F64), requires_grad=False)
        self.count = nn.Parameter(torch.tensor(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)) * self.frozen)


RATES = {'body.weight': 0.1, 'body.bias': 0.2, 'head.weight': 0.3, 'head.bias': 0.4, 'frozen': 0.5, 'count': 0.6}


def loss_of(net: nn.Module) -> Tensor:
    return (net(X) - 1.0).square().mean()


def by_hand(net: nn.Module, rates: dict[str, Any], steps: int) -> dict[str, Tensor]:
    """Gradient descent written out."""
    params = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for _ in range(steps):
        loss = (torch.func.functional_call(net, params, (X,)) - 1.0).square().mean()
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: p - rates[name] * g for (name, p), g in zip(params.items(), grads)}
    return params


def learned(rates: dict[str, float] = RATES) -> dict[str, Tensor]:
    return {name: torch.tensor(x, dtype=F64, requires_grad=True) for name, x in rates.items()}


def by_element(net: nn.Module) -> dict[str, Tensor]:
    return {n: torch.full(p.shape, RATES[n], dtype=F64, requires_grad=True) for n, p in net.named_parameters()}


@pytest.mark.parametrize('spread', ['of parameters', 'of elements'])
def test_a_module_takes_rates_by_name(spread: str) -> None:
    net, other = Net(), Net()
    rates = learned() if spread == 'of parameters' else by_element(net)
    optimizer = torchopt.MetaSGD(net, lr=rates)
    for _ in range(3):
        optimizer.step(loss_of(net))
    wanted = by_hand(other, rates, 3)
    trained = [name for name in RATES if name in wanted]
    for name in trained:
        torch.testing.assert_close(dict(named(net))[name], wanted[name])
    inputs = [rates[name] for name in trained]
    found = torch.autograd.grad(loss_of(net), inputs)
    loss = (torch.func.functional_call(other, wanted, (X,)) - 1.0).square().mean()
    torch.testing.assert_close(found, torch.autograd.grad(loss, inputs), rtol=1e-10, atol=1e-12)


def named(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p) for prefix, owner in net.named_modules() for name, p in _own(prefix, owner)]


def _own(prefix: str, owner: nn.Module) -> list[tuple[str, Tensor]]:
    return [(f'{prefix}.{key}' if prefix else key, p) for key, p in owner._parameters.items() if p is not None]


def test_a_plain_optimizer_takes_rates_in_order() -> None:
    net, other = Net(), Net()
    params = [p for p in net.parameters() if p.requires_grad]
    rates = [RATES[name] for name, p in net.named_parameters() if p.requires_grad]
    optimizer = torchopt.SGD(params, lr=rates)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
    wanted = by_hand(other, RATES, 3)
    for name, p in wanted.items():
        torch.testing.assert_close(net.get_parameter(name).detach(), p.detach())


def test_groups_have_lists_of_their_own() -> None:
    net, other = Net(), Net()
    groups = [
        {'params': list(net.body.parameters()), 'lr': [0.1, 0.2]},
        {'params': list(net.head.parameters()), 'lr': [0.3, torch.tensor(0.4, dtype=F64)]},
    ]
    optimizer = torchopt.Adam(groups, lr=0.1, betas=(0.5, 0.9))
    alone = [{'params': [p], 'lr': RATES[name]} for name, p in other.named_parameters() if p.requires_grad]
    wanted = torch.optim.Adam(alone, betas=(0.5, 0.9))
    for step in range(4):
        if step == 1:
            net, optimizer = copy.deepcopy((net, optimizer))
        for both in (net, other):
            both.zero_grad()
            loss_of(both).backward()
        if step == 2:
            optimizer.param_groups[0]['lr'] = [0.05, 0.2]
            wanted.param_groups[0]['lr'] = 0.05
        optimizer.step()
        wanted.step()
    for p, q in zip(net.parameters(), other.parameters()):
        torch.testing.assert_close(p, q)


def test_elements_of_a_list_may_change_between_steps() -> None:
    p = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))]
    rate = torch.tensor(0.2)
    optimizer = torchopt.SGD(p, lr=[0.1, rate])
    for q in p:
        q.grad = torch.tensor(1.0)
    optimizer.step()
    optimizer.param_groups[0]['lr'][0] = 0.5
    rate.fill_(0.3)
    optimizer.step()
    optimizer.param_groups[0]['lr'] = [torch.tensor(0.1), torch.tensor(0.1)]
    optimizer.step()
    assert [round(x.item(), 5) for x in p] == [0.3, 0.4]


def test_rates_of_elements_in_a_plain_optimizer() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torchopt.SGD([p], lr=[torch.tensor([0.1, 0.2])])
    p.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]['lr'] = [torch.tensor([0.3, 0.4])]
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.6, 0.4]))


@pytest.mark.parametrize(
    ('rates', 'place'),
    [({'body.weight': 0.1}, "params['frozen']"), ({**RATES, 'tail': 0.1}, "params['tail']"), ([0.1, 0.2], 'params')],
    ids=['a name is missing', 'a name too many', 'a list'],
)
def test_a_module_is_not_changed_where_names_do_not_fit(rates: Any, place: str) -> None:
    net = Net()
    before = [id(p) for _, p in named(net)]
    optimizer = torchopt.MetaSGD(net, lr=rates)
    with pytest.raises(ValueError, match='learning_rate does not fit') as caught:
        optimizer.step(loss_of(net))
    assert f'at {place},' in str(caught.value)
    assert [id(p) for _, p in named(net)] == before


def test_parameters_are_not_changed_where_a_list_does_not_fit() -> None:
    p = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))]
    optimizer = torchopt.SGD([{'params': p[:1]}, {'params': p[1:], 'lr': [0.1, 0.2]}], lr=0.1, momentum=0.9)
    for q in p:
        q.grad = torch.tensor(1.0)
    with pytest.raises(ValueError, match='learning_rate does not fit params: at params\\[1\\]'):
        optimizer.step()
    assert [x.item() for x in p] == [1.0, 1.0]
    optimizer.param_groups[1]['lr'] = [0.1]
    optimizer.step()
    optimizer.param_groups[1]['lr'] = [0.1, 0.2]
    with pytest.raises(ValueError, match='learning_rate does not fit'):
        optimizer.step()
    assert [round(x.item(), 5) for x in p] == [0.9, 0.9]


def test_functional_optimizer() -> None:
    rates = learned({'w': 0.5, 'b': 0.25})
    optimizer = torchopt.FuncOptimizer(torchopt.sgd(rates))
    params = {
        'w': torch.tensor(2.0, dtype=F64, requires_grad=True),
        'b': torch.tensor(1.0, dtype=F64, requires_grad=True),
    }
    new = optimizer.step(params['w'] * 3.0 + params['b'], params)
    assert (new['w'].item(), new['b'].item()) == (0.5, 0.75)
    assert [x.item() for x in torch.autograd.grad(new['w'] + new['b'], [*rates.values()])] == [-3.0, -1.0]


def test_integers_are_hidden_where_nothing_can_be_updated() -> None:
    whole, real = torch.tensor(3), torch.tensor(1.0)
    assert without_integers({'a': whole, 'b': [real, None]}) == {'a': None, 'b': [real, None]}
    assert hide_integers([whole, real, real], [None, None, real]) == [None, real, real]
