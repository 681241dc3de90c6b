# SPDX-License-Identifier: Apache-2.0
"""Inner loops as the library `higher` writes them, against loops that are written out by hand."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import torchopt
from torchopt.interop import higher

f64 = torch.float64
X = torch.linspace(-1.0, 2.0, 12, dtype=f64).reshape(4, 3)
Y = X.sin().sum(1, keepdim=True)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def loss_of(net: Callable[[Tensor], Tensor], shift: float = 0.0) -> Tensor:
    return (net(X + shift) - Y).square().mean()


def close(x: Any, y: Any) -> None:
    torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


# -- the rules of torch.optim, written out for one parameter -----------------------------------------------------------


def sgd(p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
    if o['weight_decay']:
        g = g + o['weight_decay'] * p
    if o['momentum']:
        s['momentum_buffer'] = g = g if 'momentum_buffer' not in s else o['momentum'] * s['momentum_buffer'] + g
    return p - o['lr'] * g


def adam(p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any], decoupled: bool = False) -> Tensor:
    if o['weight_decay'] and decoupled:
        p = p - o['lr'] * o['weight_decay'] * p
    elif o['weight_decay']:
        g = g + o['weight_decay'] * p
    b1, b2 = o['betas']
    s['step'] = s.get('step', 0) + 1
    s['exp_avg'] = b1 * s.get('exp_avg', 0) + (1 - b1) * g
    s['exp_avg_sq'] = b2 * s.get('exp_avg_sq', 0) + (1 - b2) * g * g
    t = float(s['step'])
    return p - o['lr'] * (s['exp_avg'] / (1 - b1**t)) / ((s['exp_avg_sq'] / (1 - b2**t)).sqrt() + o['eps'])


def adamw(p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
    return adam(p, g, s, o, decoupled=True)


def rmsprop(p: Tensor, g: Tensor, s: dict[str, Any], o: dict[str, Any]) -> Tensor:
    s['square_avg'] = o['alpha'] * s.get('square_avg', 0) + (1 - o['alpha']) * g * g
    return p - o['lr'] * g / (s['square_avg'].sqrt() + o['eps'])


RULES: dict[str, tuple[Any, dict[str, Any], Callable[..., Tensor]]] = {
    'SGD': (torch.optim.SGD, {'lr': 0.1}, sgd),
    'SGD momentum': (torch.optim.SGD, {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.1}, sgd),
    'Adam': (torch.optim.Adam, {'lr': 0.05}, adam),
    'Adam decay': (torch.optim.Adam, {'lr': 0.05, 'betas': (0.7, 0.9), 'eps': 1e-3, 'weight_decay': 0.1}, adam),
    'AdamW': (torch.optim.AdamW, {'lr': 0.05, 'weight_decay': 0.2}, adamw),
    'RMSprop': (torch.optim.RMSprop, {'lr': 0.01, 'eps': 1e-4}, rmsprop),
}


def by_hand(net: nn.Module, opt: torch.optim.Optimizer, rule: Callable[..., Tensor], steps: int) -> dict[str, Tensor]:
    """The parameters after steps of the inner loop, as functions of those of the network."""
    names = {p: name for name, p in net.named_parameters()}
    params: dict[str, Tensor] = {name: p for p, name in names.items()}
    states = {
        name: {k: v.clone() if isinstance(v, Tensor) else v for k, v in opt.state.get(p, {}).items() if v is not None}
        for p, name in names.items()
    }
    for _ in range(steps):
        grads = torch.autograd.grad(
            loss_of(lambda x: functional_call(net, params, (x,))), list(params.values()), create_graph=True
        )
        moved = dict(zip(params, grads, strict=True))
        for group in opt.param_groups:
            for p in group['params']:
                name = names[p]
                params[name] = rule(params[name], moved[name], states[name], group)
    return params


def two_groups(net: nn.Sequential, make: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    return make([{'params': net[0].parameters()}, {'params': net[2].parameters(), 'lr': 0.03}], **options)


@pytest.mark.parametrize('before', [0, 3])
@pytest.mark.parametrize('rule', RULES)
def test_values_and_both_orders(rule: str, before: int) -> None:
    """With two groups, and state that is carried over; gradients of the initial weights, and their gradients."""
    make, options, written = RULES[rule]
    net = network()
    opt = two_groups(net, make, options)
    for _ in range(before):
        opt.zero_grad()
        loss_of(net).backward()
        opt.step()
    opt.zero_grad()
    saved = copy.deepcopy(opt.state_dict())

    expected = by_hand(net, opt, written, 3)
    outer = loss_of(lambda x: functional_call(net, expected, (x,)), 0.3)
    first = torch.autograd.grad(outer, list(net.parameters()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(net.parameters()))

    with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(3):
            new = diffopt.step(loss_of(fmodel))
        assert all(a is b for a, b in zip(fmodel.parameters(), new, strict=True))
        close(new, list(expected.values()))
        ours = torch.autograd.grad(loss_of(fmodel, 0.3), list(net.parameters()), create_graph=True)
        close(ours, first)
        close(torch.autograd.grad(sum(g.square().sum() for g in ours), list(net.parameters())), second)
    assert str(opt.state_dict()) == str(saved)
    assert all(p.grad is None for p in net.parameters())


def test_maml() -> None:
    """The pattern of higher's own example: tasks share the initialization, backward in the block adds up."""
    net, twin = network(), network()
    opt, other = (torch.optim.SGD(n.parameters(), lr=0.1) for n in (net, twin))
    total = 0.0
    for task in (0.1, -0.4, 0.7):
        with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(2):
                diffopt.step(loss_of(fmodel, task))
            loss_of(fmodel, -task).backward()
        params = dict(twin.named_parameters())
        for _ in range(2):
            inner = loss_of(lambda x, held=params: functional_call(twin, held, (x,)), task)
            grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
            params = {name: p - 0.1 * g for (name, p), g in zip(params.items(), grads, strict=True)}
        total = total + loss_of(lambda x, held=params: functional_call(twin, held, (x,)), -task)
    total.backward()
    assert isinstance(total, Tensor)
    close([p.grad for p in net.parameters()], [p.grad for p in twin.parameters()])
    assert not other.state


