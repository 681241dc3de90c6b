# SPDX-License-Identifier: Apache-2.0
"""The PyTorch face: groups, gradients that are missing, closures, copies, states."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt.base import UninitializedState

f64 = torch.float64
X = torch.linspace(-1.0, 2.0, 12, dtype=f64).reshape(4, 3)
Y = torch.cos(3.0 * X.sum(dim=1, keepdim=True))

# Our class, options, and torch's class that gives the same numbers with them.
FACES: dict[str, tuple[Callable[..., torchopt.Optimizer], dict[str, Any], Any]] = {
    'SGD': (torchopt.SGD, {'lr': 0.1, 'momentum': 0.9}, torch.optim.SGD),
    'Adam': (torchopt.Adam, {'lr': 0.1}, torch.optim.Adam),
    'AdamW': (torchopt.AdamW, {'lr': 0.1}, torch.optim.AdamW),
    'AdaMax': (torchopt.AdaMax, {'lr': 0.1}, torch.optim.Adamax),
    'AdaDelta': (torchopt.AdaDelta, {'lr': 0.5}, torch.optim.Adadelta),
    'AdaGrad': (torchopt.AdaGrad, {'lr': 0.1, 'lr_decay': 0.1}, torch.optim.Adagrad),
    'RAdam': (torchopt.RAdam, {'lr': 0.1}, torch.optim.RAdam),
    'RMSProp': (torchopt.RMSProp, {'lr': 0.1, 'centered': True, 'momentum': 0.5}, torch.optim.RMSprop),
}
every = pytest.mark.parametrize('name', FACES)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def loss_of(net: nn.Module) -> torch.Tensor:
    return (net(X) - Y).square().mean()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()


def same(first: nn.Module, second: nn.Module, rtol: float = 0.0, atol: float = 0.0) -> None:
    torch.testing.assert_close(list(first.parameters()), list(second.parameters()), rtol=rtol, atol=atol)


def close(first: nn.Module, second: nn.Module) -> None:
    same(first, second, rtol=1e-11, atol=1e-13)


@every
def test_trains_like_torch(name: str) -> None:
    ours, options, theirs = FACES[name]
    first, second = network(), network()
    before = loss_of(first).item()
    train(first, ours(first.parameters(), **options), 10)
    train(second, theirs(second.parameters(), **options), 10)
    close(first, second)
    assert loss_of(first).item() < before


@every
def test_is_an_optimizer_of_torch(name: str) -> None:
    ours, options, _ = FACES[name]
    optimizer = ours(network().parameters(), **options)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(optimizer, torchopt.Optimizer)
    assert optimizer.param_groups[0]['lr'] == options['lr']
    assert len(optimizer.param_groups[0]['params']) == 4
    assert name in repr(optimizer)


SHAPES_OF_PARAMS: dict[str, Callable[[nn.Module], Any]] = {
    'generator': lambda net: net.parameters(),
    'tuple': lambda net: tuple(net.parameters()),
    'pairs': lambda net: net.named_parameters(),
    'list of pairs': lambda net: list(net.named_parameters()),
    'tree': lambda net: {'first': dict(net[0].named_parameters()), 'last': [net[2].weight, (net[2].bias, None)]},
    'dict': lambda net: dict(net.named_parameters()),
    'groups': lambda net: [{'params': net[0].parameters()}, {'params': net[2].parameters()}],
    'groups of pairs': lambda net: [{'params': net[0].named_parameters()}, {'params': net[2].named_parameters('last')}],
    'one tensor in a group': lambda net: [{'params': p} for p in net.parameters()],
}


@pytest.mark.parametrize('shape', SHAPES_OF_PARAMS)
def test_what_params_may_be(shape: str) -> None:
    first, second = network(), network()
    train(first, torchopt.Adam(SHAPES_OF_PARAMS[shape](first), lr=0.1), 4)
    train(second, torchopt.Adam(second.parameters(), lr=0.1), 4)
    same(first, second)


def test_names_of_pairs_are_kept() -> None:
    optimizer = torchopt.Adam(network().named_parameters())
    assert optimizer.param_groups[0]['param_names'] == ['0.weight', '0.bias', '2.weight', '2.bias']


GROUP_OPTIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    'lr': ('Adam', {'lr': 0.5}, {'lr': 0.5}),
    'learning_rate': ('Adam', {'learning_rate': 0.5}, {'lr': 0.5}),
    'betas': ('Adam', {'betas': (0.5, 0.6), 'eps': 1e-2}, {'betas': (0.5, 0.6), 'eps': 1e-2}),
    'b1': ('Adam', {'b1': 0.5}, {'betas': (0.5, 0.7)}),
    'b1 and b2': ('Adam', {'b2': 0.6, 'b1': 0.5}, {'betas': (0.5, 0.6)}),
    'decay': ('RMSProp', {'decay': 0.5}, {'alpha': 0.5}),
    'momentum': ('SGD', {'momentum': 0.5, 'nesterov': True}, {'momentum': 0.5, 'nesterov': True}),
    'weight_decay': ('AdamW', {'weight_decay': 0.5}, {'weight_decay': 0.5}),
    'maximize': ('Adam', {'maximize': True}, {'maximize': True}),
}


@pytest.mark.parametrize('late', [False, True])
@pytest.mark.parametrize('option', GROUP_OPTIONS)
def test_options_of_a_group(option: str, late: bool) -> None:
    """In the constructor and in add_param_group; what a group does not say, it takes from the defaults."""
    name, ours, theirs = GROUP_OPTIONS[option]
    make, _, torchs = FACES[name]
    defaults: dict[str, Any] = {'lr': 0.1}
    if name == 'Adam':
        defaults['betas'] = (0.8, 0.7)
    first, second = network(), network()
    groups = [{'params': first[0].parameters()}, {'params': first[2].parameters(), **ours}]
    optimizer = make(groups[:1] if late else groups, **defaults)
    if late:
        optimizer.add_param_group(groups[1])
    reference = torchs([{'params': second[0].parameters()}, {'params': second[2].parameters(), **theirs}], **defaults)
    train(first, optimizer, 5)
    train(second, reference, 5)
    close(first, second)
    for key, value in theirs.items():
        assert optimizer.param_groups[1][key] == value
        assert optimizer.param_groups[0][key] != value


def test_add_param_group_of_0_7_3() -> None:
    """Parameters alone, without a dict."""
    first, second = network(), network()
    optimizer = torchopt.Adam(first[0].parameters(), lr=0.1)
    train(first, optimizer, 2)
    optimizer.add_param_group(first[2].parameters())
    assert optimizer.state_groups[1] == UninitializedState()
    train(first, optimizer, 2)
    reference = torch.optim.Adam(second[0].parameters(), lr=0.1)
    train(second, reference, 2)
    reference.add_param_group({'params': second[2].parameters()})
    second.zero_grad()
    train(second, reference, 2)
    close(first, second)
    assert int(optimizer.state_groups[1][0].count) == 2


def test_groups_of_a_plain_optimizer() -> None:
    first, second = network(), network()
    tx = torchopt.chain(torchopt.clip_grad_norm(0.1), torchopt.sgd(0.1, momentum=0.9, dampening=0.5))
    train(first, torchopt.Optimizer([{'params': list(part.parameters())} for part in (first[0], first[2])], tx), 4)
    parts = [torchopt.Optimizer(part.parameters(), tx) for part in (second[0], second[2])]
    for _ in range(4):
        second.zero_grad()
        loss_of(second).backward()
        for part in parts:
            part.step()
    same(first, second)


def test_frozen_and_unused_parameters() -> None:
    """A parameter without a gradient keeps its value and its state, as in torch."""
    first, second = network(), network()
    for net in (first, second):
        net[0].bias.requires_grad_(False)
    ours = torchopt.AdamW(first.parameters(), lr=0.1)
    theirs = torch.optim.AdamW(second.parameters(), lr=0.1)
    train(first, ours, 3)
    train(second, theirs, 3)
    close(first, second)
    state = ours.state_groups[0][0]
    mu = state.mu[0].clone()
    assert not state.mu[1].any()
    ours.zero_grad(set_to_none=True)
    first[2](torch.ones(4, dtype=f64)).sum().backward()
    weight = first[0].weight.detach().clone()
    ours.step()
    assert torch.equal(first[0].weight, weight)
    assert torch.equal(ours.state_groups[0][0].mu[0], mu)


def test_tied_weights_step_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3, dtype=f64)
            self.two = nn.Linear(3, 3, dtype=f64)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.tanh(self.one(x))).sum(dim=1, keepdim=True)

    first = Tied()
    second = copy.deepcopy(first)
    assert second.one.weight is second.two.weight
    train(first, torchopt.Adam(first.parameters(), lr=0.1), 4)
    train(second, torch.optim.Adam(second.parameters(), lr=0.1), 4)
    close(first, second)
    assert first.one.weight is first.two.weight


@every
@pytest.mark.parametrize('cut', [False, True], ids=['with its graph', 'cut loose afterwards'])
def test_parameters_that_a_meta_step_made(name: str, cut: bool) -> None:
    """They are no leaves, and are trained all the same."""
    face, options, torch_class = FACES[name]
    net, twin = network(), network()
    torchopt.MetaSGD(net, lr=0.1).step((net(X) - Y).square().mean())
    twin.load_state_dict(net.state_dict())
    ours, theirs = face(net.parameters(), **options), torch_class(twin.parameters(), **options)
    if cut:
        torchopt.stop_gradient(net)
    places = list(net.parameters())
    for _ in range(3):
        for optimizer, module in ((ours, net), (theirs, twin)):
            optimizer.zero_grad()
            (module(X) - Y).square().mean().backward(retain_graph=True)  # the graph of the meta-step is behind it
            optimizer.step()
    assert all(p is q for p, q in zip(net.parameters(), places, strict=True))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-9, atol=1e-11)


def test_a_later_group_of_parameters_that_a_meta_step_made() -> None:
    start = torch.tensor([1.0, 2.0], dtype=f64, requires_grad=True)
    made, leaf = start * 2, torch.ones(1, dtype=f64, requires_grad=True)
    optimizer = torchopt.SGD([leaf], lr=0.5)
    optimizer.add_param_group({'params': iter([made]), 'lr': 0.25})
    made.square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(made.detach(), torch.tensor([1.0, 2.0], dtype=f64))
    torch.testing.assert_close(start.grad, torch.tensor([8.0, 16.0], dtype=f64))


def test_step_leaves_gradients_and_parameters_in_place() -> None:
    net = network()
    for name, (make, options, _) in FACES.items():
        optimizer = make(net.parameters(), **options)
        held = list(net.parameters())
        net.zero_grad()
        loss_of(net).backward()
        grads = [(p.grad, p.grad.clone()) for p in held]
        versions = [p.data_ptr() for p in held]
        optimizer.step()
        for p, (g, value) in zip(held, grads, strict=True):
            assert p.grad is g, name
            assert torch.equal(g, value), name
            assert p.is_leaf, name
            assert p.requires_grad, name
        assert all(p is q for p, q in zip(net.parameters(), held, strict=True))
        assert versions == [p.data_ptr() for p in held]
        assert all(not s.requires_grad for s in torchopt.tree.leaves(optimizer.state_groups))


def test_zero_grad() -> None:
    net = network()
    optimizer = torchopt.Adam(net.parameters())
    loss_of(net).backward()
    held = [p.grad for p in net.parameters()]
    optimizer.zero_grad()
    assert all(p.grad is g and not g.any() for p, g in zip(net.parameters(), held, strict=True))
    optimizer.zero_grad(set_to_none=True)
    assert all(p.grad is None for p in net.parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    optimizer.set_to_none = True
    for other in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        for p in other.param_groups[0]['params']:
            p.grad = torch.ones_like(p)
        other.zero_grad(set_to_none=False)
        assert not any(p.grad.any() for p in other.param_groups[0]['params'])
        other.zero_grad()
        assert all(p.grad is None for p in other.param_groups[0]['params'])
    optimizer.set_to_none = torchopt.Optimizer.set_to_none
    assert optimizer.set_to_none is False
    grads = torch.autograd.grad(loss_of(net), list(net.parameters()), create_graph=True)
    for p, g in zip(net.parameters(), grads, strict=True):
        p.grad = g.clone()
    optimizer.zero_grad()
    assert all(p.grad.grad_fn is None and not p.grad.requires_grad for p in net.parameters())


def test_closures() -> None:
    net = network()
    optimizer = torchopt.Adam(net.parameters(), lr=0.1)
    calls = []

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        calls.append(loss.item())
        return loss

    assert optimizer.step(lambda: 'anything') == 'anything'
    with torch.no_grad():
        losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses == calls
    assert losses[-1] < losses[0]
    assert optimizer.step() is None


def test_closure_numbers() -> None:
    first, second = network(), network()
    optimizer = torchopt.Adam(first.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(first)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    train(second, torchopt.Adam(second.parameters(), lr=0.1), 3)
    same(first, second)


@pytest.mark.parametrize('steps', [0, 3])
@pytest.mark.parametrize('copier', [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@every
def test_copies_continue(name: str, copier: Callable[[Any], Any], steps: int) -> None:
    make, options, _ = FACES[name]
    net = network()
    groups = [{'params': net[0].parameters()}, {'params': net[2].parameters(), 'lr': 0.02}]
    optimizer = make(groups, **options)
    train(net, optimizer, steps)
    twin, twin_optimizer = copier((net, optimizer))
    assert twin_optimizer.param_groups[0]['params'][0] is twin[0].weight
    train(twin, twin_optimizer, 3)
    moved = [p.detach().clone() for p in net.parameters()]
    train(net, optimizer, 3)
    same(net, twin)
    assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), moved, strict=True))
    # The copy is an optimizer in its own right: its options and groups go their own ways.
    twin_optimizer.param_groups[0]['lr'] = 0.0
    before = twin[0].weight.detach().clone()
    train(twin, twin_optimizer, 1)
    train(net, optimizer, 1)
    assert twin_optimizer.param_groups[0]['lr'] != optimizer.param_groups[0]['lr']
    if name != 'AdamW':
        assert torch.equal(twin[0].weight, before)


def test_copies_own_their_tensors() -> None:
    """A learning rate that is a tensor, as torch's schedulers change it in place, is not shared with the copy."""
    net = network()
    rate = torch.tensor(0.1, dtype=f64)
    optimizer = torchopt.SGD(net.parameters(), lr=rate)
    twin, twin_optimizer = copy.deepcopy((net, optimizer))
    twin_optimizer.param_groups[0]['lr'].fill_(0.0)
    before = twin[0].weight.detach().clone()
    train(twin, twin_optimizer, 1)
    train(net, optimizer, 1)
    assert torch.equal(twin[0].weight, before)
    assert not torch.equal(net[0].weight, before)


