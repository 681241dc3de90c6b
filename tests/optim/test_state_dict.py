# SPDX-License-Identifier: Apache-2.0
"""States of optimizers in the layout of torch.optim: what they hold, that runs go on from them, what is refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint import state_dict as distributed

import torchopt
from tests.optim.test_optimizer import FACES, every, network, same, train
from torchopt import interop
from torchopt.base import UninitializedState
from torchopt.schedule import exponential_decay

f64 = torch.float64


def through_file(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_leaves(x: Any) -> list[Any]:
    return [y.clone() if isinstance(y, torch.Tensor) else y for y in torchopt.tree.leaves(x)]


# -- the layout --------------------------------------------------------------------------------------------------------


@every
def test_entries_are_those_of_torch(name: str) -> None:
    """What has a name of torch.optim has the number that torch.optim has."""
    ours, options, theirs = FACES[name]
    first, second = network(), network()
    optimizer, reference = ours(first.parameters(), **options), theirs(second.parameters(), **options)
    train(first, optimizer, 3)
    train(second, reference, 3)
    found, expected = optimizer.state_dict(), reference.state_dict()
    assert list(found) == list(expected) == ['state', 'param_groups']
    assert found['param_groups'][0]['params'] == [0, 1, 2, 3]
    assert found['state'].keys() == expected['state'].keys()
    for i, entries in found['state'].items():
        twins = entries.keys() & expected['state'][i].keys()
        assert entries.keys() - twins <= {'count'}
        assert twins >= expected['state'][i].keys() - {'step'}
        for key in twins:
            value = expected['state'][i][key]
            torch.testing.assert_close(entries[key].to(value.dtype), value, rtol=1e-12, atol=1e-15)


def test_entries_are_the_state_itself() -> None:
    net = network()
    optimizer = torchopt.Adam([{'params': net[0].parameters()}, {'params': net[2].parameters(), 'lr': 0.3}])
    train(net, optimizer, 1)
    saved = optimizer.state_dict()
    assert saved['state'][3]['exp_avg'] is optimizer.state_groups[1][0].mu[1]
    assert optimizer.state[net[2].bias]['exp_avg'] is optimizer.state_groups[1][0].mu[1]
    assert list(optimizer.state) == list(net.parameters())
    assert [group['params'] for group in saved['param_groups']] == [[0, 1], [2, 3]]
    assert [group['lr'] for group in saved['param_groups']] == [1e-3, 0.3]
    assert saved['param_groups'][0]['betas'] == (0.9, 0.999)
    with pytest.raises(AttributeError, match='load_state_dict'):
        optimizer.state = {net[0].bias: {}}


def test_before_the_first_step_the_state_is_what_it_begins_with() -> None:
    net = network()
    optimizer = torchopt.Adam(net.parameters())
    assert optimizer.state_groups == [UninitializedState()]
    assert not optimizer.state[net[0].bias]['exp_avg'].any()
    assert not optimizer.state[net[0].bias]['step']
    assert optimizer.state_groups == [UninitializedState()]
    assert optimizer.state[nn.Parameter(torch.ones(1))] == {}


RULES: dict[str, tuple[Callable[[], Any], set[str]]] = {
    'one rule': (lambda: torchopt.adam(0.1), {'step', 'exp_avg', 'exp_avg_sq'}),
    'no state': (lambda: torchopt.sgd(0.1), set()),
    'clip, schedule': (
        lambda: torchopt.chain(torchopt.clip_grad_norm(0.5), torchopt.adamw(exponential_decay(0.1, 0.9))),
        {'step', 'exp_avg', 'exp_avg_sq', 'count'},
    ),
    'two of one kind': (
        lambda: torchopt.chain(torchopt.transform.trace(0.5), torchopt.transform.trace(0.3), torchopt.sgd(0.1)),
        {'0.momentum_buffer', '1.momentum_buffer'},
    ),
    'partition': (
        lambda: torchopt.transform.partition(
            {'slow': torchopt.sgd(0.01, momentum=0.9), 'fast': torchopt.adam(0.1)}, ['slow', 'fast', 'slow', 'fast']
        ),
        {'momentum_buffer', 'step', 'exp_avg', 'exp_avg_sq'},
    ),
    'two parts of one kind': (
        lambda: torchopt.transform.partition(
            {'slow': torchopt.rmsprop(0.01), 'fast': torchopt.rmsprop(0.1)}, ['slow', 'fast', 'slow', 'fast']
        ),
        {f'inner_states.{label}.inner_state.0.square_avg' for label in ('slow', 'fast')},
    ),
    'masked': (
        lambda: torchopt.transform.masked(torchopt.rmsprop(0.1, centered=True), [True, False, True, True]),
        {'grad_avg', 'square_avg'},
    ),
}


@pytest.mark.parametrize('rule', RULES)
def test_plain_optimizers_go_on(rule: str) -> None:
    make, names = RULES[rule]
    net = network()
    optimizer = torchopt.Optimizer(net.parameters(), make())
    train(net, optimizer, 3)
    saved = through_file(optimizer.state_dict())
    assert {name for entries in saved['state'].values() for name in entries} == names
    twin = copy.deepcopy(net)
    other = torchopt.Optimizer(twin.parameters(), make())
    other.load_state_dict(saved)
    assert torchopt.tree.structure(other.state_groups) == torchopt.tree.structure(optimizer.state_groups)
    train(net, optimizer, 3)
    train(twin, other, 3)
    same(net, twin)


def test_parts_of_a_parameter_and_parts_in_no_tree() -> None:
    """A state of another's making: several tensors for a parameter, numbers, nothing for some."""

    def init(params: Any) -> Any:
        own = [None if p.ndim < 2 else (p.sum(0), {'col': p.sum(1)}) for p in params]
        return {'factors': own, 'steps': 0, 'total': torch.zeros(2)}

    def update(updates: Any, state: Any, params: Any = None, inplace: bool = False) -> Any:
        return updates, {**state, 'steps': state['steps'] + 1, 'total': state['total'] + 1.0}

    tx = torchopt.base.GradientTransformation(init, update)
    net = network()
    optimizer = torchopt.Optimizer(net.parameters(), tx)
    train(net, optimizer, 2)
    saved = through_file(optimizer.state_dict())
    assert set(saved['state'][0]) == {'factors.0', 'col', 'steps', 'total'}
    assert set(saved['state'][1]) == {'steps', 'total'}
    other = torchopt.Optimizer(net.parameters(), tx)
    other.load_state_dict(saved)
    assert torchopt.tree.structure(other.state_groups) == torchopt.tree.structure(optimizer.state_groups)
    torch.testing.assert_close(torchopt.tree.leaves(other.state_groups), torchopt.tree.leaves(optimizer.state_groups))


