# SPDX-License-Identifier: Apache-2.0
"""Remembering, restoring, cloning and detaching the state of modules and optimizers."""

from __future__ import annotations

import copy
import gc
import itertools
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn

import torchopt
from torchopt.base import UninitializedState
from torchopt.utils import ModuleState, extract_module_containers


class Tied(nn.Module):
    """One weight and one buffer in two places each."""

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
    """Parameters in a list and a dict, and a reserved place."""

    def __init__(self):
        super().__init__()
        self.listed = nn.ParameterList([torch.ones(2), torch.ones(3)])
        self.named = nn.ParameterDict({'b': torch.ones(2), 'a': torch.ones(1)})
        self.own = nn.Parameter(torch.ones(4))
        self.register_parameter('reserved', None)
        self.register_buffer('nothing', None)


class Borrower(torchopt.nn.MetaGradientModule):
    """An inner module on a borrowed backbone; it keeps a tensor that is no member, too."""

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
    """The tensors of a module, one for every place, tied ones repeated."""
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
    """Which of the tensors are the same object: equal patterns mean equal ties."""
    first: dict[int, int] = {}
    return [first.setdefault(id(tensor), i) for i, tensor in enumerate(tensors)]


def saved(state: ModuleState) -> list[torch.Tensor]:
    return [tensor for part in state.params + state.buffers for tensor in part.values()]


def optimizer_tensors(optimizer) -> list[torch.Tensor]:
    return [x for x in torchopt.tree.leaves(optimizer.state_dict()) if isinstance(x, torch.Tensor)]


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
    """Replace all trained parameters as a meta-optimizer does, ties kept, and touch the buffers."""
    new: dict[torch.Tensor, torch.Tensor] = {}
    for part in module.modules():
        for name, param in part._parameters.items():
            if param is not None and param.requires_grad:
                part._parameters[name] = new.setdefault(param, param * 2 + 1)
    for buffer in module.buffers():
        buffer.add_(1)


# -- extraction ----------------------------------------------------------------------------------


@each_kind
def test_live_containers(make):
    module = make()
    params, buffers = extract_module_containers(module)
    assert all(params) and all(buffers)
    parts = list(module.modules())
    assert same(params, (part._parameters for part in parts if part._parameters))
    assert same(buffers, (part._buffers for part in parts if part._buffers))
    assert extract_module_containers(module, with_buffers=False)[1] == ()


@each_by
@each_kind
def test_extraction_by(make, by):
    module = make()
    state = torchopt.extract_state_dict(module, by=by)
    live_params, live_buffers = extract_module_containers(module)
    assert state.visual_contents is None
    assert state.detach_buffers is False
    for copies, originals in ((state.params, live_params), (state.buffers, live_buffers)):
        assert [list(c) for c in copies] == [
            [name for name, tensor in o.items() if tensor is not None] for o in originals
        ]
        assert all(
            type(c) is type(o) and c is not o for c, o in zip(copies, originals, strict=True)
        )
    originals = [t for c in live_params + live_buffers for t in c.values() if t is not None]
    for original, replica in zip(originals, saved(state), strict=True):
        check_replica(by, original, replica)
    assert pattern(saved(state)) == pattern(originals)


def test_type_of_a_container_is_kept():
    module = nn.Linear(2, 1)
    module.__dict__['_parameters'] = OrderedDict(module._parameters)
    state = torchopt.extract_state_dict(module)
    assert type(state.params[0]) is OrderedDict


def test_extraction_without_buffers():
    module = nn.BatchNorm1d(3)
    state = torchopt.extract_state_dict(module, with_buffers=False)
    assert state.buffers == ()
    module.running_mean.add_(1)
    torchopt.recover_state_dict(module, state)
    assert module.running_mean.tolist() == [1, 1, 1]


