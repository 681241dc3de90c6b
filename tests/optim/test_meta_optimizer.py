# SPDX-License-Identifier: Apache-2.0
"""The differentiable face: what a module holds after a step, and what can be differentiated through it."""

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
from torchopt import tree
from torchopt.base import UninitializedState

f64 = torch.float64
X = torch.linspace(-1.0, 2.0, 12, dtype=f64).reshape(4, 3)
Y = torch.cos(3.0 * X.sum(dim=1, keepdim=True))

FACES: dict[str, tuple[Callable[..., torchopt.MetaOptimizer], Any, dict[str, Any]]] = {
    'SGD': (torchopt.MetaSGD, torchopt.SGD, {'lr': 0.1, 'momentum': 0.9, 'dampening': 0.1}),
    'Adam': (torchopt.MetaAdam, torchopt.Adam, {'lr': 0.1}),
    'AdamW': (torchopt.MetaAdamW, torchopt.AdamW, {'lr': 0.1}),
    'AdaMax': (torchopt.MetaAdaMax, torchopt.AdaMax, {'lr': 0.1}),
    'AdaDelta': (torchopt.MetaAdaDelta, torchopt.AdaDelta, {'lr': 0.5}),
    'AdaGrad': (torchopt.MetaAdaGrad, torchopt.AdaGrad, {'lr': 0.1}),
    'RAdam': (torchopt.MetaRAdam, torchopt.RAdam, {'lr': 0.1}),
    'RMSProp': (torchopt.MetaRMSProp, torchopt.RMSProp, {'lr': 0.1, 'centered': True, 'momentum': 0.5}),
}
every = pytest.mark.parametrize('name', FACES)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def loss_of(net: nn.Module) -> torch.Tensor:
    return (net(X) - Y).square().mean()


def adapt(net: nn.Module, meta: torchopt.MetaOptimizer, steps: int) -> None:
    for _ in range(steps):
        meta.step(loss_of(net))


def train(net: nn.Module, optimizer: torchopt.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss_of(net).backward()
        optimizer.step()


def close(first: nn.Module, second: nn.Module) -> None:
    torch.testing.assert_close(
        [p.detach() for p in first.parameters()], [p.detach() for p in second.parameters()], rtol=1e-12, atol=1e-14
    )


@every
def test_steps_are_those_of_the_plain_face(name: str) -> None:
    make, plain, options = FACES[name]
    first, second = network(), network()
    adapt(first, make(first, **options), 5)
    train(second, plain(second.parameters(), **options), 5)
    close(first, second)


@every
def test_a_step_leads_back_to_where_it_began(name: str) -> None:
    make, _, options = FACES[name]
    net = network()
    start = dict(net.named_parameters())
    values = {key: p.detach().clone() for key, p in start.items()}
    adapt(net, make(net, **options), 3)
    assert list(dict(net.named_parameters())) == list(start)
    for key, p in net.named_parameters():
        assert p is not start[key]
        assert p.grad_fn is not None
        assert torch.equal(start[key], values[key])
    loss_of(net).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in start.values())


def test_groups() -> None:
    first, second = network(), network()
    meta = torchopt.MetaAdam(first[0], lr=0.1)
    meta.add_param_group(first[2], lr=0.5, betas=(0.5, 0.6))
    plain = torchopt.Adam(
        [{'params': second[0].parameters()}, {'params': second[2].parameters(), 'lr': 0.5, 'betas': (0.5, 0.6)}], lr=0.1
    )
    adapt(first, meta, 3)
    train(second, plain, 3)
    close(first, second)
    assert len(meta.state_dict()) == len(meta.param_groups) == 2


def test_options_of_a_group_have_two_vocabularies() -> None:
    first, second = network(), network()
    metas = [torchopt.MetaAdam(net[0], lr=0.1, betas=(0.8, 0.7)) for net in (first, second)]
    metas[0].add_param_group(first[2], learning_rate=0.5, b1=0.5)
    metas[1].add_param_group(second[2], lr=0.5, betas=(0.5, 0.7))
    for net, meta in zip((first, second), metas, strict=True):
        adapt(net, meta, 2)
    close(first, second)