PLAIN_RULES: dict[str, Any] = {
    'AMSGrad': torchopt.amsgrad(0.1),
    'schedule': torchopt.chain(torchopt.clip_grad_norm(0.5), torchopt.adamw(exponential_decay(0.1, 0.9))),
    'partition': torchopt.transform.partition(
        {'slow': torchopt.sgd(0.01, momentum=0.9), 'fast': torchopt.adam(0.1)}, ['slow', 'fast', 'slow', 'fast']
    ),
    'injected': torchopt.schedule.inject_hyperparams(torchopt.adam)(learning_rate=exponential_decay(0.1, 0.9)),
}


@pytest.mark.parametrize('steps', [0, 2])
@pytest.mark.parametrize('rule', [*FACES, *PLAIN_RULES])
def test_entries_share_no_tensors(rule: str, steps: int) -> None:
    """torch.optim counts up the step of each entry in place: neither another entry nor the optimizer may see that."""
    net = network()
    make, options, _ = FACES.get(rule, (lambda params: interop.as_torch_optimizer(PLAIN_RULES[rule], params), {}, None))
    optimizer = make(net.parameters(), **options)
    train(net, optimizer, steps)
    before = by_leaves(optimizer.state_groups)
    for saved in (optimizer.state_dict(), through_file(optimizer.state_dict())):
        tensors = [x for entry in saved['state'].values() for x in entry.values() if isinstance(x, torch.Tensor)]
        assert len({x.data_ptr() for x in tensors}) == len(tensors)
        for entry in saved['state'].values():
            for name in entry.keys() & {'step', 'count'}:
                entry[name] += 1
    assert all(
        torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(before, by_leaves(optimizer.state_groups))
    )