@each_by
@each_kind
@pytest.mark.parametrize('device', ['cpu', 'meta', torch.device('meta')])
def test_extraction_to_a_device(make, by, device):
    module = make()
    state = torchopt.extract_state_dict(module, by=by, device=device)
    for original, replica in zip(
        saved(torchopt.extract_state_dict(module)), saved(state), strict=True
    ):
        assert replica.device == torch.device(device)
        assert replica.shape == original.shape
        if BY[by] == 'deepcopy':
            assert replica.is_leaf
        elif str(device) == 'meta':
            assert (replica.grad_fn is not None) == original.requires_grad
        else:
            check_replica(by, original, replica)
        assert replica.requires_grad == original.requires_grad
    assert pattern(saved(state)) == pattern(saved(torchopt.extract_state_dict(module)))


@each_by
def test_detached_buffers_are_copies(by):
    module = nn.BatchNorm1d(3)
    module.running_mean = torch.ones(3, requires_grad=True) * 2
    state = torchopt.extract_state_dict(module, by=by, detach_buffers=True)
    assert state.detach_buffers is True
    for name, buffer in state.buffers[0].items():
        check_replica('deepcopy', getattr(module, name), buffer)
    for name, param in state.params[0].items():
        check_replica(by, getattr(module, name), param)


def test_lazy_parameters_are_carried_along():
    module = nn.LazyLinear(2)
    for by in BY:
        state = torchopt.extract_state_dict(module, by=by)
        assert nn.parameter.is_lazy(state.params[0]['weight'])
        torchopt.recover_state_dict(module, state)
    state = torchopt.extract_state_dict(module, by='deepcopy')
    module(torch.ones(1, 3))
    with pytest.raises(ValueError, match="'weight' has shape None"):
        torchopt.recover_state_dict(module, state)


def test_visual_contents():
    module = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    take_a_step(module[1])
    state = torchopt.extract_state_dict(module, enable_visual=True, visual_prefix='step1.')
    weight, bias = module[1].weight, module[1].bias
    assert state.visual_contents == {
        module[0].weight: 'step1.0.weight',
        module[0].bias: 'step1.0.bias',
        weight.grad_fn: ('step1.1.weight', weight),
        bias.grad_fn: ('step1.1.bias', bias),
    }


@pytest.mark.parametrize('by', ['shallow', '', None, 'Reference', 3])
@pytest.mark.parametrize(
    'call', [torchopt.extract_state_dict, torchopt.module_clone], ids=['extract', 'clone']
)
def test_invalid_by_names_the_options(call, by):
    with pytest.raises(ValueError, match=r"by: .* 'reference', 'ref', 'copy', 'clone', 'deepcopy'"):
        call(nn.Linear(2, 1), by=by)


@pytest.mark.parametrize('target', [None, 3, torch.ones(2), {'w': torch.ones(2)}, 'net'])
@pytest.mark.parametrize(
    'call',
    [
        torchopt.extract_state_dict,
        lambda target: torchopt.recover_state_dict(target, ModuleState((), ())),
        extract_module_containers,
    ],
    ids=['extract', 'recover', 'containers'],
)
def test_unexpected_classes(call, target):
    with pytest.raises(TypeError, match='Unexpected class of'):
        call(target)


# -- recovery ------------------------------------------------------------------------------------