def test_pickled_plain_optimizer() -> None:
    net = network()
    tx = torchopt.chain(torchopt.clip_grad_norm(0.1), torchopt.adam(0.1))
    optimizer = torchopt.Optimizer(net.parameters(), tx)
    train(net, optimizer, 2)
    twin, twin_optimizer = pickle.loads(pickle.dumps((net, optimizer)))
    train(twin, twin_optimizer, 2)
    train(net, optimizer, 2)
    same(net, twin)


def test_options_changed_between_steps() -> None:
    first, second = network(), network()
    ours, theirs = torchopt.Adam(first.parameters(), lr=0.1), torch.optim.Adam(second.parameters(), lr=0.1)
    for lr, betas in [(0.1, (0.9, 0.999)), (0.01, (0.9, 0.999)), (0.2, (0.5, 0.9)), (0.0, (0.5, 0.9))]:
        for net, optimizer in ((first, ours), (second, theirs)):
            optimizer.param_groups[0].update(lr=lr, betas=betas)
            train(net, optimizer, 2)
        close(first, second)


@pytest.mark.parametrize('values', [(0.0, 0.3, 0.0), (0.3, 0.0, 0.1)], ids=['comes', 'goes'])
@every
def test_weight_decay_comes_and_goes(name: str, values: tuple[float, ...]) -> None:
    ours, options, theirs = FACES[name]
    first, second = network(), network()
    one = ours(first.parameters(), **options, weight_decay=values[0])
    other = theirs(second.parameters(), **options, weight_decay=values[0])
    for value in values:
        for net, optimizer in ((first, one), (second, other)):
            optimizer.param_groups[0]['weight_decay'] = value
            train(net, optimizer, 2)
        close(first, second)