def test_copies_of_the_initial_weights() -> None:
    net = network()
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    with higher.innerloop_ctx(net, opt) as (fmodel, diffopt):
        start = list(fmodel.parameters())
        assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in start)
        diffopt.step(loss_of(fmodel))
        loss_of(fmodel).backward()
        assert all(a is b for a, b in zip(fmodel.parameters(time=0), start, strict=True))
        assert all(p.grad is None for p in net.parameters())
    reference = network()
    loss_of(lambda x: functional_call(reference, by_hand(reference, opt_of(reference), sgd, 1), (x,))).backward()
    close([p.grad for p in start], [p.grad for p in reference.parameters()])


def opt_of(net: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=lr)


def test_buffers_are_copies() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    before = copy.deepcopy(list(net.buffers()))
    with higher.innerloop_ctx(net, opt_of(net), copy_initial_weights=False) as (fmodel, diffopt):
        torch.manual_seed(3)
        diffopt.step(loss_of(fmodel))
        assert int(fmodel[1].num_batches_tracked) == 1 and not torch.equal(fmodel[1].running_mean, before[0])
        new = dict(fmodel.named_parameters())
        loss_of(fmodel).backward()
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))
    torch.manual_seed(3)  # the same dropout
    twin = copy.deepcopy(net)
    grads = torch.autograd.grad(loss_of(twin), list(twin.parameters()), allow_unused=True)
    close(list(new.values()), [p - 0.1 * g for p, g in zip(twin.parameters(), grads, strict=True)])
    assert all(p.grad is not None for p in net.parameters())
    assert fmodel.training and not higher.monkeypatch(net.eval()).training