def test_groups_of_a_plain_meta_optimizer_share_the_transformation() -> None:
    first, second = network(), network()
    tx = torchopt.sgd(0.1, momentum=0.9, dampening=0.5)
    meta = torchopt.MetaOptimizer(first[0], tx)
    meta.add_param_group(first[2])
    adapt(first, meta, 3)
    adapt(second, torchopt.MetaOptimizer(second, tx), 3)
    close(first, second)


def test_a_later_group_starts_later() -> None:
    net = network()
    meta = torchopt.MetaAdam(net[0])
    adapt(net, meta, 2)
    meta.add_param_group(net[2])
    assert meta.state_dict()[1] == UninitializedState()
    adapt(net, meta, 1)
    assert [int(state[0].count) for state in meta.state_dict()] == [3, 1]


def test_frozen_and_unused_parameters_keep_their_objects_and_states() -> None:
    net = nn.ModuleDict({'used': nn.Linear(3, 1), 'frozen': nn.Linear(3, 1), 'unused': nn.Linear(3, 1)}).double()
    net['frozen'].requires_grad_(False)
    held = {key: list(net[key].parameters()) for key in net}
    meta = torchopt.MetaAdamW(net, lr=0.1, moment_requires_grad=False)
    for _ in range(2):
        meta.step((net['used'](X) + net['frozen'](X)).square().mean())
    for key in ('frozen', 'unused'):
        assert all(p is q for p, q in zip(net[key].parameters(), held[key], strict=True))
        assert not meta.state_dict()[0][0].mu[f'{key}.weight'].any()
    assert all(p is not q for p, q in zip(net['used'].parameters(), held['used'], strict=True))


def test_thawed_between_steps() -> None:
    net = network()
    net[0].requires_grad_(False)
    weight = net[0].weight
    meta = torchopt.MetaAdam(net, lr=0.1)
    adapt(net, meta, 1)
    assert net[0].weight is weight
    net[0].requires_grad_(True)
    adapt(net, meta, 1)
    assert net[0].weight is not weight