def test_an_option_that_needs_another_state() -> None:
    net = network()
    optimizer = torchopt.SGD(net.parameters(), 0.1)
    train(net, optimizer, 1)
    before = copy.deepcopy(net)
    optimizer.param_groups[0]['momentum'] = 0.9
    with pytest.raises(ValueError, match="The group's momentum changed, and with this value"):
        train(net, optimizer, 1)
    same(net, before)
    optimizer.param_groups[0]['momentum'] = 0.0
    train(net, optimizer, 1)


def test_schedule_as_learning_rate() -> None:
    first, second = network(), network()
    schedule = torchopt.schedule.exponential_decay(0.1, 0.5)
    train(first, torchopt.Adam(first.parameters(), lr=schedule), 5)
    reference = torch.optim.Adam(second.parameters(), lr=0.1)
    decay = torch.optim.lr_scheduler.ExponentialLR(reference, 0.5)
    for _ in range(5):
        train(second, reference, 1)
        decay.step()
    close(first, second)
    with pytest.raises(KeyError, match='a plain optimizer takes its options from the transformation'):
        torch.optim.lr_scheduler.ExponentialLR(torchopt.Optimizer(first.parameters(), torchopt.sgd(0.1)), 0.5)


def test_dtypes() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        p = nn.Parameter(torch.ones(3, dtype=dtype))
        for make, options, _ in FACES.values():
            p.grad = torch.ones_like(p)
            optimizer = make([p], **options)
            optimizer.step()
            assert p.dtype == dtype
            assert p.isfinite().all()