@pytest.mark.parametrize('foreach', [False, True])
@pytest.mark.parametrize('name', ['Adam', 'AdamW', 'AdaMax', 'RAdam', 'SGD'])
def test_torch_continues_from_our_states(name: str, foreach: bool) -> None:
    ours, options, theirs = FACES[name]
    first, second = network(), network()
    optimizer = ours(first.parameters(), **options)
    train(first, optimizer, 3)
    second.load_state_dict(first.state_dict())
    reference = theirs(second.parameters(), **options, foreach=foreach)
    saved = through_file(optimizer.state_dict())
    for group, own in zip(saved['param_groups'], reference.param_groups):
        for key in own.keys() - group.keys():  # torch.optim does not add its own options
            group[key] = own[key]
    reference.load_state_dict(saved)
    train(first, optimizer, 3)
    train(second, reference, 3)
    same(first, second, rtol=1e-11, atol=1e-13)


def test_counts_are_exact() -> None:
    """Also those that single precision cannot represent."""
    net = network()
    optimizer = torchopt.Adam(net.parameters())
    train(net, optimizer, 1)
    optimizer.state_groups[0][0].count.fill_(2**24 + 1)
    optimizer.load_state_dict(through_file(optimizer.state_dict()))
    assert int(optimizer.state_groups[0][0].count) == 2**24 + 1


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('steps', [0, 3])
@pytest.mark.parametrize('layout', ['torch', '0.7.3'])
@every
def test_states_continue(name: str, layout: str, steps: int) -> None:
    make, options, _ = FACES[name]

    def build(net: nn.Module, **options: Any) -> Any:
        return make([{'params': net[0].parameters()}, {'params': net[2].parameters(), 'lr': 0.02}], **options)

    net = network()
    optimizer = build(net, **options)
    train(net, optimizer, steps)
    saved = through_file(optimizer.state_dict() if layout == 'torch' else tuple(optimizer.state_groups))
    twin = copy.deepcopy(net)
    other = build(twin, **options)
    other.load_state_dict(saved)
    train(twin, other, 3)
    train(net, optimizer, 3)
    same(net, twin)


def test_options_are_loaded() -> None:
    """Options of the groups come with the state, functions excepted, and so does what schedulers put there."""
    net = network()
    optimizer = torchopt.Adam(net.parameters(), lr=torch.tensor(0.1, dtype=f64), weight_decay=0.3)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(net, optimizer, 2)
    optimizer.param_groups[0].update(betas=(0.5, 0.6), weight_decay=0.1)
    twin = copy.deepcopy(net)
    other = torchopt.Adam(twin.parameters())
    saved = optimizer.state_dict()
    other.load_state_dict(saved)
    assert float(other.param_groups[0]['initial_lr']) == 0.1
    assert other.param_groups[0]['lr'] is not optimizer.param_groups[0]['lr']
    train(twin, other, 2)
    kept = [p.detach().clone() for p in net.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), kept, strict=True))
    train(net, optimizer, 2)
    same(net, twin)


