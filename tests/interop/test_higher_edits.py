# SPDX-License-Identifier: Apache-2.0
"""What a program may change between the steps of `higher`, and mistakes in what it passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchopt
from torchopt.interop import higher

X = torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).reshape(4, 3)
Y = X.sin().sum(1, keepdim=True)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def opt_of(net: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr)


def loss_of(net: Callable[[Tensor], Tensor]) -> Tensor:
    return (net(X) - Y).square().mean()


def close(x: Any, y: Any) -> None:
    torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_methods_of_the_copy_leave_the_module_alone() -> None:
    """Its parameters are copies with a graph: the gradients of the tasks add up."""
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        with higher.innerloop_ctx(net, opt_of(net), copy_initial_weights=False) as (fmodel, diffopt):
            fmodel.zero_grad()
            diffopt.step(loss_of(fmodel))
            loss_of(fmodel).backward()
    twice = [p.grad for p in net.parameters()]
    net.zero_grad()
    with higher.innerloop_ctx(net, opt_of(net), copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
        loss_of(fmodel).backward()
    close(twice, [2 * p.grad for p in net.parameters()])
    fmodel = higher.monkeypatch(net, copy_initial_weights=False)
    fmodel.load_state_dict({name: torch.zeros_like(p) for name, p in net.named_parameters()})
    fmodel.float()
    close(list(net.parameters()), before)


@pytest.mark.parametrize('rate', [0.05, 'learned'])
def test_options_may_be_changed_in_param_groups(rate: Any) -> None:
    net = network()
    rate = torch.tensor(0.05, dtype=torch.float64, requires_grad=True) if rate == 'learned' else rate
    with higher.innerloop_ctx(net, opt_of(net, 0.1), copy_initial_weights=False) as (fmodel, diffopt):
        group = diffopt.param_groups[0]
        diffopt.step(loss_of(fmodel))
        group['lr'] = rate
        diffopt.step(loss_of(fmodel))
        found = loss_of(fmodel)
        if isinstance(rate, torch.Tensor):
            assert torch.autograd.grad(found, rate, retain_graph=True)[0] != 0
    with higher.innerloop_ctx(net, opt_of(net, 0.1), copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
        diffopt.step(loss_of(fmodel), override={'lr': [0.05]})
        close([found], [loss_of(fmodel)])
        diffopt.param_groups[0]['lrr'] = 0.1
        with pytest.raises(TypeError, match=r"param_groups\[0\]\['lrr'\] was added"):
            diffopt.step(loss_of(fmodel))
        del diffopt.param_groups[0]['lrr']
        diffopt.param_groups[0]['lr'] = -1.0
        with pytest.raises(ValueError, match='Invalid learning rate: -1'):
            diffopt.step(loss_of(fmodel))


def test_stop_gradient_detaches_the_state() -> None:
    net = network()
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
        torchopt.stop_gradient((fmodel, diffopt))
        diffopt.step(loss_of(fmodel))
        found = torch.autograd.grad(loss_of(fmodel), list(net.parameters()), allow_unused=True)
    assert all(g is None for g in found)


@pytest.mark.parametrize(
    ('params', 'error', 'message'),
    [
        (lambda ps: dict(enumerate(ps)), TypeError, 'list'),
        (lambda ps: ['a'] * len(ps), TypeError, "'0.weight' is of type str"),
        (lambda ps: [p.sum() for p in ps], ValueError, r"'0.weight' has shape \(\)"),
    ],
    ids=['dict', 'strings', 'shapes'],
)
def test_parameters_that_do_not_fit(params: Any, error: type[Exception], message: str) -> None:
    net = network()
    fmodel = higher.monkeypatch(net)
    expected = fmodel(X)
    with pytest.raises(error, match=message):
        fmodel(X, params=params(list(net.parameters())))
    assert torch.equal(fmodel(X), expected)


@pytest.mark.parametrize('found', [None, torch.ones(())], ids=['None', 'tensor'])
def test_a_callback_that_returns_no_gradients(found: Any) -> None:
    net = network()
    with higher.innerloop_ctx(net, opt_of(net)) as (fmodel, diffopt):
        with pytest.raises(TypeError, match='grad_callback returned an object of type'):
            diffopt.step(loss_of(fmodel), grad_callback=lambda grads: found)
        with pytest.raises(TypeError, match='override is of type list'):
            diffopt.step(loss_of(fmodel), override=[0.1])


def test_options_to_write_back_are_lists() -> None:
    opt = opt_of(network())
    with pytest.raises(TypeError, match=r"override\['lr'\] is a tensor of shape \(\); expected a list"):
        higher.apply_trainable_opt_params(opt, {'lr': torch.tensor(0.1)})


SWITCHES = [
    (torch.optim.Adagrad, 'maximize', True),
    (torch.optim.SGD, 'maximize', True),
    *(
        (kind, 'weight_decay', 0.1)
        for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.Adadelta, torch.optim.Adamax)
    ),
]


@pytest.mark.parametrize('where', ['loop', 'step', 'groups'])
@pytest.mark.parametrize('is_on', [False, True])
@pytest.mark.parametrize(('kind', 'name', 'value'), SWITCHES, ids=lambda x: getattr(x, '__name__', str(x)))
def test_options_without_a_state_may_be_switched(kind: Any, name: str, value: Any, is_on: bool, where: str) -> None:
    before, after = (value, type(value)()) if is_on else (type(value)(), value)
    net = network()
    opt = kind(net.parameters(), lr=0.1, **{name: before})
    loss_of(net).backward()
    opt.step()
    override = {name: [after]}
    with higher.innerloop_ctx(net, opt, override=override if where == 'loop' else None) as (fmodel, diffopt):
        for i in range(2):
            if where == 'groups' and i:
                diffopt.param_groups[0][name] = after
            diffopt.step(loss_of(fmodel), override=override if where == 'step' and i else None)
        found = list(fmodel.parameters())
    for i in range(2):
        opt.param_groups[0][name] = after if i or where == 'loop' else before
        opt.zero_grad()
        loss_of(net).backward()
        opt.step()
    close(found, list(net.parameters()))


@pytest.mark.parametrize('values', [(0.0, 0.9), (0.9, 0.0)])
def test_an_option_with_a_state_is_fixed(values: tuple[float, float]) -> None:
    net = network()
    opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=values[0])
    with higher.innerloop_ctx(net, opt) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
        before = list(fmodel.parameters())
        with pytest.raises(ValueError, match=r"group's momentum changed, .* keeps another state. Restore the value"):
            diffopt.step(loss_of(fmodel), override={'momentum': values[1:]})
        assert all(a is b for a, b in zip(fmodel.parameters(), before, strict=True))
        assert diffopt.param_groups[0]['momentum'] == values[0]


@pytest.mark.parametrize('kind', [nn.ParameterList, torch.tensor])
def test_learned_options_may_be_tensors_and_parameter_lists(kind: Any) -> None:
    rates = [torch.tensor(r, dtype=torch.float64, requires_grad=True) for r in (0.1, 0.03)]
    learned = nn.ParameterList(rates) if kind is nn.ParameterList else torch.stack(rates).detach().requires_grad_()
    leaves = list(learned.parameters()) if isinstance(learned, nn.ParameterList) else [learned]

    def meta(values: Any, wrt: Any) -> Any:
        net = network()
        opt = torch.optim.SGD([{'params': net[0].parameters()}, {'params': net[2].parameters()}], lr=1.0)
        with higher.innerloop_ctx(net, opt, override={'lr': values}) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step(loss_of(fmodel))
            return torch.autograd.grad(loss_of(fmodel), wrt)

    found = meta(learned, leaves)
    close([torch.stack(found).reshape(2)], [torch.stack(meta(rates, rates))])
    opt = torch.optim.SGD([{'params': p} for p in network().parameters()][:2], lr=1.0)
    higher.apply_trainable_opt_params(opt, {'lr': learned})
    assert [group['lr'] for group in opt.param_groups] == [0.1, 0.03]


def test_multi_steps() -> None:
    tx, net = torchopt.transform.MultiSteps(torchopt.sgd(0.1), 2), network()
    with higher.innerloop_ctx(net, tx) as (fmodel, diffopt):
        for _ in range(4):
            diffopt.step(loss_of(fmodel))
        found = list(fmodel.parameters())
    optimizer = torchopt.MetaOptimizer(net, tx)
    for _ in range(4):
        optimizer.step(loss_of(net))
    close(found, list(net.parameters()))