SIGNATURES = {
    'SGD': 'params, lr, momentum=0.0, weight_decay=0.0, dampening=0.0, nesterov=False, maximize=False',
    'Adam': 'params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, *, eps_root=0.0, '
    'nesterov=False, mu_dtype=None, maximize=False, '
    'use_accelerated_op=None',
    'AdamW': 'params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, *, eps_root=0.0, '
    'nesterov=False, mu_dtype=None, mask=None, '
    'maximize=False, use_accelerated_op=None',
    'AdaDelta': 'params, lr=1.0, rho=0.9, eps=1e-06, weight_decay=0.0',
    'AdaGrad': 'params, lr=0.01, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, *, '
    'maximize=False',
    'AdaMax': 'params, lr=0.002, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0',
    'RAdam': 'params, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0',
    'RMSProp': 'params, lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=False, *, '
    'initial_scale=0.0, eps_in_sqrt=False, bias_correction=False, nesterov=False, maximize=False',
}


@every
def test_signatures(name: str) -> None:
    signature = inspect.signature(getattr(torchopt, name))
    bare = signature.replace(
        parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
        return_annotation=signature.empty,
    )
    assert str(bare) == f'({SIGNATURES[name]})'


@pytest.mark.parametrize('name', [*FACES, *(f'Meta{name}' for name in FACES)])
def test_classes_declare_the_arguments_of_their_aliases(name: str) -> None:
    """With the same types, so that type checkers and editors show what the constructor takes."""
    kind = getattr(torchopt, name)
    alias = getattr(torchopt, name.removeprefix('Meta').lower())
    hidden = () if name.startswith('Meta') else ('moment_requires_grad',)
    expected = {p.name: p.annotation for p in inspect.signature(alias).parameters.values() if p.name not in hidden}
    declared = {p.name: p.annotation for p in inspect.signature(kind).parameters.values()}
    del declared['module' if name.startswith('Meta') else 'params']
    assert declared == expected
    every = [inspect.signature(f, follow_wrapped=False) for f in (inspect.unwrap(kind.__init__), inspect.unwrap(alias))]
    second_names = [p.annotation for s in every for p in s.parameters.values() if p.kind is p.VAR_KEYWORD]
    assert second_names[0] == second_names[1]