def test_tied_and_frozen() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)).double()
    net[1].weight = net[0].weight
    net[2].weight.requires_grad_(False)
    with higher.innerloop_ctx(net, opt_of(net), copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
        assert fmodel[0].weight is fmodel[1].weight and fmodel[0].weight is not net[0].weight
        assert torch.equal(fmodel[2].weight, net[2].weight) and not fmodel[2].weight.requires_grad
        assert len(list(fmodel.parameters())) == len(list(net.parameters()))
        grads = torch.autograd.grad(loss_of(net), [net[0].weight, net[0].bias])
        close(
            [fmodel[0].weight, fmodel[0].bias], [p - 0.1 * g for p, g in zip(net[0].parameters(), grads, strict=True)]
        )
    with higher.innerloop_ctx(net, opt_of(net)) as (fmodel, _):
        assert fmodel[0].weight is fmodel[1].weight and not fmodel[2].weight.requires_grad


def test_parameters_that_the_optimizer_does_not_have_stay() -> None:
    net = network()
    with higher.innerloop_ctx(net, torch.optim.Adam(net[2].parameters()), copy_initial_weights=False) as (fmodel, diff):
        diff.step(loss_of(fmodel))
        assert torch.equal(fmodel[0].weight, net[0].weight) and not torch.equal(fmodel[2].weight, net[2].weight)


def test_recurrent_networks() -> None:
    """They keep lists of their weights, which have to follow."""
    torch.manual_seed(0)
    net = nn.LSTM(3, 2).double()
    x = X.reshape(4, 1, 3)
    with higher.innerloop_ctx(net, opt_of(net, 1.0), copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(fmodel(x)[0].square().sum())
        expected = functional_call(net, dict(fmodel.named_parameters()), (x,))[0]
        close(fmodel(x)[0], expected)
        assert not torch.allclose(expected, net(x)[0])
        expected.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_meta_parameters_and_other_tensors_are_those_of_the_module() -> None:
    scale = torch.tensor(2.0, dtype=f64, requires_grad=True)

    class Scaled(torchopt.nn.MetaGradientModule):
        def __init__(self, scale: Tensor) -> None:
            super().__init__()
            self.scale, self.net = scale, network()
            vars(self)['offset'] = 0.1 * scale  # no parameter, and not a leaf
            self.register_buffer('seen', torch.zeros((), dtype=f64))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1.0
            return self.scale * self.net(x) + self.offset

    net = Scaled(scale)
    with higher.innerloop_ctx(net, opt_of(net), copy_initial_weights=True) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
        grad = torch.autograd.grad(loss_of(fmodel), scale, retain_graph=True)[0]
        assert (fmodel.seen.item(), net.seen.item()) == (2.0, 0.0)
    params = dict(net.named_parameters())
    inner = loss_of(lambda x: functional_call(net, params, (x,)))
    grads = torch.autograd.grad(inner, list(params.values()), create_graph=True)
    moved = {name: p - 0.1 * g for (name, p), g in zip(params.items(), grads, strict=True)}
    close(grad, torch.autograd.grad(loss_of(lambda x: functional_call(net, moved, (x,))), scale)[0])


# -- the faces of the optimizer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['torchopt', 'transformation', 'torch'])
def test_what_an_optimizer_may_be(kind: str) -> None:
    net = network()
    options = {'lr': 0.1}
    opts: dict[str, Any] = {
        'torchopt': torchopt.Adam(net.parameters(), **options),
        'transformation': torchopt.adam(**options),
        'torch': torch.optim.Adam(net.parameters(), **options),
    }
    with higher.innerloop_ctx(net, opts[kind], copy_initial_weights=False) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(loss_of(fmodel))
        close(list(fmodel.parameters()), list(by_hand(net, opts['torch'], adam, 2).values()))


def test_state_of_our_optimizers_is_copied() -> None:
    net = network()
    opt = torchopt.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loss_of(net).backward()
    opt.step()
    opt.param_groups[0]['lr'] = 0.2  # as a scheduler would
    twin = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    for p in net.parameters():
        twin.state[p]['momentum_buffer'] = p.grad.clone()
    with higher.innerloop_ctx(net, opt, copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
        close(list(fmodel.parameters()), list(by_hand(net, twin, sgd, 1).values()))
        momentum = next(iter(diffopt._states[0][0].trace)).detach().clone()
        for x in torchopt.tree.leaves(opt.state_groups):  # as a step in place would
            x.zero_()
        torch.autograd.grad(loss_of(fmodel), list(net.parameters()))
        assert torch.equal(diffopt._states[0][0].trace[0], momentum)


def test_learned_options() -> None:
    net = network()
    opt = two_groups(net, torch.optim.SGD, {'lr': 0.1, 'momentum': 0.5})
    learned = higher.get_trainable_opt_params(opt)
    assert set(learned) == {'lr', 'momentum', 'dampening', 'weight_decay'}
    torch.testing.assert_close([x.detach() for x in learned['lr']], [torch.tensor(0.1), torch.tensor(0.03)])
    rates = [torch.tensor(0.1, dtype=f64, requires_grad=True), torch.tensor(0.03, dtype=f64, requires_grad=True)]

    def outer(*lr: Tensor) -> Tensor:
        with higher.innerloop_ctx(net, opt, override={'lr': list(lr)}) as (fmodel, diffopt):
            assert diffopt.param_groups[1]['lr'] is lr[1]
            for _ in range(3):
                diffopt.step(loss_of(fmodel))
            return loss_of(fmodel)

    assert torch.autograd.gradcheck(outer, rates)
    with higher.innerloop_ctx(net, opt, override={'lr': [0.0]}) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
        close(list(fmodel.parameters()), list(net.parameters()))
        diffopt.step(loss_of(fmodel), override={'lr': [0.1]})
        assert [g['lr'] for g in diffopt.param_groups] == [0.1, 0.1]
        assert not torch.equal(fmodel[0].weight, net[0].weight)
    higher.apply_trainable_opt_params(opt, {'lr': [r * 2 for r in rates], 'momentum': [torch.tensor(0.25)]})
    assert [(g['lr'], g['momentum']) for g in opt.param_groups] == [(0.2, 0.25), (0.06, 0.25)]


def test_learned_betas() -> None:
    net = network()
    opt = torch.optim.Adam(net.parameters(), lr=0.1)
    learned = higher.get_trainable_opt_params(opt)
    assert [type(x) for x in learned['betas']] == [tuple]
    higher.apply_trainable_opt_params(opt, learned)
    assert opt.param_groups[0]['betas'] == pytest.approx((0.9, 0.999)) and type(opt.param_groups[0]['lr']) is float
    with higher.innerloop_ctx(net, opt, override={'betas': learned['betas']}) as (fmodel, diffopt):
        for _ in range(2):
            diffopt.step(loss_of(fmodel))
        grads = torch.autograd.grad(loss_of(fmodel), learned['betas'][0])
    assert all(g.isfinite() and g != 0 for g in grads)


def test_callback_params_and_time() -> None:
    net = network()
    seen: list[Any] = []

    def halve(grads: list[Any]) -> list[Any]:
        seen.append(grads)
        return [0.5 * g for g in grads]

    with higher.innerloop_ctx(net, opt_of(net), copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel), grad_callback=halve)
        assert seen[0][0].grad_fn is not None
        close(list(fmodel.parameters()), list(by_hand(net, opt_of(net, 0.05), sgd, 1).values()))
        names, other = dict(net.named_parameters()), [2 * p for p in net.parameters()]
        close(fmodel(X, params=other), functional_call(net, dict(zip(names, other, strict=True)), (X,)))
        assert all(a is b for a, b in zip(fmodel.parameters(), other, strict=True))
        assert all(a is b for a, b in zip(fmodel.parameters(time=2), other, strict=True))
        assert next(fmodel.parameters(time=-1)) is other[0]
        assert torch.equal(next(fmodel.parameters(time=0)), net[0].weight)
        diffopt.step(loss_of(fmodel))
        with pytest.raises(IndexError, match='replaced 3 times'):
            fmodel.parameters(time=4)


def test_without_a_model() -> None:
    net = network()
    fmodel = higher.monkeypatch(net, copy_initial_weights=False)
    diffopt = higher.get_diff_optim(torch.optim.Adam(net.parameters(), lr=0.1), net.parameters())
    params = list(net.parameters())
    for _ in range(2):
        params = diffopt.step(loss_of(lambda x, held=params: fmodel(x, params=held)), params=params)
    close(params, list(by_hand(net, torch.optim.Adam(net.parameters(), lr=0.1), adam, 2).values()))


def test_loops_in_loops() -> None:
    """The parameters of the inner model are those that the outer loop has come to, and carry its graph."""
    net = network()
    with higher.innerloop_ctx(net, opt_of(net), copy_initial_weights=False) as (outer, outer_opt):
        outer_opt.step(loss_of(outer))
        with higher.innerloop_ctx(outer, torchopt.sgd(0.1), copy_initial_weights=False) as (inner, inner_opt):
            inner_opt.step(loss_of(inner))
            assert type(inner) is type(outer) and inner is not outer
            assert all(map(torch.equal, inner.parameters(time=0), outer.parameters()))
            close(list(inner.parameters()), list(by_hand(net, opt_of(net), sgd, 2).values()))
            loss_of(inner).backward()
    assert all(p.grad is not None for p in net.parameters())


# -- memory ------------------------------------------------------------------------------------------------------------


def test_without_a_graph() -> None:
    net = network()
    opt = torch.optim.Adam(net.parameters(), lr=0.05)
    with higher.innerloop_ctx(net, opt, track_higher_grads=False) as (fmodel, diffopt):
        assert all(a is b for a, b in zip(fmodel.parameters(time=0), fmodel.parameters(), strict=True))
        diffopt.step(loss_of(fmodel))
        first = weakref.ref(fmodel[0].weight)
        for _ in range(2):
            new = diffopt.step(loss_of(fmodel))
        assert first() is None
        assert all(p.is_leaf and p.requires_grad and p.grad_fn is None for p in new)
        assert all(x.grad_fn is None for x in torchopt.tree.leaves(diffopt._states) if isinstance(x, Tensor))
        close(new, list(by_hand(net, opt, adam, 3).values()))
        assert all(a is b for a, b in zip(fmodel.parameters(time=3), new, strict=True))
        with pytest.raises(ValueError, match=r'time is 0.* replaced 3 times.*track_higher_grads=True'):
            fmodel.parameters(time=0)


def test_memory_is_released() -> None:
    """Without the garbage collector: there are no circles. The optimizer lets go at the end of the block."""
    net = network()
    gc.collect()
    gc.disable()
    try:
        with higher.innerloop_ctx(net, torch.optim.Adam(net.parameters()), copy_initial_weights=False) as (
            fmodel,
            diff,
        ):
            diff.step(loss_of(fmodel))
            middle = weakref.ref(fmodel[0].weight)
            moment = weakref.ref(next(x for x in torchopt.tree.leaves(diff._states) if x.ndim))
            diff.step(loss_of(fmodel))
            loss_of(fmodel).backward()
        assert middle() is not None
        del fmodel
        assert middle() is None and moment() is None
        with pytest.raises(RuntimeError, match='has ended'):
            diff.step(net(X).sum())
    finally:
        gc.enable()


def test_the_model_goes_on_after_the_block() -> None:
    net = network()
    with higher.innerloop_ctx(net, opt_of(net), copy_initial_weights=False) as (fmodel, diffopt):
        diffopt.step(loss_of(fmodel))
    loss_of(fmodel).backward()
    assert all(p.grad is not None for p in net.parameters())


# -- errors ------------------------------------------------------------------------------------------------------------


def with_loop(act: Callable[[Any, Any], Any], **kwargs: Any) -> Callable[[], Any]:
    def run() -> None:
        net = network()
        with higher.innerloop_ctx(net, two_groups(net, torch.optim.SGD, {'lr': 0.1}), **kwargs) as (fmodel, diffopt):
            before = list(fmodel.parameters())
            try:
                act(fmodel, diffopt)
            finally:
                assert all(a is b for a, b in zip(fmodel.parameters(), before, strict=True))
                assert [g['lr'] for g in diffopt.param_groups] == [0.1, 0.03]

    return run


def enter(make: Callable[[nn.Sequential], Any], model: Any = None) -> Callable[[], Any]:
    def run() -> None:
        net = network()
        with higher.innerloop_ctx(net if model is None else model, make(net)):
            raise AssertionError('the block ran')

    return run


ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    'no model': (enter(opt_of, model=3), TypeError, 'model is an int'),
    'no optimizer': (enter(lambda net: net), TypeError, 'opt is a Sequential'),
    'meta-optimizer': (
        enter(lambda net: torchopt.MetaSGD(net, lr=0.1)),
        TypeError,
        'opt is a MetaSGD.* takes differentiable steps itself',
    ),
    'has no counterpart': (enter(lambda net: torch.optim.NAdam(net.parameters())), TypeError, 'has no counterpart'),
    'another model': (enter(lambda net: opt_of(network())), ValueError, 'do not belong to the model'),
    'number of params': (with_loop(lambda f, d: f(X, params=[X])), ValueError, 'holds 1 tensors, but the module has 4'),
    'params of step': (with_loop(lambda f, d: d.step(loss_of(f), params=[X])), ValueError, 'params holds 1 entries'),
    'callback': (
        with_loop(lambda f, d: d.step(loss_of(f), grad_callback=lambda g: g[:1])),
        ValueError,
        'grad_callback returned holds 1',
    ),
    'unrelated loss': (
        with_loop(lambda f, d: d.step(torch.ones(1, requires_grad=True).sum())),
        ValueError,
        'depends on none of the parameters',
    ),
    'no graph': (with_loop(lambda f, d: d.step(loss_of(f).detach())), RuntimeError, 'loss has no graph'),
    'number': (with_loop(lambda f, d: d.step(3.0)), TypeError, 'loss is a float'),
    'option': (with_loop(lambda f, d: d.step(loss_of(f), override={'beta': [1]})), TypeError, "'beta' is not an"),
    'bare option': (with_loop(lambda f, d: d.step(loss_of(f), override={'lr': 1.0})), TypeError, 'expected a list'),
    'class of a transformation': (
        enter(lambda net: torchopt.transform.MultiSteps),
        TypeError,
        'is not a GradientTransformation',
    ),
    'no effect': (
        with_loop(lambda f, d: d.step(loss_of(f), checkpoint='mixed')),
        ValueError,
        "checkpoint='mixed' has no effect",
    ),
    'options of groups': (
        with_loop(lambda f, d: d.step(loss_of(f), override={'lr': [1.0] * 3})),
        ValueError,
        'each of the 2 groups',
    ),
    'range': (with_loop(lambda f, d: d.step(loss_of(f), override={'lr': [-1.0]})), ValueError, 'learning rate'),
    'past': (with_loop(lambda f, d: f.parameters(time=1)), IndexError, 'replaced 0 times'),
}


@pytest.mark.parametrize('case', ERRORS)
def test_errors(case: str) -> None:
    act, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        act()


def test_names_of_submodules_and_of_parameters() -> None:
    net = network()
    fmodel = higher.patch.monkeypatch(net)
    diffopt = higher.optim.get_diff_optim(opt_of(net), net.parameters(), fmodel)
    first = fmodel.fast_params
    assert all(a is b for a, b in zip(first, fmodel.init_fast_params, strict=True))
    new = diffopt.step(loss_of(fmodel))
    assert all(a is b for a, b in zip(fmodel.fast_params, new, strict=True))
    fmodel.fast_params = [2.0 * p for p in new]
    assert torch.equal(next(fmodel.parameters()), 2.0 * new[0])
    assert all(a is b for a, b in zip(first, fmodel.init_fast_params, strict=True))
    assert isinstance(diffopt, higher.optim.DifferentiableOptimizer)


def test_errors_without_a_loop() -> None:
    net = network()
    diffopt = higher.get_diff_optim(opt_of(net), net.parameters())
    with pytest.raises(ValueError, match='Pass params to step, or fmodel'):
        diffopt.step(loss_of(net))
    plain = higher.get_diff_optim(torchopt.sgd(0.1), net.parameters())
    with pytest.raises(TypeError, match='plain transformation'):
        plain.step(loss_of(net), params=net.parameters(), override={'lr': [1.0]})
    opt = opt_of(net)
    with pytest.raises(TypeError, match="'betas' is not an option of SGD"):
        higher.apply_trainable_opt_params(opt, {'lr': [0.5], 'betas': [0.1]})
    with pytest.raises(ValueError, match='holds 2 values'):
        higher.apply_trainable_opt_params(opt, {'momentum': [0.5], 'lr': [0.5, 0.1]})
    assert opt.param_groups[0]['lr'] == 0.1 and opt.param_groups[0]['momentum'] == 0
    with pytest.raises(TypeError, match='opt is a ChainedGradientTransformation'):
        higher.get_trainable_opt_params(torchopt.sgd(0.1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match='scripted'):
        higher.monkeypatch(torch.jit.script(nn.Linear(1, 1)))
