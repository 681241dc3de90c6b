# SPDX-License-Identifier: Apache-2.0
"""Runs that begin with an optimizer of torch and go on with ours."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt import interop

f64 = torch.float64
X = torch.linspace(-1.0, 2.0, 12, dtype=f64).reshape(4, 3)

RUNS: dict[str, tuple[Any, dict[str, Any]]] = {
    'SGD': (torch.optim.SGD, {'lr': 0.1}),
    'SGD momentum': (torch.optim.SGD, {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.1}),
    'SGD damped': (torch.optim.SGD, {'lr': 0.1, 'momentum': 0.9, 'dampening': 0.3}),
    'SGD Nesterov': (torch.optim.SGD, {'lr': 0.1, 'momentum': 0.9, 'nesterov': True, 'maximize': True}),
    'Adam': (torch.optim.Adam, {'lr': 0.1}),
    'Adam decay': (torch.optim.Adam, {'lr': 0.1, 'betas': (0.5, 0.7), 'eps': 1e-3, 'weight_decay': 0.1}),
    'Adam decoupled': (torch.optim.Adam, {'lr': 0.1, 'weight_decay': 0.1, 'decoupled_weight_decay': True}),
    'Adam for loops': (torch.optim.Adam, {'lr': 0.1, 'foreach': False, 'maximize': True}),
    'AdamW': (torch.optim.AdamW, {'lr': 0.1, 'weight_decay': 0.2}),
    'RMSprop': (torch.optim.RMSprop, {'lr': 0.01}),
    'RMSprop centered': (torch.optim.RMSprop, {'lr': 0.01, 'centered': True, 'momentum': 0.5, 'weight_decay': 0.1}),
    'Adagrad': (torch.optim.Adagrad, {'lr': 0.1, 'initial_accumulator_value': 0.1}),
    'Adagrad decaying': (torch.optim.Adagrad, {'lr': 0.1, 'lr_decay': 0.3, 'weight_decay': 0.1}),
    'Adadelta': (torch.optim.Adadelta, {'lr': 0.5, 'rho': 0.8, 'weight_decay': 0.1}),
    'Adamax': (torch.optim.Adamax, {'lr': 0.1, 'weight_decay': 0.1}),
    'RAdam': (torch.optim.RAdam, {'lr': 0.1, 'weight_decay': 0.1}),
}


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(X).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize('steps', [0, 1, 5])
@pytest.mark.parametrize('run', RUNS)
def test_runs_that_switch(run: str, steps: int) -> None:
    make, options = RUNS[run]

    def build(net: nn.Module) -> torch.optim.Optimizer:
        return make([{'params': net[0].parameters()}, {'params': net[2].parameters(), 'lr': 0.03}], **options)

    first, second = network(), network()
    theirs, switched = build(first), build(second)
    train(first, theirs, steps + 5)
    train(second, switched, steps)
    held = copy.deepcopy(switched.state_dict())
    ours = interop.from_torch_optimizer(switched)
    assert isinstance(ours, torchopt.Optimizer)
    assert [p for g in ours.param_groups for p in g['params']] == list(second.parameters())
    assert [g['lr'] for g in ours.param_groups] == [options['lr'], 0.03]
    train(second, ours, 5)
    torch.testing.assert_close(list(second.parameters()), list(first.parameters()), rtol=1e-12, atol=1e-12)
    assert str(held) == str(switched.state_dict())


def test_the_class_is_that_of_the_rule() -> None:
    params = list(network().parameters())
    for (make, options), kind in zip(
        [RUNS['SGD'], RUNS['Adam'], RUNS['Adam decoupled'], RUNS['RMSprop']],
        [torchopt.SGD, torchopt.Adam, torchopt.AdamW, torchopt.RMSprop],
        strict=True,
    ):
        assert type(interop.from_torch_optimizer(make(params, **options))) is kind


def test_schedulers_go_on() -> None:
    first, second = network(), network()
    theirs, switched = (torch.optim.Adam(net.named_parameters(), lr=0.1) for net in (first, second))
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (theirs, switched)]
    for net, o, schedule in ((first, theirs, schedules[0]), (second, switched, schedules[1])):
        for _ in range(3):
            train(net, o, 1)
            schedule.step()
    ours = interop.from_torch_optimizer(switched)
    assert ours.param_groups[0]['initial_lr'] == 0.1
    assert ours.param_groups[0]['param_names'] == theirs.param_groups[0]['param_names']
    schedule = torch.optim.lr_scheduler.StepLR(ours, 2, 0.5, last_epoch=schedules[1].last_epoch)
    schedule.load_state_dict(schedules[1].state_dict())
    ours.param_groups[0]['lr'] = switched.param_groups[0]['lr']
    for net, o, s in ((first, theirs, schedules[0]), (second, ours, schedule)):
        for _ in range(3):
            train(net, o, 1)
            s.step()
    assert ours.param_groups[0]['lr'] == theirs.param_groups[0]['lr'] == 0.0125
    torch.testing.assert_close(list(second.parameters()), list(first.parameters()), rtol=1e-12, atol=1e-12)


def test_parameters_that_torch_has_not_stepped() -> None:
    """Frozen ones are taken over; one that was merely unused has taken fewer steps, which one count cannot say."""
    net = network()
    net[0].requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, 2)
    ours = interop.from_torch_optimizer(optimizer)
    assert int(ours.state_groups[0][0].count) == 2
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net[2](torch.ones(4, dtype=f64)).sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"differ in 'step'.*different groups"):
        interop.from_torch_optimizer(optimizer)
    momentum = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    momentum.step()
    twin = copy.deepcopy(net)
    ours, expected = interop.from_torch_optimizer(momentum), copy.deepcopy(momentum)
    expected = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    expected.load_state_dict(copy.deepcopy(momentum.state_dict()))
    train(net, ours, 3)
    train(twin, expected, 3)
    torch.testing.assert_close(list(net.parameters()), list(twin.parameters()), rtol=1e-12, atol=1e-12)


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], list[str]]] = {
    'amsgrad': (torch.optim.Adam, {'amsgrad': True}, ValueError, ['Group 0', 'amsgrad=True', 'use torchopt.amsgrad']),
    'maximize': (torch.optim.Adamax, {'maximize': True}, ValueError, ['maximize=True', 'AdaMax']),
    'decoupled': (torch.optim.RAdam, {'decoupled_weight_decay': True}, ValueError, ['RAdam', 'scale_by_radam()']),
    'NAdam': (torch.optim.NAdam, {}, TypeError, ['NAdam', 'has no counterpart', 'decay rate increases', 'RMSprop']),
    'Adafactor': (torch.optim.Adafactor, {}, TypeError, ['no counterpart', 'adafactor(lr, min_dim_size_to_factor=1)']),
    'Rprop': (torch.optim.Rprop, {}, TypeError, ['Rprop', 'has no counterpart']),
    'subclass': (type('Mine', (torch.optim.Adam,), {}), {}, TypeError, ['Mine', 'has no counterpart']),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_has_no_twin(case: str) -> None:
    make, options, error, words = REFUSED[case]
    with pytest.raises(error) as caught:
        interop.from_torch_optimizer(make(network().parameters(), **options))
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize('run', ['SGD momentum', 'Adam', 'AdamW', 'RMSprop'])
def test_parameters_that_are_used_in_turn_or_frozen_go_on_as_in_torch(run: str) -> None:
    """zero_grad() sets gradients to None, so a parameter without a new one does not move."""
    make, options = RUNS[run]

    def train_parts(switch: bool) -> list[torch.Tensor]:
        w = [nn.Parameter(torch.ones(2, dtype=f64)) for _ in range(3)]
        optimizer: torch.optim.Optimizer = make([{'params': [p]} for p in w], **options)
        for t in range(8):
            if t == 4 and switch:
                optimizer = interop.from_torch_optimizer(optimizer)
            optimizer.zero_grad()
            trained = w[:1] if t >= 4 else w  # after the switch, the others are frozen or unused
            w[1].requires_grad_(t < 4)
            (torch.stack(list(trained)) ** 2).sum().backward()
            optimizer.step()
        return w

    torch.testing.assert_close(train_parts(True), train_parts(False), rtol=1e-12, atol=1e-12)


def test_zero_grad_of_a_transformation_as_torch_optimizer() -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer = interop.as_torch_optimizer(torchopt.adam(0.1), [w])
    w.sum().backward()
    optimizer.zero_grad()
    assert w.grad is None


def run_of(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> torch.Tensor:
    torch.manual_seed(2)
    for _ in range(6):
        p.grad = torch.randn_like(p) + p.detach()
        optimizer.step()
    return p.detach()


t = torchopt.transform
# The table of docs/getting_started.md: torch's class, its options, our transformation, and whether the numbers agree.
TABLE: dict[str, tuple[Any, dict[str, Any], Any, bool]] = {
    'RAdam decoupled': (
        torch.optim.RAdam,
        {'weight_decay': 0.1, 'decoupled_weight_decay': True},
        torchopt.chain(t.scale_by_radam(eps=1e-8), t.add_decayed_weights(0.1), t.scale_by_learning_rate(0.1)),
        True,
    ),
    'Adafactor': (torch.optim.Adafactor, {}, torchopt.adafactor(0.1, min_dim_size_to_factor=1), True),
    'Adafactor default': (torch.optim.Adafactor, {}, torchopt.adafactor(0.1), False),
    'amsgrad': (torch.optim.Adam, {'amsgrad': True}, torchopt.amsgrad(0.1), False),
    'NAdam': (torch.optim.NAdam, {}, torchopt.nadam(0.1), False),
    'Rprop': (torch.optim.Rprop, {}, torchopt.rprop(0.1), False),
    'Muon': (torch.optim.Muon, {'weight_decay': 0.0}, torchopt.contrib.muon(0.1), False),
}


@pytest.mark.parametrize('row', TABLE)
def test_the_table_of_classes_in_the_guide(row: str) -> None:
    theirs, options, ours, agree = TABLE[row]
    p = nn.Parameter(torch.linspace(-1.0, 1.0, 12, dtype=f64).reshape(4, 3))
    q = copy.deepcopy(p)
    difference = run_of(theirs([p], lr=0.1, **options), p) - run_of(torchopt.Optimizer([q], ours), q)
    assert difference.abs().max() < 1e-12 if agree else difference.abs().max() > 1e-3


def test_mixed_groups() -> None:
    net = network()
    groups = [{'params': net[0].parameters(), 'decoupled_weight_decay': True}, {'params': net[2].parameters()}]
    with pytest.raises(ValueError, match='Split it into two'):
        interop.from_torch_optimizer(torch.optim.Adam(groups))


def test_as_torch_optimizer() -> None:
    first, second = network(), network()
    ours = interop.as_torch_optimizer(
        torchopt.chain(torchopt.clip_grad_norm(0.1), torchopt.adam(0.1)), first.parameters()
    )
    theirs = torch.optim.Adam(second.parameters(), lr=0.1)
    theirs.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(second.parameters(), 0.1) and None)
    assert isinstance(ours, torch.optim.Optimizer)
    train(first, ours, 4)
    train(second, theirs, 4)
    torch.testing.assert_close(list(first.parameters()), list(second.parameters()), rtol=1e-6, atol=1e-7)