def test_subclasses_have_the_signatures_of_their_own_constructors() -> None:
    class Warm(torchopt.Adam):
        def __init__(self, params: Any, rate: float) -> None:
            super().__init__(params, lr=rate)

    assert list(inspect.signature(Warm).parameters) == ['params', 'rate']
    assert Warm([nn.Parameter(torch.ones(1))], 0.25).param_groups[0]['lr'] == 0.25


def test_positional_arguments() -> None:
    """SGD takes weight_decay before dampening, unlike sgd and unlike torch."""
    optimizer = torchopt.SGD([nn.Parameter(torch.ones(1))], 0.1, 0.9, 0.2, 0.3)
    group = optimizer.param_groups[0]
    assert (group['momentum'], group['weight_decay'], group['dampening']) == (0.9, 0.2, 0.3)


def test_documentation_of_classes() -> None:
    for name in FACES:
        text = inspect.getdoc(getattr(torchopt, name))
        assert 'lr:' in text
        assert '<' not in text.partition('Args:')[2].partition('Raises:')[0]


@pytest.mark.parametrize('face', ['class', 'meta', 'functional'])
def test_a_transformation_of_ones_own_needs_no_inplace(face):
    """As one writes it for Optax: ``update(updates, state, params=None)``."""

    def update(updates, state, params=None):
        return torchopt.tree.map(lambda g: -0.5 * g, updates), state

    own = torchopt.base.GradientTransformation(torchopt.base.init_empty_state, update)
    net = torch.nn.Linear(1, 1, bias=False)
    start = net.weight.detach().clone()
    loss = (3 * net.weight).sum()
    if face == 'class':
        optimizer = torchopt.Optimizer(net.parameters(), own)
        loss.backward()
        optimizer.step()
    elif face == 'meta':
        torchopt.MetaOptimizer(net, own).step(loss)
    else:
        (net.weight,) = [torch.nn.Parameter(p) for p in torchopt.FuncOptimizer(own).step(loss, [net.weight])]
    torch.testing.assert_close(net.weight.detach(), start - 1.5)