def test_functions_stay_with_the_program() -> None:
    net = network()
    options = {'lr': exponential_decay(0.1, 0.9), 'mask': lambda params: [p.ndim > 1 for p in params]}
    optimizer = torchopt.AdamW(net.parameters(), **options)
    train(net, optimizer, 2)
    saved = through_file(optimizer.state_dict())
    assert not {'lr', 'mask'} & saved['param_groups'][0].keys()
    twin = copy.deepcopy(net)
    other = torchopt.AdamW(twin.parameters(), **options)
    other.load_state_dict(saved)
    train(twin, other, 2)
    train(net, optimizer, 2)
    same(net, twin)


def test_loaded_tensors_are_copies_of_the_right_dtype() -> None:
    net = network()
    optimizer = torchopt.Adam(net.parameters())
    train(net, optimizer, 1)
    saved = optimizer.state_dict()
    before = by_leaves(saved)
    single = copy.deepcopy(net).float()
    other = torchopt.Adam(single.parameters())
    other.load_state_dict(saved)
    assert {x.dtype for x in other.state_groups[0][0].mu} == {torch.float32}
    twin = torchopt.Adam(net.parameters())
    twin.load_state_dict(saved)
    train(net, twin, 2)
    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(before, by_leaves(saved)))


@pytest.mark.parametrize('name', ['Adam', 'AdamW', 'AdaMax', 'RAdam', 'SGD'])
def test_states_of_torch_load(name: str) -> None:
    ours, options, theirs = FACES[name]
    first, second = network(), network()
    reference = theirs(second.parameters(), **options)
    train(second, reference, 3)
    first.load_state_dict(second.state_dict())
    optimizer = ours(first.parameters()) if name != 'SGD' else ours(first.parameters(), lr=9.0)
    optimizer.load_state_dict(through_file(reference.state_dict()))
    train(first, optimizer, 3)
    train(second, reference, 3)
    same(first, second, rtol=1e-11, atol=1e-13)


def test_frozen_parameters_need_no_entries() -> None:
    net = network()
    net[0].requires_grad_(False)
    reference = torch.optim.Adam(net.parameters())
    train(net, reference, 2)
    optimizer = torchopt.Adam(net.parameters())
    optimizer.load_state_dict(reference.state_dict())
    assert int(optimizer.state_groups[0][0].count) == 2
    assert not optimizer.state_groups[0][0].mu[0].any()


OPTIONS: dict[str, tuple[Any, Any, dict[str, Any], list[str]]] = {
    'decoupled': (torch.optim.Adam, torchopt.Adam, {'decoupled_weight_decay': True}, ['Adam', 'AdamW']),
    'AdamW': (torch.optim.AdamW, torchopt.Adam, {}, ['decoupled_weight_decay=True', 'AdamW']),
    'not decoupled': (torch.optim.Adam, torchopt.AdamW, {}, ['decoupled_weight_decay=False', 'Use Adam']),
    'RAdam': (torch.optim.RAdam, torchopt.RAdam, {'decoupled_weight_decay': True}, ['scale_by_radam', 'decayed']),
    'amsgrad': (torch.optim.Adam, torchopt.Adam, {'amsgrad': True}, ['amsgrad=True', 'torchopt.amsgrad']),
    'maximize': (torch.optim.Adamax, torchopt.Adamax, {'maximize': True}, ['maximize=True', 'Negate the loss']),
    'other class': (torch.optim.NAdam, torchopt.Adam, {}, ['momentum_decay=0.004', 'Adam does not support']),
    'plain': (torch.optim.Adam, lambda params: torchopt.Optimizer(params, torchopt.adam()), {}, ['lr=', 'impl']),
}