@each_by
@each_kind
@pytest.mark.parametrize('detach_buffers', [False, True])
def test_recover_many_times(make, by, detach_buffers):
    module = make()
    values = [tensor.detach().clone() for tensor in slots(module)]
    parameter_values = [param.detach().clone() for param in live_parameters(module)]
    ties = pattern(slots(module))
    places = [len(part._parameters) for part in module.modules()]
    state = torchopt.extract_state_dict(module, by=by, detach_buffers=detach_buffers)
    names = [list(part) for part in state.params + state.buffers]
    kept = [param for part in state.params for param in part.values()]
    for _ in range(3):
        take_a_step(module)
        torchopt.recover_state_dict(module, state)
        assert same(live_parameters(module), kept)
        assert pattern(slots(module)) == ties
        pairs = zip(live_parameters(module), parameter_values, strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
        if detach_buffers:
            assert all(torch.equal(*pair) for pair in zip(slots(module), values, strict=True))
            assert not {id(b) for b in module.buffers()} & {id(t) for t in saved(state)}
    assert [list(part) for part in state.params + state.buffers] == names
    assert [len(part._parameters) for part in module.modules()] == places


def test_recovery_shares_tensors_with_the_state():
    """Quirk Q8, which is documented: what then changes in place changes in both."""
    module = nn.BatchNorm1d(2)
    state = torchopt.extract_state_dict(module, by='deepcopy')
    torchopt.recover_state_dict(module, state)
    assert module.weight is state.params[0]['weight']
    module.running_mean.add_(1)
    assert state.buffers[0]['running_mean'].tolist() == [1, 1]


def test_recovery_fills_a_place_that_was_emptied():
    module = nn.Linear(2, 1)
    bias = module.bias
    state = torchopt.extract_state_dict(module)
    module.bias = None
    torchopt.recover_state_dict(module, state)
    assert module.bias is bias


def test_a_buffer_that_was_empty_is_left_alone():
    module = Collections()
    state = torchopt.extract_state_dict(module)
    module.nothing = torch.ones(2)
    torchopt.recover_state_dict(module, state)
    assert module.nothing.tolist() == [1, 1]


def with_extra(module, **members):
    for name, member in members.items():
        if isinstance(member, nn.Parameter):
            module.register_parameter(name, member)
        else:
            module.register_buffer(name, member)
    return module


def norm(size):
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(size))


# A module, a module whose state does not fit it, and what the error says.
FOREIGN = {
    'shape': (lambda: norm(2), lambda: norm(3), r"'1.weight' has shape \(3,\), but .* \(2,\)"),
    'shape of a buffer': (
        lambda: nn.BatchNorm1d(2, affine=False),
        lambda: nn.BatchNorm1d(3, affine=False),
        r"'running_mean' has shape \(3,\)",
    ),
    'name': (
        lambda: nn.Linear(2, 1),
        lambda: nn.ParameterDict({'weight': torch.ones(1, 2), 'bias2': torch.ones(1)}),
        "it has 'bias2', but the module has no such parameter",
    ),
    'name of a buffer': (
        lambda: with_extra(nn.Linear(2, 1), a=torch.ones(1)),
        lambda: with_extra(nn.Linear(2, 1), b=torch.ones(1)),
        "it has 'b', but the module has no such buffer",
    ),
    'too many layers': (
        lambda: nn.Linear(2, 2),
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        'it has parameters of 2 submodules, but the module has parameters of 1',
    ),
    'too few layers': (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        lambda: nn.Linear(2, 2),
        'it has parameters of 1 submodules',
    ),
    'too few parameters': (
        lambda: nn.Linear(2, 1),
        lambda: nn.Linear(2, 1, bias=False),
        "the parameter 'bias' of the module is not in it",
    ),
    'no buffers': (lambda: nn.Linear(2, 1), lambda: with_extra(nn.Linear(2, 1), a=torch.ones(1)),
                   'it has buffers of 1 submodules, but the module has buffers of 0'),
}  # fmt: skip


@pytest.mark.parametrize(('make', 'other', 'text'), FOREIGN.values(), ids=FOREIGN)
def test_the_state_of_another_module_changes_nothing(make, other, text):
    module = make()
    before = slots(module)
    state = torchopt.extract_state_dict(other())
    with pytest.raises(ValueError, match=text + '.*another module'):
        torchopt.recover_state_dict(module, state)
    assert same(slots(module), before)


@pytest.mark.parametrize('state', [None, (), {'weight': torch.ones(1, 2)}, (UninitializedState(),)])
def test_a_state_that_is_none_of_a_module(state):
    with pytest.raises(TypeError, match='Unexpected class of state'):
        torchopt.recover_state_dict(nn.Linear(2, 1), state)


