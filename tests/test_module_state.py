# SPDX-License-Identifier: Apache-2.0
"""Extracting and recovering the state of modules and optimizers."""

from __future__ import annotations

import io
from collections import OrderedDict

import pytest
import torch
from torch import nn

import torchopt
from tests.module_cases import (
    BY,
    Collections,
    check_replica,
    each_by,
    each_kind,
    each_optimizer,
    live_parameters,
    mixed_state,
    pattern,
    same,
    saved,
    slots,
    step,
    take_a_step,
)
from torchopt.base import UninitializedState
from torchopt.utils import ModuleState, extract_module_containers


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
        assert all(type(c) is type(o) and c is not o for c, o in zip(copies, originals, strict=True))
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
    for original, replica in zip(saved(torchopt.extract_state_dict(module)), saved(state), strict=True):
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
@pytest.mark.parametrize('call', [torchopt.extract_state_dict, torchopt.module_clone], ids=['extract', 'clone'])
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


@pytest.mark.filterwarnings('ignore:`torch.jit')
def test_compiled_by_torch_jit():
    net = torch.jit.trace(nn.Sequential(nn.Linear(2, 1)), torch.ones(1, 2))
    with pytest.raises(TypeError, match='from which torch'):
        torchopt.extract_state_dict(nn.Sequential(net))


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
    current = optimizer.state_groups
    assert torchopt.tree.structure(state) == torchopt.tree.structure(tuple(current))
    for original, replica in zip(torchopt.tree.leaves(current), torchopt.tree.leaves(state), strict=True):
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


@pytest.mark.parametrize(
    'call',
    [
        torchopt.stop_gradient,
        torchopt.module_detach_,
        torchopt.module_clone,
        lambda x: torchopt.module_clone(x, by='deepcopy'),
    ],
)
@pytest.mark.parametrize('of', [lambda net: net.parameters(), lambda net: iter(dict(net.named_parameters()).values())])
def test_iterators_are_refused(call, of):
    """A tree holds an iterator as one leaf, so that nothing would be detached or copied."""
    with pytest.raises(TypeError, match=r'target is .*iterator|target is a generator') as caught:
        call(of(nn.Linear(2, 1)))
    assert 'list(module.parameters())' in str(caught.value)


def test_a_saved_state_is_loaded_without_running_code():
    net, file = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)), io.BytesIO()
    torch.save(torchopt.extract_state_dict(net, by='deepcopy'), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    torchopt.recover_state_dict(other, state)
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