@pytest.mark.parametrize('place', ['first', 'last', 'masked'])
def test_no_group_moves_where_the_values_of_another_are_refused(place):
    """`error_if_nonfinite` in a later group: neither parameters nor states have changed, and the next step is right."""
    clip = torchopt.clip_grad_norm(1.0, error_if_nonfinite=True)
    rule = torchopt.adam(0.1)
    impl = {
        'first': torchopt.chain(clip, rule),
        'last': torchopt.chain(rule, clip),
        'masked': torchopt.chain(rule, torchopt.transform.masked(clip, lambda p: [True] * len(p))),
    }[place]
    params = [torch.tensor([1.0, 2.0], requires_grad=True) for _ in range(4)]
    optimizer = torchopt.Optimizer([{'params': params[:2]}, {'params': params[2:]}], impl)
    twins = [p.detach().clone().requires_grad_() for p in params]
    other = torchopt.Optimizer([{'params': twins[:2]}, {'params': twins[2:]}], impl)
    for bad in (False, True, False):
        for p, q in zip(params, twins):
            p.grad, q.grad = p.detach().cos(), q.detach().cos()
        params[3].grad = None  # which stays as it is
        twins[3].grad = None
        if not bad:
            optimizer.step()
            other.step()
            continue
        params[2].grad[0] = torch.nan
        before = [p.detach().clone() for p in params]
        states = [x.clone() for x in torchopt.tree.leaves(optimizer.state_groups)]
        with pytest.raises(RuntimeError, match='The total norm of order 2'):
            optimizer.step()
        assert all(map(torch.equal, params, before))
        assert all(map(torch.equal, torchopt.tree.leaves(optimizer.state_groups), states))
    assert all(map(torch.equal, params, twins))
    assert all(p.is_leaf and p.requires_grad for p in params)
    assert not torch.equal(params[0], before[0])


@pytest.mark.parametrize('value', [0.0, 0.5])
def test_an_option_that_would_have_no_effect_is_refused_in_the_step(value: float) -> None:
    """As in a warm-up by hand, on an optimizer that takes its rate from the transformation."""
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torchopt.Optimizer([p], torchopt.sgd(0.1))
    for group in optimizer.param_groups:
        group['lr'] = value
    p.grad = torch.ones(2)
    with pytest.raises(ValueError, match=rf'Group 0 has lr={value}.* schedule in the impl'):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0]
    del optimizer.param_groups[0]['lr']
    optimizer.step()
    assert p.tolist() == pytest.approx([0.9, 0.9])