# -- optimizers ----------------------------------------------------------------------------------


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


@each_by
@each_optimizer
def test_state_of_an_optimizer(optimizer_of, by):
    net = nn.Linear(2, 1)
    optimizer = optimizer_of(net)
    state = torchopt.extract_state_dict(optimizer, by=by)
    assert isinstance(state, tuple)
    assert [type(group) for group in state] == [UninitializedState]

    step(optimizer, net)
    state = torchopt.extract_state_dict(optimizer, by=by)
    current = optimizer.state_dict()
    assert torchopt.tree.structure(state) == torchopt.tree.structure(tuple(current))
    for original, replica in zip(
        torchopt.tree.leaves(current), torchopt.tree.leaves(state), strict=True
    ):
        if isinstance(original, torch.Tensor) and original.is_floating_point():
            check_replica(by, original, replica)
        else:
            assert replica == original


@pytest.mark.parametrize('by', ['copy', 'deepcopy'])
@each_optimizer
def test_recovered_optimizer_repeats_its_steps(optimizer_of, by):
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    optimizer = optimizer_of(net)
    step(optimizer, net)
    start = [torchopt.extract_state_dict(target, by=by) for target in (net, optimizer)]
    results = []
    for _ in range(3):
        # Fresh copies for the optimizers that step in place: recovery shares tensors (Q8).
        fresh = torchopt.module_clone(tuple(start), by='deepcopy')
        torchopt.recover_state_dict(net, fresh[0])
        torchopt.recover_state_dict(optimizer, fresh[1])
        if not isinstance(optimizer, torchopt.MetaOptimizer):
            optimizer = optimizer_of(net)
            torchopt.recover_state_dict(optimizer, fresh[1])
        for _ in range(2):
            step(optimizer, net)
        results.append(torch.cat([param.detach().flatten() for param in net.parameters()]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_meta_optimizer_goes_back_to_its_first_step():
    net = nn.Linear(2, 1)
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    start = [torchopt.extract_state_dict(target) for target in (net, optimizer)]
    results = []
    for _ in range(3):
        for _ in range(2):
            step(optimizer, net)
        results.append(net.weight)
        torchopt.recover_state_dict(net, start[0])
        torchopt.recover_state_dict(optimizer, start[1])
        assert isinstance(optimizer.state_groups[0], UninitializedState)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


class Mixed(NamedTuple):
    count: int
    nothing: None
    name: str
    moment: dict
    tied: torch.Tensor


def mixed_state():
    w = torch.ones(2, requires_grad=True)
    return Mixed(3, None, 'x', {'w': w * 2, 'none': None}, w)


@each_by
def test_other_leaves_of_a_state_are_kept(by):
    net = nn.Linear(2, 1)
    optimizer = torchopt.MetaSGD(net, lr=0.1)
    state = mixed_state()
    optimizer.state_groups[0] = state._replace(moment={'w': state.tied, 'none': None})
    (taken,) = torchopt.extract_state_dict(optimizer, by=by)
    assert (taken.count, taken.nothing, taken.name, taken.moment['none']) == (3, None, 'x', None)
    assert taken.moment['w'] is taken.tied


@pytest.mark.parametrize(
    ('state_of', 'error', 'text'),
    [
        (lambda net: None, TypeError, 'Unexpected class of state'),
        (torchopt.extract_state_dict, TypeError, 'Unexpected class of state'),
        (lambda net: (), ValueError, '0 states, .* 1 groups'),
        (lambda net: ((), ()), ValueError, '2 states, .* 1 groups'),
        (lambda net: optimizer_state(nn.Linear(3, 1)), ValueError, 'shape'),
        (lambda net: optimizer_state(net, torchopt.MetaSGD), ValueError, 'structure'),
    ],
)  # fmt: skip
def test_the_state_of_another_optimizer_changes_nothing(state_of, error, text):
    net = nn.Linear(2, 1)
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    step(optimizer, net)
    before = optimizer.state_dict()
    with pytest.raises(error, match=text):
        torchopt.recover_state_dict(optimizer, state_of(nn.Linear(2, 1)))
    assert same(optimizer.state_dict(), before)


def optimizer_state(net, face=torchopt.MetaAdam):
    optimizer = face(net, lr=0.1)
    step(optimizer, net)
    return torchopt.extract_state_dict(optimizer)


# -- stop_gradient -------------------------------------------------------------------------------


@each_kind
def test_stop_gradient_of_a_module(make):
    module = make()
    take_a_step(module)
    before = slots(module)
    requires_grad = [tensor.requires_grad for tensor in before]
    values = [tensor.detach().clone() for tensor in before]
    assert torchopt.stop_gradient(module) is None
    assert same(slots(module), before)  # in place
    assert all(tensor.grad_fn is None for tensor in before)
    assert [tensor.requires_grad for tensor in before] == requires_grad
    assert all(torch.equal(*pair) for pair in zip(before, values, strict=True))


def test_stop_gradient_leaves_buffers_and_meta_members_alone():
    phi = torch.ones((), requires_grad=True) * 2
    module = Borrower(nn.Linear(2, 3), phi)
    module.register_buffer('learned', phi * 3)
    take_a_step(module.backbone)
    take_a_step(module.head)
    torchopt.stop_gradient(module)
    assert module.head.weight.grad_fn is None
    assert phi.grad_fn is not None
    assert module.learned.grad_fn is not None
    assert module.backbone.weight.grad_fn is not None


def test_stop_gradient_of_a_state():
    module = nn.BatchNorm1d(2)
    take_a_step(module)
    module.running_mean = module.weight * 2
    state = torchopt.extract_state_dict(module)
    torchopt.stop_gradient(state)
    assert all(tensor.grad_fn is None for tensor in saved(state))
    assert state.buffers[0]['running_mean'].requires_grad
    assert not state.buffers[0]['running_var'].requires_grad


@each_optimizer
def test_stop_gradient_of_an_optimizer(optimizer_of):
    net = nn.Linear(2, 1)
    optimizer = optimizer_of(net)
    torchopt.stop_gradient(optimizer)
    step(optimizer, net)
    tensors = optimizer_tensors(optimizer)
    requires_grad = [tensor.requires_grad for tensor in tensors]
    torchopt.stop_gradient(optimizer)
    assert same(optimizer_tensors(optimizer), tensors)
    assert all(tensor.grad_fn is None for tensor in tensors)
    assert [tensor.requires_grad for tensor in tensors] == requires_grad


def test_stop_gradient_of_a_tree():
    net = nn.Linear(2, 1)
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    step(optimizer, net)
    state = torchopt.extract_state_dict(net, by='copy', enable_visual=True)
    w = torch.ones(2, requires_grad=True)
    target = {'net': net, 'rest': [optimizer, (state, None, 3, 'x', w * 2)], 'leaf': w}
    torchopt.stop_gradient(target)
    assert target['rest'][1][4].grad_fn is None
    assert target['rest'][1][4].requires_grad
    assert w.requires_grad
    for tensor in [*net.parameters(), *optimizer_tensors(optimizer), *saved(state)]:
        assert tensor.grad_fn is None


def test_stop_gradient_replaces_views_in_modules_and_states():
    flat = torch.arange(8.0, requires_grad=True) * 1
    module = Tied()
    module.encode._parameters['weight'] = flat[:3].expand(3, 3)
    module.decode._parameters['weight'] = module.encode.weight
    module.decode._parameters['bias'] = flat[3:6]
    state = torchopt.extract_state_dict(module)
    for target, places in (
        (module, lambda: list(module.parameters())),
        (state, lambda: saved(state)[:3]),
    ):
        values = [tensor.detach().clone() for tensor in places()]
        assert all(tensor.grad_fn is not None for tensor in places())
        torchopt.stop_gradient(target)
        assert all(tensor.is_leaf and tensor.requires_grad for tensor in places())
        assert all(torch.equal(*pair) for pair in zip(places(), values, strict=True))
    assert module.encode.weight is module.decode.weight
    assert state.params[0]['weight'] is state.params[1]['weight']


def test_stop_gradient_names_a_view_that_it_cannot_detach():
    w = torch.ones(4, requires_grad=True) * 1
    first = w * 2
    target = {'a': first, 'b': [None, w[:2]]}
    with pytest.raises(ValueError, match=r"target\['b'\]\[1\]: this tensor is a view of another"):
        torchopt.stop_gradient(target)
    assert first.grad_fn is not None  # nothing was detached
    constant = torch.ones(4)[:2]
    torchopt.stop_gradient([constant])  # a view without a graph is no obstacle
    with pytest.raises(ValueError, match=r'target: this tensor is a view'):
        torchopt.stop_gradient(w[:2])


def test_module_detach_returns_its_argument():
    net = nn.Linear(2, 1)
    take_a_step(net)
    assert torchopt.module_detach_(net) is net
    assert net.weight.grad_fn is None


# -- module_clone --------------------------------------------------------------------------------


@each_by
@each_kind
@pytest.mark.parametrize('stepped', [False, True], ids=['fresh', 'after a step'])
def test_clone_of_a_module(make, by, stepped):
    module = make()
    if stepped:
        take_a_step(module)
    twin = torchopt.module_clone(module, by=by)
    assert type(twin) is type(module)
    originals = {id(part) for part in module.modules()}
    for part in twin.modules():
        assert id(part) not in originals
    for ours, theirs in zip(module.modules(), twin.modules(), strict=True):
        for kind in ('_parameters', '_buffers', '_modules'):
            assert getattr(ours, kind) is not getattr(theirs, kind)
            assert list(getattr(ours, kind)) == list(getattr(theirs, kind))
    for original, replica in zip(slots(module), slots(twin), strict=True):
        check_replica(by, original, replica)
    assert pattern(slots(module)) == pattern(slots(twin))


@each_by
def test_clone_keeps_meta_members_and_attributes(by):
    module = Borrower(nn.Linear(2, 3), torch.ones((), requires_grad=True) * 2)
    take_a_step(module.backbone)
    module.cache.append(module.penalty * 3)  # copy.deepcopy refuses tensors with a graph
    twin = torchopt.module_clone(module, by=by)
    ours, theirs = dict(module.named_meta_parameters()), dict(twin.named_meta_parameters())
    assert list(ours) == list(theirs) == ['penalty', 'backbone.weight', 'backbone.bias']
    for name, original in ours.items():
        check_replica(by, original, theirs[name])
    for original, replica in zip(module.cache, twin.cache, strict=True):
        check_replica(by, original, replica)
    assert twin.cache is not module.cache
    assert twin.backbone is not module.backbone
    twin.again = twin.penalty
    assert 'again' in twin._meta_parameters


def test_clone_with_detached_buffers():
    module = nn.BatchNorm1d(2)
    twin = torchopt.module_clone(module, by='reference', detach_buffers=True)
    assert twin.weight is module.weight
    assert twin.running_mean is not module.running_mean
    twin(torch.randn(4, 2))
    assert module.num_batches_tracked == 0
    assert twin.num_batches_tracked == 1


@each_by
@each_kind
def test_clone_to_meta_device(make, by):
    twin = torchopt.module_clone(make(), by=by, device='meta')
    assert all(tensor.device.type == 'meta' for tensor in slots(twin))
    assert pattern(slots(twin)) == pattern(slots(make()))


@each_by
def test_clone_of_a_recurrent_module_computes_the_same(by):
    torch.manual_seed(0)
    module = nn.LSTM(2, 3)
    twin = torchopt.module_clone(module, by=by)
    x = torch.randn(4, 1, 2)
    assert torch.equal(module(x)[0], twin(x)[0])


@each_by
@each_optimizer
def test_clone_of_an_optimizer(optimizer_of, by):
    net = nn.Linear(2, 1)
    optimizer = optimizer_of(net)
    step(optimizer, net)
    twin = torchopt.module_clone(optimizer, by=by)
    assert twin is not optimizer
    assert twin.state_groups is not optimizer.state_groups
    for original, replica in zip(
        optimizer_tensors(optimizer), optimizer_tensors(twin), strict=True
    ):
        if original.is_floating_point():
            check_replica(by, original, replica)


@each_by
def test_clones_made_together_stay_together(by):
    net = Tied()
    optimizer = torchopt.MetaAdam(net, lr=0.1)
    step(optimizer, net)
    twins = torchopt.module_clone({'net': net, 'optimizer': optimizer}, by=by)
    theirs = twins['net']
    values = [tensor.detach().clone() for tensor in slots(net)]
    step(twins['optimizer'], theirs)
    step(optimizer, net)
    assert all(torch.equal(*pair) for pair in zip(slots(net), slots(theirs), strict=True))
    assert not torch.equal(slots(net)[0], values[0])
    assert theirs.encode.weight is theirs.decode.weight


@each_by
def test_clone_of_a_tree(by):
    w = torch.ones(2, requires_grad=True)
    target = {'w': w, 'again': (w, None, 3, 'x'), 'state': mixed_state()}
    twin = torchopt.module_clone(target, by=by)
    check_replica(by, w, twin['w'])
    assert twin['again'][0] is twin['w']
    assert twin['again'][1:] == (None, 3, 'x')
    assert type(twin['state']) is Mixed
    assert torch.equal(twin['state'].moment['w'], target['state'].moment['w'])


def test_training_a_clone_does_not_touch_the_original():
    net = nn.Linear(2, 1)
    twin = torchopt.module_clone(net, by='reference')
    before = slots(net)
    optimizer = torchopt.MetaSGD(twin, lr=0.1)
    step(optimizer, twin)
    assert same(slots(net), before)
    (grad,) = torch.autograd.grad(loss_of(twin), net.weight)
    torch.testing.assert_close(grad, 2 * 0.8 * 0.8 * net.weight)  # loss = |0.8 w|^2


# -- inner loops ---------------------------------------------------------------------------------


def test_batch_norm_in_an_inner_loop():
    """Every task starts from the same buffers: outer gradients do not depend on the order."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    params = list(net.parameters())
    tasks = [(torch.randn(6, 3).double(), torch.randn(6, 1).double()) for _ in range(3)]
    optimizer = torchopt.MetaSGD(net, lr=0.1)
    start = torchopt.extract_state_dict(net, by='reference', detach_buffers=True)
    clean = copy.deepcopy(net.state_dict())
    optimizer_start = torchopt.extract_state_dict(optimizer)

    def adapt(x, y):
        for _ in range(2):
            optimizer.step((net(x) - y).square().mean())
        grads = torch.autograd.grad((net(x) - y).square().mean(), params, allow_unused=True)
        assert net[1].num_batches_tracked == 3
        torchopt.recover_state_dict(net, start)
        torchopt.recover_state_dict(optimizer, optimizer_start)
        return [grad for grad in grads if grad is not None]

    once = [adapt(*task) for task in tasks]
    for name, value in net.state_dict().items():
        assert torch.equal(value, clean[name]), name
    again = [adapt(*task) for task in reversed(tasks)][::-1]
    for first, second in zip(once, again, strict=True):
        assert len(first) == len(params)
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert same(net.parameters(), params)


class Probe(torch.autograd.Function):
    """The identity. Its node is a Python object that lives exactly as long as its graph."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return Probe.apply(grad)


def census() -> tuple[int, int, int]:
    """Live tensors, graph nodes that they lead to, and probes in graphs whoever holds them."""
    gc.collect()
    alive = gc.get_objects()
    tensors = [x for x in alive if issubclass(type(x), torch.Tensor)]
    probes = [x for x in alive if type(x).__name__ == 'ProbeBackward']
    nodes = {tensor.grad_fn for tensor in tensors} - {None}
    todo = list(nodes)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in nodes:
                nodes.add(node)
                todo.append(node)
    return len(tensors), len(nodes), len(probes)


class Recover:
    """Every outer iteration starts from the same state."""

    def __init__(self, *targets, by):
        self.targets = targets
        self.states = [torchopt.extract_state_dict(target, by=by) for target in targets]

    def __call__(self):
        for target, state in zip(self.targets, self.states, strict=True):
            torchopt.recover_state_dict(target, state)


class CopyAndRecover:
    """Every outer iteration goes on from a copy without a graph."""

    def __init__(self, *targets):
        self.targets = targets

    def __call__(self):
        for target in self.targets:
            state = torchopt.extract_state_dict(target, by='deepcopy', detach_buffers=True)
            torchopt.recover_state_dict(target, state)


class Stop:
    """Every outer iteration goes on from where the last one ended."""

    def __init__(self, *targets):
        self.targets = targets

    def __call__(self):
        for target in self.targets:
            torchopt.stop_gradient(target)


# Outer iterations, and what is done at the end of each.
RELEASES = {
    'recover by reference': (300, lambda *targets: Recover(*targets, by='reference')),
    'recover by copy': (60, lambda *targets: Recover(*targets, by='copy')),
    'recover by deepcopy': (60, lambda *targets: Recover(*targets, by='deepcopy')),
    'extract and recover': (60, CopyAndRecover),
    'stop_gradient': (300, Stop),
    'stop_gradient of a tuple': (60, lambda *targets: Stop(targets)),
}
META = {
    'MetaSGD': lambda net: torchopt.MetaSGD(net, lr=0.01, momentum=0.9),
    'MetaAdam': lambda net: torchopt.MetaAdam(net, lr=0.01),
}


def outer_loop(optimizer_of, release_of, iterations, every, retain_graph=False):
    """Train a learned penalty through two inner steps; take a census every so often."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))
    penalty = torch.zeros((), requires_grad=True)
    inner = optimizer_of(net)
    outer = torch.optim.Adam([penalty], lr=0.01)
    release = release_of(net, inner)
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    found = []
    for i in range(iterations):
        for _ in range(2):
            shrink = penalty.exp() * net[0].weight.square().sum()
            inner.step(Probe.apply((net(x) - y).square().mean() + shrink))
        loss = (net(x) - y).square().mean()
        outer.zero_grad()
        loss.backward(inputs=[penalty], retain_graph=retain_graph)
        assert penalty.grad.abs() > 0
        outer.step()
        del loss, shrink
        release()
        if i % every == every - 1:
            found.append(census())
    return found


@pytest.mark.parametrize('optimizer_of', META.values(), ids=META)
@pytest.mark.parametrize(('iterations', 'release_of'), RELEASES.values(), ids=RELEASES)
def test_memory_is_released(optimizer_of, iterations, release_of):
    found = outer_loop(optimizer_of, release_of, iterations, every=iterations // 6)
    assert len(found) == 6
    assert set(found) == {found[0]}


def test_memory_is_kept_without_release():
    """What the test above would see if nothing were released."""
    found = outer_loop(
        META['MetaAdam'], lambda *targets: lambda: None, iterations=4, every=1, retain_graph=True
    )
    for (_, *earlier), (_, *later) in itertools.pairwise(found):
        assert all(x < y for x, y in zip(earlier, later, strict=True))