@pytest.mark.parametrize('case', OPTIONS)
def test_options_that_would_be_ignored(case: str) -> None:
    """An option that changes the rule is refused: of a loaded state, and of a group."""
    theirs, ours, options, words = OPTIONS[case]
    net = network()
    reference = theirs(net.parameters(), **options)
    optimizer = ours(net.parameters())
    before = dict(optimizer.param_groups[0])
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(reference.state_dict())
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert optimizer.param_groups[0] == before
    group = {k: v for k, v in reference.param_groups[0].items() if k != 'params'}
    with pytest.raises((TypeError, ValueError)) as caught:
        optimizer.add_param_group({'params': [nn.Parameter(torch.ones(1))], **group})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ('theirs', 'ours', 'options'),
    [
        (torch.optim.Adam, torchopt.Adam, {'foreach': True, 'maximize': True}),
        (torch.optim.AdamW, torchopt.AdamW, {'foreach': True, 'fused': False}),
        (torch.optim.Adam, torchopt.AdamW, {'decoupled_weight_decay': True, 'differentiable': True}),
        (torch.optim.SGD, torchopt.SGD, {'momentum': 0.9, 'nesterov': True}),
    ],
)
def test_options_that_do_not_change_the_rule_are_loaded(theirs: Any, ours: Any, options: dict[str, Any]) -> None:
    net = network()
    optimizer = ours(net.parameters(), lr=0.1)
    saved = theirs(net.parameters(), **options).state_dict()
    saved['param_groups'][0]['mine'] = 'x'
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]['mine'] == 'x'


def change(path: tuple[Any, ...], value: Any = None) -> Callable[[dict[str, Any]], Any]:
    """Put a value at a place, or with None take away what is there."""

    def act(saved: dict[str, Any]) -> Any:
        place = saved
        for key in path[:-1]:
            place = place[key]
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return saved

    return act


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], list[str]]] = {
    'entry missing': (change(('state', 1, 'exp_avg')), ValueError, ["['state'][1]", "'exp_avg'", 'step', 'Load']),
    'parameter missing': (change(('state', 2)), ValueError, ["['state'][2]", "no 'step'", 'Load']),
    'unexpected': (change(('state', 0, 'sum'), torch.ones(1)), ValueError, ["['state'][0]", "['sum']", 'does not']),
    'shape': (change(('state', 0, 'exp_avg'), torch.ones(9)), ValueError, ["[0]['exp_avg']", '(9,)', '(4, 3)', 'Load']),
    'complex': (change(('state', 1, 'exp_avg'), torch.ones(4) * 1j), ValueError, ["[1]['exp_avg']", 'complex64']),
    'text': (change(('state', 1, 'exp_avg'), 'x'), TypeError, ["[1]['exp_avg']", 'str', 'tensor']),
    'no dict': (change(('state', 1), [1]), TypeError, ["['state'][1]", 'list', 'dict']),
    'steps differ': (
        change(('state', 1, 'step'), torch.tensor(7)),
        ValueError,
        ['[0]', '[1]', "'step'", '7', 'groups'],
    ),
    'stranger': (change(('state', 9), {'step': torch.tensor(2)}), ValueError, ['in none of its groups', '9']),
    'fewer parameters': (change(('param_groups', 0, 'params'), [0, 1, 2]), ValueError, ['[0] holds 3', '4 parameters']),
    'option': (change(('param_groups', 0, 'lr'), -1.0), ValueError, ['-1.0']),
    'groups': (
        lambda saved: {**saved, 'param_groups': saved['param_groups'] * 2},
        ValueError,
        ['2 groups', '1 groups'],
    ),
    'wrapped': (lambda saved: {'optimizer': saved}, TypeError, ["'state'", "'param_groups'", 'in which it was saved']),
    'number': (lambda saved: 3, TypeError, ['int']),
    'other rule': (
        lambda saved: torchopt.AdaMax(network().parameters()).state_dict(),
        ValueError,
        ["['state'][0]", "'exp_avg_sq'", 'exp_inf'],
    ),
}


@pytest.mark.parametrize('case', MISFITS)
def test_states_that_do_not_fit(case: str) -> None:
    act, error, words = MISFITS[case]
    net = network()
    optimizer = torchopt.Adam(net.parameters(), lr=0.1)
    train(net, optimizer, 2)
    bad = act(copy.deepcopy(optimizer.state_dict()))
    held, options = optimizer.state_groups[0], dict(optimizer.param_groups[0])
    before = by_leaves(held)
    with pytest.raises(error) as caught:
        optimizer.load_state_dict(bad)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert optimizer.state_groups[0] is held
    assert all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in zip(before, by_leaves(held)))
    assert optimizer.param_groups[0] == options


