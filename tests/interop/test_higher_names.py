# SPDX-License-Identifier: Apache-2.0
"""The public names of `higher` 0.2.1: each is here, or says what to use instead."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt.interop import higher

NAMES = {
    'higher': 'innerloop_ctx monkeypatch get_diff_optim create_diff_optim get_trainable_opt_params '
    'apply_trainable_opt_params optim patch utils',
    'higher.optim': 'DifferentiableOptimizer DifferentiableSGD DifferentiableAdam DifferentiableAdamax '
    'DifferentiableAdadelta DifferentiableAdagrad DifferentiableRMSprop get_diff_optim create_diff_optim '
    'get_trainable_opt_params apply_trainable_opt_params',
    'higher.patch': 'monkeypatch make_functional buffer_sync',
    'higher.utils': 'flatten get_func_params',
}
WITHOUT_COUNTERPART = {
    ('higher', 'register_optim'): 'pass your own transformation as opt',
    ('higher.optim', 'register_optim'): 'pass your own transformation as opt',
    ('higher.optim', 'DifferentiableASGD'): 'ASGD has no counterpart',
    ('higher.optim', 'DifferentiableRprop'): 'torchopt.rprop(lr)',
}
CLASSES = {
    higher.optim.DifferentiableSGD: torch.optim.SGD,
    higher.optim.DifferentiableAdam: torch.optim.Adam,
    higher.optim.DifferentiableAdamax: torch.optim.Adamax,
    higher.optim.DifferentiableAdadelta: torch.optim.Adadelta,
    higher.optim.DifferentiableAdagrad: torch.optim.Adagrad,
    higher.optim.DifferentiableRMSprop: torch.optim.RMSprop,
}


def module(path: str) -> Any:
    _, _, rest = path.partition('.')
    return getattr(higher, rest) if rest else higher


@pytest.mark.parametrize(('path', 'name'), [(path, name) for path in NAMES for name in NAMES[path].split()])
def test_name(path: str, name: str) -> None:
    assert getattr(module(path), name) is not None


@pytest.mark.parametrize(('path', 'name'), list(WITHOUT_COUNTERPART))
def test_name_without_counterpart(path: str, name: str) -> None:
    with pytest.raises(AttributeError, match=re.escape(WITHOUT_COUNTERPART[path, name])):
        getattr(module(path), name)
    assert not hasattr(module(path), 'no_such_name')


@pytest.mark.parametrize('name', ['optim', 'patch'])
def test_modules_can_be_imported(name: str) -> None:
    assert importlib.import_module(f'torchopt.interop.higher.{name}') is getattr(higher, name)


@pytest.fixture
def net() -> Iterator[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


X = torch.tensor([[0.5, -1.0], [2.0, 0.25], [-0.5, 1.5]])


@pytest.mark.parametrize('kind', list(CLASSES), ids=lambda kind: kind.__name__)
def test_classes(kind: type[higher.DifferentiableOptimizer], net: nn.Module) -> None:
    """Both ways to make an optimizer give the class, and its steps are those of torch.optim."""
    net = nn.Sequential(net[0], net[2])  # with no parameter whose gradient is zero but for rounding
    opt = CLASSES[kind](net.parameters(), lr=0.1)
    results = []
    for make in (kind, higher.get_diff_optim):
        fmodel = higher.monkeypatch(net)
        diffopt = make(opt, net.parameters(), fmodel)
        assert type(diffopt) is kind
        for _ in range(2):
            diffopt.step(fmodel(X).square().sum())
        results.append(fmodel.fast_params)
    for _ in range(2):
        opt.zero_grad()
        net(X).square().sum().backward()
        opt.step()
    for result in results:
        torch.testing.assert_close(result, list(net.parameters()), rtol=1e-4, atol=1e-5)


def test_class_of_another_optimizer(net: nn.Module) -> None:
    with pytest.raises(TypeError, match=r'takes the steps of Adam, but opt is a SGD.*get_diff_optim'):
        higher.optim.DifferentiableAdam(torch.optim.SGD(net.parameters(), lr=0.1), net.parameters())
    lion = higher.get_diff_optim(torchopt.Optimizer(net.parameters(), torchopt.lion(0.1)), net.parameters())
    assert type(lion) is higher.DifferentiableOptimizer


def test_create_diff_optim(net: nn.Module) -> None:
    """From a class, for the parameters of a functional module, for a list, and for groups with options."""
    fmodel = higher.monkeypatch(net)
    rates = {'lr': [torch.tensor(0.25, requires_grad=True)]}
    diffopt = higher.create_diff_optim(torch.optim.SGD, {'lr': 0.1}, fmodel=fmodel, override=rates)
    before = fmodel.fast_params
    loss = fmodel(X).square().sum()
    for p, old, g in zip(diffopt.step(loss), before, torch.autograd.grad(loss, before)):
        torch.testing.assert_close(p, old - 0.25 * g)

    start = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)]
    groups = [{'params': start[:1], 'lr': 0.5}, {'params': start[1]}]
    diffopt = higher.create_diff_optim(
        torch.optim.SGD, {'lr': 0.125}, groups, grad_callback=lambda gs: [-g for g in gs]
    )
    first, second = diffopt.step(start[0].sum() + start[1], params=start)
    torch.testing.assert_close((first, second), (start[0] + 0.5, start[1] + 0.125))
    with pytest.raises(ValueError, match='Pass params or fmodel'):
        higher.create_diff_optim(torch.optim.SGD, {'lr': 0.1})


def test_grad_callback_of_a_step_comes_first() -> None:
    start = [torch.tensor([1.0], requires_grad=True)]
    opt = torch.optim.SGD(start, lr=1.0)
    diffopt = higher.get_diff_optim(opt, start, grad_callback=lambda grads: [10 * g for g in grads])
    assert diffopt.step(start[0].sum(), params=start)[0].item() == -9.0
    assert diffopt.step(start[0].sum(), params=start, grad_callback=lambda grads: grads)[0].item() == 0.0


def test_make_functional(net: nn.Module) -> None:
    """It uses the parameters of the module until it gets others, and the others get the derivatives."""
    fmodel = higher.patch.make_functional(net)
    torch.testing.assert_close(fmodel(X), net(X))
    params = [torch.zeros_like(p, requires_grad=True) for p in net.parameters()]
    fmodel(X, params=params).sum().backward()
    assert params[-1].grad is not None and all(p.grad is None for p in net.parameters())
    assert fmodel.init_fast_params[0] is params[0] and fmodel.track_higher_grads
    fmodel.track_higher_grads = False
    assert next(fmodel.parameters(time=0)) is params[0]
    fmodel.update_params(params)
    with pytest.raises(ValueError, match='keeps only the current'):
        fmodel.parameters(time=0)
    fmodel.track_higher_grads = True
    fmodel.update_params([2.0 * p for p in params])
    assert next(fmodel.parameters(time=1)) is params[0] is not next(fmodel.parameters(time=2))
    with pytest.raises(TypeError, match='expected True or False'):
        fmodel.track_higher_grads = 1
    with pytest.raises(IndexError, match='replaced 0 times'):
        higher.patch.make_functional(net).parameters(time=0)
    seen = []
    made = higher.patch.make_functional(net, lambda *given: seen.append(given))
    assert seen == [(made, net)]


def test_a_parameter_set_as_an_attribute() -> None:
    """It replaces the parameter, under all names of tied ones, and counts as a step."""
    net = nn.Linear(2, 2)
    net.register_parameter('tied', net.weight)
    net.register_buffer('scale', torch.ones(1))
    fmodel = higher.monkeypatch(net)
    weight = torch.ones(2, 2, requires_grad=True)
    fmodel.weight, fmodel.scale, fmodel.note = 2.0 * weight, torch.zeros(1), torch.ones(3)
    assert fmodel.tied is fmodel.weight is fmodel.fast_params[0] is next(fmodel.parameters(time=1))
    assert fmodel.fast_params[1] is fmodel.init_fast_params[1] and list(fmodel.buffers()) == [fmodel.scale]
    fmodel(torch.ones(2)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((2, 2), 2.0))
    with pytest.raises(ValueError, match=r"'weight' has shape \(3,\); expected \(2, 2\)"):
        fmodel.weight = torch.ones(3)


def test_buffer_sync(net: nn.Module) -> None:
    fmodel = higher.patch.make_functional(net)
    net(X)
    higher.patch.buffer_sync(net, fmodel)
    for own, theirs in zip(fmodel.buffers(), net.buffers(), strict=True):
        assert torch.equal(own, theirs) and own is not theirs
    with pytest.raises(KeyError, match="no submodule '1'"):
        higher.patch.buffer_sync(net, nn.Linear(1, 1))


def test_utils(net: nn.Module) -> None:
    assert higher.utils.flatten({'a': [1, (2, {'b': 3})], 'c': 4}) == [1, 2, 3, 4]
    net[0].bias.requires_grad_(False)
    copies = higher.utils.get_func_params(net)
    for own, p in zip(copies, net.parameters(), strict=True):
        assert torch.equal(own, p) and own.requires_grad == p.requires_grad and own.data_ptr() != p.data_ptr()
    assert higher.utils.get_func_params(net, safe_copy=False)[0].data_ptr() == net[0].weight.data_ptr()