class Shared(nn.Module):
    """A layer and a weight in two places each."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=f64)
        self.again = self.layer
        self.own = nn.Linear(3, 3, dtype=f64)
        self.own.weight = self.layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(torch.tanh(self.again(torch.tanh(self.layer(x))))).sum(dim=1, keepdim=True)


def test_tied_weights() -> None:
    torch.manual_seed(0)
    first = Shared()
    second = copy.deepcopy(first)
    start = first.layer.weight
    adapt(first, torchopt.MetaAdam(first, lr=0.1), 3)
    train(second, torchopt.Adam(second.parameters(), lr=0.1), 3)
    close(first, second)
    assert first.layer.weight is first.own.weight is first.again.weight
    assert first.again is first.layer
    (grad,) = torch.autograd.grad(loss_of(first), [start])
    assert grad.any()


def test_batch_norm_in_an_inner_loop() -> None:
    """Buffers move with the forward passes; the outer gradient equals finite differences."""

    def outer(scale: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
        meta = torchopt.MetaSGD(net, lr=0.1, momentum=0.9)
        for _ in range(3):
            meta.step((scale * net(X) - Y).square().mean())
        assert int(net[1].num_batches_tracked) == 3
        assert net[1].running_mean.any()
        assert not net[1].running_mean.requires_grad
        return (net(X) - Y).square().mean()

    scale = torch.tensor(0.7, dtype=f64, requires_grad=True)
    assert torch.autograd.gradcheck(outer, [scale], eps=1e-6, atol=1e-7, rtol=1e-6)


@every
def test_states_continue(name: str) -> None:
    make, _, options = FACES[name]
    net = network()
    meta = make(net, **options)
    assert meta.state_dict() == (UninitializedState(),)
    adapt(net, meta, 2)
    saved = meta.state_dict()
    assert saved[0] is meta.state_groups[0]
    twin = network()
    twin.load_state_dict({key: p.detach().clone() for key, p in net.state_dict().items()})
    other = make(twin, **options)
    other.load_state_dict(tree.map(lambda x: x.detach().clone(), list(saved)))
    adapt(net, meta, 2)
    adapt(twin, other, 2)
    close(net, twin)
    # Back to the saved state: the same step again.
    meta.load_state_dict(saved)
    assert meta.state_dict()[0] is saved[0]


@pytest.mark.parametrize('copier', [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@every
def test_copies_continue(name: str, copier: Callable[[Any], Any]) -> None:
    """With the module they belong to, after the graph of earlier steps was let go of."""
    make, _, options = FACES[name]
    net = network()
    meta = make(net, **options)
    adapt(net, meta, 2)
    torchopt.stop_gradient(net)
    torchopt.stop_gradient(meta)
    twin, twin_meta = copier((net, meta))
    held = list(net.parameters())
    adapt(twin, twin_meta, 2)
    assert all(p is q for p, q in zip(net.parameters(), held, strict=True))
    adapt(net, meta, 2)
    close(net, twin)


def test_learned_learning_rate() -> None:
    """MetaSGD with a rate that requires grad; the reference is written out."""
    rate = torch.tensor(0.1, dtype=f64, requires_grad=True)
    net = network()
    start = list(net.parameters())
    adapt(net, torchopt.MetaSGD(net, rate), 2)
    found = torch.autograd.grad(loss_of(net), [rate, *start])

    twin = network()
    params = begin = dict(twin.named_parameters())
    for _ in range(2):
        loss = (torch.func.functional_call(twin, params, (X,)) - Y).square().mean()
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {key: p - rate * g for (key, p), g in zip(params.items(), grads, strict=True)}
    loss = (torch.func.functional_call(twin, params, (X,)) - Y).square().mean()
    expected = torch.autograd.grad(loss, [rate, *begin.values()])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    assert found[0].item() < 0.0


def test_learned_learning_rate_of_a_group() -> None:
    rates = [torch.tensor(value, dtype=f64, requires_grad=True) for value in (0.1, 0.2)]
    net = network()
    meta = torchopt.MetaSGD(net[0], lr=rates[0])
    meta.add_param_group(net[2], lr=rates[1])
    adapt(net, meta, 2)
    grads = torch.autograd.grad(loss_of(net), rates)
    assert all(g.isfinite() and g != 0.0 for g in grads)
    assert grads[0] != grads[1]


MOMENTS = {'SGD': 'trace', 'Adam': 'mu', 'AdaMax': 'mu', 'RAdam': 'mu', 'AdaDelta': 'e_g'}


@pytest.mark.parametrize('name', MOMENTS)
def test_first_moments_can_be_learned(name: str) -> None:
    make, _, options = FACES[name]
    impl = make(network(), **options).impl
    first = tree.get(impl.init({'w': torch.ones(2, dtype=f64)}), MOMENTS[name])
    assert first['w'].requires_grad
    impl = make(network(), **options, moment_requires_grad=False).impl
    first = tree.get(impl.init({'w': torch.ones(2, dtype=f64)}), MOMENTS[name])
    assert not first['w'].requires_grad


def test_gradient_with_respect_to_a_first_moment() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    meta = torchopt.MetaSGD(net, lr=0.1, momentum=0.5)
    state = meta.impl.init(dict(net.named_parameters()))
    meta.load_state_dict((state,))
    meta.step(net.weight.square().sum())
    (grad,) = torch.autograd.grad(net.weight.sum(), [state[0].trace['weight']])
    torch.testing.assert_close(grad, torch.tensor([[-0.05]], dtype=f64), rtol=1e-14, atol=0.0)


DECAYING: dict[str, Callable[[nn.Module], torchopt.MetaOptimizer]] = {
    'MetaSGD': lambda net: torchopt.MetaSGD(net, lr=0.1, weight_decay=0.5),
    'MetaSGD with momentum': lambda net: torchopt.MetaSGD(
        net, lr=0.1, momentum=0.9, weight_decay=0.5, moment_requires_grad=False
    ),
    'MetaAdamW': lambda net: torchopt.MetaAdamW(net, lr=0.1, weight_decay=0.5),
    'MetaOptimizer': lambda net: torchopt.MetaOptimizer(net, torchopt.sgd(0.1, weight_decay=0.5)),
}


@pytest.mark.parametrize('name', DECAYING)
def test_decay_under_a_linear_loss(name: str) -> None:
    """The gradient has no graph, yet the step depends on the parameter: w - 0.1 (g + 0.5 w)."""
    net = nn.Linear(2, 1, bias=False).double()
    start = net.weight
    DECAYING[name](net).step(net.weight.sum())
    (grad,) = torch.autograd.grad(net.weight.sum(), [start])
    torch.testing.assert_close(grad, torch.full_like(start, 0.95), rtol=1e-12, atol=0.0)
    assert start.grad is None


def test_masked_and_partitioned_modules() -> None:
    first, second = network(), network()
    labels = {'0.weight': 'slow', '0.bias': 'slow', '2.weight': 'fast', '2.bias': 'fast'}
    tx = torchopt.partition({'slow': torchopt.sgd(0.01), 'fast': torchopt.adam(0.1)}, labels)
    adapt(first, torchopt.MetaOptimizer(first, tx), 3)
    plain = [torchopt.SGD(second[0].parameters(), lr=0.01), torchopt.Adam(second[2].parameters(), lr=0.1)]
    for _ in range(3):
        second.zero_grad()
        loss_of(second).backward()
        for optimizer in plain:
            optimizer.step()
    close(first, second)


def test_loss_with_one_element() -> None:
    net = network()
    torchopt.MetaSGD(net, lr=0.1).step(loss_of(net).reshape(1, 1))


def test_integer_parameters_are_left_alone() -> None:
    net = nn.Linear(2, 1).double()
    net.register_parameter('steps', nn.Parameter(torch.arange(3), requires_grad=False))
    held = net.steps
    meta = torchopt.MetaAdamW(net, lr=0.1)
    for _ in range(2):
        meta.step(net(torch.ones(2, dtype=f64)).sum())
    assert net.steps is held
    assert meta.state_dict()[0][0].mu['steps'] is None


SIGNATURES = {
    'SGD': 'module, lr, momentum=0.0, weight_decay=0.0, dampening=0.0, nesterov=False, moment_requires_grad=True, '
    'maximize=False',
    'Adam': 'module, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, *, eps_root=0.0, '
    'nesterov=False, mu_dtype=None, '
    'moment_requires_grad=True, maximize=False, use_accelerated_op=None',
    'AdamW': 'module, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01, *, eps_root=0.0, '
    'nesterov=False, mu_dtype=None, mask=None, '
    'moment_requires_grad=False, maximize=False, use_accelerated_op=None',
    'AdaDelta': 'module, lr=1.0, rho=0.9, eps=1e-06, weight_decay=0.0, *, moment_requires_grad=True',
    'AdaGrad': 'module, lr=0.01, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, *, '
    'maximize=False',
    'AdaMax': 'module, lr=0.002, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, *, moment_requires_grad=True',
    'RAdam': 'module, lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, *, moment_requires_grad=True',
    'RMSProp': 'module, lr=0.01, alpha=0.99, eps=1e-08, weight_decay=0.0, momentum=0.0, centered=False, *, '
    'initial_scale=0.0, eps_in_sqrt=False, bias_correction=False, nesterov=False, maximize=False',
}


@every
def test_signatures(name: str) -> None:
    signature = inspect.signature(getattr(torchopt, f'Meta{name}'))
    bare = signature.replace(
        parameters=[p.replace(annotation=p.empty) for p in signature.parameters.values()],
        return_annotation=signature.empty,
    )
    assert str(bare) == f'({SIGNATURES[name]})'


def test_positional_arguments_of_meta_sgd() -> None:
    """All are positional, with weight_decay before dampening."""
    meta = torchopt.MetaSGD(network(), 0.1, 0.9, 0.2, 0.3, False, False, True)
    expected = {
        'lr': 0.1,
        'momentum': 0.9,
        'weight_decay': 0.2,
        'dampening': 0.3,
        'nesterov': False,
        'moment_requires_grad': False,
        'maximize': True,
    }
    assert meta.defaults == expected