# -- what torch does with optimizers -----------------------------------------------------------------------------------


def test_hooks() -> None:
    calls: list[str] = []
    net = network()
    optimizer = torchopt.Adam(net.parameters())
    optimizer.register_step_pre_hook(lambda o, args, kwargs: calls.append('step pre'))
    optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append('step post'))
    optimizer.register_state_dict_pre_hook(lambda o: calls.append('save pre'))
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, 'extra': calls.append('save post')})
    optimizer.register_load_state_dict_pre_hook(lambda o, saved: calls.append('load pre') or {**saved, 'read': 1})
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append('load post'))
    train(net, optimizer, 1)
    saved = optimizer.state_dict()
    assert 'extra' in saved
    optimizer.load_state_dict(saved)
    assert 'read' not in saved
    assert calls == ['step pre', 'step post', 'save pre', 'save post', 'load pre', 'load post']


def test_hooks_may_change_what_is_loaded() -> None:
    net = network()
    optimizer = torchopt.Adam(net.parameters())
    optimizer.register_load_state_dict_pre_hook(lambda o, saved: saved['wrapped'])
    optimizer.load_state_dict({'wrapped': torchopt.Adam(net.parameters(), lr=0.7).state_dict()})
    assert optimizer.param_groups[0]['lr'] == 0.7


# torch itself refuses a flat or full dict of an optimizer that has no options and no state.
@pytest.mark.parametrize(
    ('rule', 'kind'),
    [(rule, kind) for rule in ('Adam', 'SGD', 'schedule') for kind in ('nested', 'flat', 'full')]
    + [('no state', 'nested')],
)
@pytest.mark.filterwarnings('ignore:torch.distributed is disabled')
def test_distributed_checkpoint(rule: str, kind: str, tmp_path: Path) -> None:
    """Saved and loaded by the names of parameters, one frozen among them, into an optimizer that has not yet run."""

    def build(net: nn.Module) -> torchopt.Optimizer:
        net[0].bias.requires_grad_(False)
        params = reversed(list(net.parameters())) if fresh else net.parameters()
        if rule == 'Adam':
            return torchopt.Adam(params, lr=0.1)
        if rule == 'SGD':
            return torchopt.SGD(params, lr=0.1, momentum=0.9)
        tx = torchopt.adamw(exponential_decay(0.1, 0.9)) if rule == 'schedule' else torchopt.sgd(0.1, weight_decay=0.1)
        return torchopt.Optimizer(params, tx)

    options = distributed.StateDictOptions(
        flatten_optimizer_state_dict=kind == 'flat', full_state_dict=kind == 'full', cpu_offload=kind == 'full'
    )
    fresh = False
    net = network()
    optimizer = build(net)
    train(net, optimizer, 3)
    checkpoint.save(
        {'optimizer': distributed.get_optimizer_state_dict(net, optimizer, options=options)},
        checkpoint_id=tmp_path / 'saved',
        no_dist=True,
    )
    fresh = True
    twin = copy.deepcopy(net)
    other = build(twin)
    target = distributed.get_optimizer_state_dict(twin, other, options=options)
    same(net, twin)
    checkpoint.load({'optimizer': target}, checkpoint_id=tmp_path / 'saved', no_dist=True)
    distributed.set_optimizer_state_dict(twin, other, target, options=options)
    train(net, optimizer, 3)
    train(twin, other, 3)
    same(net, twin)


schedulers = torch.optim.lr_scheduler
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    'LambdaLR': lambda o: schedulers.LambdaLR(o, lambda t: 0.9**t),
    'MultiplicativeLR': lambda o: schedulers.MultiplicativeLR(o, lambda t: 0.9),
    'StepLR': lambda o: schedulers.StepLR(o, 2, 0.5),
    'MultiStepLR': lambda o: schedulers.MultiStepLR(o, [1, 3]),
    'ConstantLR': lambda o: schedulers.ConstantLR(o, 0.5, 2),
    'LinearLR': lambda o: schedulers.LinearLR(o, 0.5, total_iters=3),
    'ExponentialLR': lambda o: schedulers.ExponentialLR(o, 0.9),
    'SequentialLR': lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.5, 2), schedulers.ExponentialLR(o, 0.9)], milestones=[2]
    ),
    'PolynomialLR': lambda o: schedulers.PolynomialLR(o, 4),
    'CosineAnnealingLR': lambda o: schedulers.CosineAnnealingLR(o, 4),
    'ChainedScheduler': lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.5, 2), schedulers.ExponentialLR(o, 0.9)]
    ),
    'ReduceLROnPlateau': lambda o: schedulers.ReduceLROnPlateau(o, patience=0),
    'CyclicLR': lambda o: schedulers.CyclicLR(o, 0.01, 0.2, 2),
    'CosineAnnealingWarmRestarts': lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2),
    'OneCycleLR': lambda o: schedulers.OneCycleLR(o, 0.2, total_steps=8),
    'SWALR': lambda o: torch.optim.swa_utils.SWALR(o, 0.05, 2),
}


@pytest.mark.parametrize('name', ['Adam', 'SGD'])
@pytest.mark.parametrize('kind', SCHEDULERS)
def test_every_scheduler_of_torch(kind: str, name: str) -> None:
    """Rates, and with CyclicLR and OneCycleLR betas and momentum too; stopped in the middle and taken up again."""
    ours, options, theirs = FACES[name]
    first, second = network(), network()
    optimizer, reference = ours(first.parameters(), **options), theirs(second.parameters(), **options)
    schedule, expected = SCHEDULERS[kind](optimizer), SCHEDULERS[kind](reference)
    for step in range(6):
        if step == 3:
            saved = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
            optimizer = ours(first.parameters(), **options)
            schedule = SCHEDULERS[kind](optimizer)
            schedule.load_state_dict(saved[1])
            optimizer.load_state_dict(saved[0])
        for net, o, s in ((first, optimizer, schedule), (second, reference, expected)):
            train(net, o, 1)
            s.step(*([1.0] if kind == 'ReduceLROnPlateau' else []))
        assert optimizer.param_groups[0]['lr'] == pytest.approx(reference.param_groups[0]['lr'], rel=1e-12)
    same(first, second, rtol=1e-10, atol=1e-12)


def test_every_scheduler_is_in_the_table() -> None:
    known = {name for name in schedulers.__all__ if name not in ('LRScheduler',)}
    assert known <= SCHEDULERS.keys()


def test_grad_scaler() -> None:
    """The gradients are unscaled, and a step whose gradients are not finite is left out."""
    first, second = network().float(), network().float()
    pairs = [
        (net, make(net.parameters(), lr=0.1), torch.amp.GradScaler('cpu', init_scale=8.0))
        for net, make in ((first, torchopt.Adam), (second, torch.optim.Adam))
    ]
    for step in range(4):
        for net, optimizer, scaler in pairs:
            optimizer.zero_grad()
            loss = net(torch.full((2, 3), float('inf') if step == 2 else 0.5)).square().sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert pairs[0][2].get_scale() == pairs[1][2].get_scale() == 4.0
    assert int(pairs[0][1].state_groups[0][0].count) == 3
    same(first, second, rtol=1e-5, atol=1e-6)


def test_copies_take_new_groups() -> None:
    net = network()
    optimizer = torchopt.Adam(net[0].parameters(), lr=0.1)
    twin, other = copy.deepcopy((net, optimizer))
    assert other.defaults == optimizer.defaults
    other.add_param_group({'params': twin[2].parameters()})
    assert other.param_groups[1]['lr'] == 0.1
    train(twin, other, 2)
    assert len(optimizer.param_groups) == 1
