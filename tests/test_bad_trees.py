# SPDX-License-Identifier: Apache-2.0
"""Bad trees, tensors, states, masks and schedules in the functional face.

Each is refused with a message that names the leaf, and leaves parameters, gradients and state as they were, also
where ``inplace=True`` would have let the step write into the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchopt
from tests.snapshot import Snapshot, refuses
from torchopt import transform, tree
from torchopt.base import GradientTransformation, UninitializedState

MOMENTS: dict[str, Callable[..., GradientTransformation]] = {
    'sgd': lambda **k: torchopt.sgd(0.1, momentum=0.9, dampening=0.5, **k),
    'adam': torchopt.adam,
    'adamw': torchopt.adamw,
    'adamax': torchopt.adamax,
    'radam': torchopt.radam,
    'adadelta': torchopt.adadelta,
    'adagrad': torchopt.adagrad,
    'rmsprop': torchopt.rmsprop,
    'rmsprop centered': lambda **k: torchopt.rmsprop(centered=True, **k),
    'decay first': lambda **k: torchopt.adam(weight_decay=0.1, **k),
}
both = pytest.mark.parametrize('inplace', [False, True])
every = pytest.mark.parametrize('name', MOMENTS)


def params() -> dict[str, Any]:
    return {'b': torch.tensor([1.0, -2.0, 3.0]), 'layer': [torch.ones(2, 3), torch.zeros(2)]}


def grads() -> dict[str, Any]:
    return {'b': torch.tensor([0.5, 0.25, -1.0]), 'layer': [torch.full((2, 3), 0.5), torch.ones(2)]}


def started(tx: GradientTransformation, p: Any) -> Any:
    """A state after one step, so that nothing in it is zero."""
    return tx.update(tree.map(lambda x: torch.full_like(x, 0.5), p), tx.init(p), p)[1]


def with_second(leaf: Any) -> dict[str, Any]:
    g = grads()
    g['layer'][1] = leaf
    return g


BAD_UPDATES: dict[str, tuple[Any, type[Exception], list[str]]] = {
    'entry missing': ({'b': torch.ones(3)}, ValueError, ["['layer']", 'not expected', 'same structure']),
    'entry too many': ({**grads(), 'c': torch.ones(1)}, ValueError, ["['c']", 'missing', 'same structure']),
    'another container': ([torch.ones(3), torch.ones(2, 3)], ValueError, ['expected a list', 'found a dict']),
    'list too short': ({**grads(), 'layer': [torch.ones(2, 3)]}, ValueError, ["['layer'][1]", 'same structure']),
    'shape': (with_second(torch.ones(3)), ValueError, ["updates['layer'][1]", '(3,)', '(2,)', 'same shape']),
    'shape that broadcasts': (with_second(torch.ones(1)), ValueError, ["updates['layer'][1]", '(1,)', '(2,)']),
    '0-d shape': (with_second(torch.tensor(1.0)), ValueError, ["updates['layer'][1]", '()', '(2,)']),
    'integers': (with_second(torch.ones(2, dtype=torch.int64)), TypeError, ["updates['layer'][1]", 'int64', 'None']),
    'booleans': (with_second(torch.ones(2, dtype=torch.bool)), TypeError, ["updates['layer'][1]", 'bool', 'None']),
    'no tensor': (with_second(1.0), TypeError, ["updates['layer'][1]", 'float', 'torch.as_tensor']),
    'sparse': (with_second(torch.ones(2).to_sparse()), RuntimeError, ["updates['layer'][1]", 'sparse', 'to_dense']),
}


@both
@every
@pytest.mark.parametrize('bad', BAD_UPDATES)
def test_updates(name: str, bad: str, inplace: bool) -> None:
    tx, p = MOMENTS[name](), params()
    g, error, words = BAD_UPDATES[bad]
    state = started(tx, p)
    refuses(lambda: tx.update(g, state, p, inplace=inplace), error, words, state, p, g)


@both
@every
def test_complex_updates_of_real_parameters(name: str, inplace: bool) -> None:
    """In place they are refused before anything is written; otherwise at the latest when they are applied."""
    tx, p = MOMENTS[name](), params()
    g, state = with_second(torch.ones(2, dtype=torch.complex64)), started(tx, p)

    def step() -> None:
        updates, _ = tx.update(g, state, p, inplace=inplace)
        torchopt.apply_updates(p, updates)

    refuses(step, TypeError, ['complex'], state, p, g)


NET = torch.nn.Linear(1, 1)
BAD_PARAMETERS: dict[str, tuple[Any, list[str]]] = {
    'integers': ({'w': torch.ones(2), 'n': torch.ones(2, dtype=torch.int64)}, ["params['n']", 'int64', 'None']),
    'booleans': ({'w': torch.ones(2), 'n': torch.ones(2, dtype=torch.bool)}, ["params['n']", 'bool', 'None']),
    'number': ({'w': [torch.ones(2), 1.0]}, ["params['w'][1]", 'float', 'torch.as_tensor']),
    'string': ({'w': 'weights'}, ["params['w']", 'str']),
    'module': (NET, ['params is a Linear', 'Pass dict(module.named_parameters())']),
    'generator': (NET.parameters(), ['params is a generator', 'list(module.parameters())']),
    'generator of pairs': (NET.named_parameters(), ['params is a generator', 'dict(module.named_parameters())']),
}


@every
@pytest.mark.parametrize('bad', BAD_PARAMETERS)
def test_parameters_in_init(name: str, bad: str) -> None:
    p, words = BAD_PARAMETERS[bad]
    refuses(lambda: MOMENTS[name]().init(p), TypeError, words, p)


@both
@pytest.mark.parametrize('decaying', [torchopt.adamw, lambda: torchopt.adam(weight_decay=0.1)])
def test_parameters_in_update(decaying: Callable[[], GradientTransformation], inplace: bool) -> None:
    tx, p = decaying(), params()
    g, state = grads(), started(tx, p)

    def step(given: Any) -> Callable[[], Any]:
        return lambda: tx.update(g, state, given, inplace=inplace)

    message = ['Parameters are required for weight decay', 'params=params']
    refuses(step(None), ValueError, message, state, g)
    refuses(step({'b': p['b']}), ValueError, ["params['layer']", 'missing'], state, g)
    wrong = {**p, 'b': torch.ones(4)}
    refuses(step(wrong), ValueError, ["updates['b']", '(3,)', '(4,)'], state, g, wrong)


@both
def test_parameters_of_adaptive_grad_clip(inplace: bool) -> None:
    tx, p = torchopt.chain(torchopt.adam(), torchopt.clip.adaptive_grad_clip(0.1)), params()
    g, state = grads(), started(torchopt.chain(torchopt.adam(), torchopt.clip.adaptive_grad_clip(0.1)), p)
    words = ['Parameters are required for adaptive_grad_clip', 'params=params']
    refuses(lambda: tx.update(g, state, inplace=inplace), ValueError, words, state, g)


NO_STATE = ['The state is None', 'state = optimizer.init(params)', 'optimizer.update(grads, state, params)']
STRANGERS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    'fewer members': (lambda p: torchopt.sgd(0.1).init(p), ['This chain has', 'tuple of 1', 'init']),
    'None': (lambda p: None, NO_STATE),
    'not initialized': (lambda p: UninitializedState(), ['This chain has', 'tuple of 0', 'init']),
    'list': (lambda p: list(torchopt.adam().init(p)), ['This chain has', 'list', 'init']),
    'a member alone': (lambda p: transform.scale_by_stddev().init(p), ['state', 'init']),
}


@both
@every
@pytest.mark.parametrize('stranger', STRANGERS)
def test_state_of_another_optimizer(name: str, stranger: str, inplace: bool) -> None:
    tx, p, g = MOMENTS[name](), params(), grads()
    make, words = STRANGERS[stranger]
    foreign = make(p)
    refuses(lambda: tx.update(g, foreign, p, inplace=inplace), ValueError, words, foreign, p, g)


@both
@every
def test_state_of_another_optimizer_with_as_many_members(name: str, inplace: bool) -> None:
    tx, p, g = MOMENTS[name](), params(), grads()
    stranger = torchopt.clip.EmptyState()
    foreign = (stranger,) * len(tx.init(p))
    words = ['The state is an EmptyState', 'expected a', 'init']
    refuses(lambda: tx.update(g, foreign, p, inplace=inplace), ValueError, words, foreign, p, g)


def test_a_late_member_refuses_before_an_early_one_has_written() -> None:
    p, g = params(), grads()
    tx = torchopt.chain(transform.scale_by_adam(), transform.trace(0.9))
    state = (*started(tx, p)[:1], transform.scale_by_rms().init(p))
    refuses(lambda: tx.update(g, state, p, inplace=True), ValueError, ['ScaleByRmsState', 'TraceState'], state)


SINGLE = {
    'trace': (transform.trace, 'TraceState'),
    'scale_by_adam': (transform.scale_by_adam, 'ScaleByAdamState'),
    'scale_by_adamax': (transform.scale_by_adamax, 'ScaleByAdamaxState'),
    'scale_by_radam': (transform.scale_by_radam, 'ScaleByRadamState'),
    'scale_by_rms': (transform.scale_by_rms, 'ScaleByRmsState'),
    'scale_by_stddev': (transform.scale_by_stddev, 'ScaleByRStdDevState'),
    'scale_by_rss': (transform.scale_by_rss, 'ScaleByRssState'),
    'scale_by_adadelta': (transform.scale_by_adadelta, 'ScaleByAdaDeltaState'),
    'scale_by_schedule': (lambda: transform.scale_by_schedule(lambda count: 1.0), 'ScaleByScheduleState'),
    'scale_by_learning_rate': (lambda: transform.scale_by_learning_rate(lambda count: 1.0), 'ScaleByScheduleState'),
    'masked': (lambda: torchopt.masked(torchopt.adam(), True), 'MaskedState'),
    'MultiSteps': (lambda: transform.MultiSteps(torchopt.adam(), 2), 'MultiStepsState'),
    'partition': (lambda: torchopt.partition({0: torchopt.adam()}, 0), 'PartitionState'),
}


@both
@pytest.mark.parametrize('name', SINGLE)
def test_state_of_another_transformation(name: str, inplace: bool) -> None:
    make, expected = SINGLE[name]
    p, g = params(), grads()
    for foreign in (torchopt.base.EmptyState(), None, p):
        words = NO_STATE if foreign is None else [type(foreign).__name__, expected, 'init']
        refuses(lambda f=foreign: make().update(g, f, p, inplace=inplace), ValueError, words, foreign, p, g)


@pytest.mark.parametrize(
    'make',
    [torchopt.adam, transform.scale_by_adam, lambda: torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam())],
)
def test_an_update_without_a_state(make: Callable[[], GradientTransformation]) -> None:
    refuses(lambda: make().update(grads()), TypeError, ["update() missing 1 required positional argument: 'state'"])


@pytest.mark.parametrize('name', ['step', 'zero_grad', 'param_groups', 'state_dict', 'load_state_dict'])
def test_a_pair_of_functions_is_no_class(name: str) -> None:
    tx = torchopt.adam()
    words = [f'no attribute {name!r}. It is a pair of functions', 'torchopt.Optimizer(params, this)', 'torchopt.Adam']
    refuses(lambda: getattr(tx, name), AttributeError, words)
    assert not hasattr(tx, 'anything')


@both
def test_state_of_another_named_chain_or_partition(inplace: bool) -> None:
    p, g = params(), grads()
    named = torchopt.named_chain(('first', torchopt.adam()), ('second', transform.scale(2.0)))
    for state in ({'first': torchopt.adam().init(p)}, torchopt.adam().init(p), None):
        words = NO_STATE if state is None else ['first', 'second', 'init']
        refuses(lambda s=state: named.update(g, s, p, inplace=inplace), ValueError, words, state)
    parted = torchopt.partition({'x': torchopt.adam(), 'y': torchopt.sgd(0.1)}, 'x')
    other = torchopt.partition({'x': torchopt.adam(), 'z': torchopt.sgd(0.1)}, 'x').init(p)
    refuses(lambda: parted.update(g, other, p, inplace=inplace), ValueError, ["'y'", "'z'", 'init'], other)


def fails_at(step: int, value: Any) -> Callable[[Any], Any]:
    return lambda count: value if int(count) >= step else 0.1


BAD_VALUES: list[tuple[Any, type[Exception], list[str]]] = [
    (math.nan, ValueError, ['schedule', 'nan', 'step 1', 'finite']),
    (torch.tensor(math.nan), ValueError, ['schedule', 'nan', 'step 1', 'finite']),
    (math.inf, ValueError, ['schedule', 'inf', 'step 1', 'finite']),
    (-math.inf, ValueError, ['schedule', '-inf', 'step 1', 'finite']),
    (torch.ones(2), ValueError, ['schedule', '(2,)']),
    ('0.1', TypeError, ['schedule', 'str']),
    (None, TypeError, ['schedule: None', 'expected a number']),
]
SCHEDULED: dict[str, Callable[[Any], GradientTransformation]] = {
    **{name: lambda s, make=make: make(lr=s) for name, make in MOMENTS.items() if name != 'sgd'},
    'sgd': lambda s: torchopt.sgd(s, momentum=0.9),
    'masked': lambda s: torchopt.masked(torchopt.adam(s), {'b': True, 'layer': False}),
    'masked in a chain': lambda s: torchopt.chain(
        transform.trace(0.9), torchopt.masked(transform.scale_by_schedule(s))
    ),
    'partition': lambda s: torchopt.partition(
        {'early': torchopt.adam(), 'late': torchopt.sgd(s)}, {'b': 'early', 'layer': 'late'}
    ),
    'named_chain': lambda s: torchopt.named_chain(('adam', transform.scale_by_adam()), ('rate', torchopt.sgd(s))),
    'chain_flat': lambda s: torchopt.combine.chain_flat(transform.scale_by_adam(), transform.scale_by_schedule(s)),
    'chain_flat of one': lambda s: torchopt.combine.chain_flat(torchopt.adam(s)),
}


@both
@pytest.mark.parametrize('name', SCHEDULED)
@pytest.mark.parametrize(('value', 'error', 'words'), BAD_VALUES)
def test_schedule(name: str, value: Any, error: type[Exception], words: list[str], inplace: bool) -> None:
    tx, p, g = SCHEDULED[name](fails_at(1, value)), params(), grads()
    state = started(tx, p)
    refuses(lambda: tx.update(g, state, p, inplace=inplace), error, words, state, p, g)


@both
@pytest.mark.parametrize('bad', ['nan', 'inf'])
def test_clip_grad_norm_of_what_is_not_finite(bad: str, inplace: bool) -> None:
    tx = torchopt.chain(torchopt.clip_grad_norm(1.0, error_if_nonfinite=True), torchopt.adam())
    p, g = params(), with_second(torch.tensor([float(bad), 1.0]))
    state = started(tx, p)
    words = ['total norm of order 2.0', bad, 'error_if_nonfinite=False']
    refuses(lambda: tx.update(g, state, p, inplace=inplace), RuntimeError, words, state, p, g)


def test_hooks_need_a_graph() -> None:
    tx, g = torchopt.register_hook(torchopt.hook.zero_nan_hook), grads()
    refuses(lambda: tx.update(g, tx.init(g)), RuntimeError, ['require'], g)


BAD_MASKS: dict[str, tuple[Any, type[Exception], list[str]]] = {
    'another container': ([True, False], ValueError, ['structure of mask', 'expected a list', 'found a dict']),
    'entry too many': ({'b': True, 'layer': True, 'c': True}, ValueError, ["params['c']", 'missing']),
    'entry missing': ({'b': True}, ValueError, ["params['layer']", 'not expected']),
    'too deep': ({'b': [True], 'layer': True}, ValueError, ["params['b']", 'expected a list']),
    'strings': ({'b': 'yes', 'layer': True}, TypeError, ["mask['b']", "'yes'", 'True or False']),
    'numbers': ({'b': 1, 'layer': [True, 0.0]}, TypeError, ["mask['b']", 'int', 'True or False']),
    'tensors': ({'b': torch.ones(3), 'layer': True}, TypeError, ["mask['b']", 'True or False']),
    'vectors of booleans': ({'b': torch.ones(3, dtype=torch.bool), 'layer': True}, TypeError, ["mask['b']"]),
    'made by a function': (lambda p: 'everything', TypeError, ['mask', "'everything'", 'True or False']),
}


@pytest.mark.parametrize('bad', BAD_MASKS)
def test_masks(bad: str) -> None:
    mask, error, words = BAD_MASKS[bad]
    p = params()
    for tx in (torchopt.masked(torchopt.adam(), mask), torchopt.adamw(mask=mask)):
        refuses(lambda tx=tx: tx.init(p), error, words, p)


BAD_LABELS: dict[str, tuple[Any, list[str]]] = {
    'without transformation': (
        {'b': 'slow', 'layer': ['fast', 'fats']},
        ["param_labels['layer'][1]", "'fats'", "'slow'"],
    ),
    'made by a function': (lambda p: tree.map(lambda x: 'none', p), ["param_labels['b']", "'none'", "'fast'"]),
    'another container': (['fast', 'slow'], ['expected a list', 'found a dict']),
    'entry missing': ({'b': 'fast'}, ["['layer']", 'not expected']),
}


@pytest.mark.parametrize('bad', BAD_LABELS)
def test_labels(bad: str) -> None:
    labels, words = BAD_LABELS[bad]
    tx, p = torchopt.partition({'fast': torchopt.adam(), 'slow': torchopt.sgd(0.1)}, labels), params()
    refuses(lambda: tx.init(p), ValueError, words, p)


BAD_STEPS: dict[str, tuple[Any, type[Exception], list[str]]] = {
    'entry missing': ({'b': torch.ones(3)}, ValueError, ["updates['layer']", 'missing', 'same structure']),
    'entry too many': ({**grads(), 'c': torch.ones(1)}, ValueError, ["updates['c']", 'not expected']),
    'shape': (with_second(torch.ones(3)), ValueError, ["updates['layer'][1]", '(3,)', '(2,)', 'gradients']),
    'shape that broadcasts': (with_second(torch.ones(1)), ValueError, ["updates['layer'][1]", '(1,)', '(2,)']),
    'number': (with_second(1.0), ValueError, ["updates['layer'][1]", 'float', '(2,)']),
    'complex': (with_second(torch.ones(2) * 1j), TypeError, ["updates['layer'][1]", 'complex', 'real']),
}


@pytest.mark.parametrize('inplace', [None, False, True])
@pytest.mark.parametrize('bad', BAD_STEPS)
def test_apply_updates(bad: str, inplace: bool | None) -> None:
    u, error, words = BAD_STEPS[bad]
    p = tree.map(lambda x: x.requires_grad_(), params())
    refuses(lambda: torchopt.apply_updates(p, u, inplace=inplace), error, words, p, u)


@pytest.mark.parametrize('inplace', [None, False, True])
def test_apply_updates_to_what_cannot_take_them(inplace: bool | None) -> None:
    p = {'w': torch.ones(2), 'n': torch.ones(2, dtype=torch.int64)}
    u = {'w': torch.ones(2), 'n': torch.ones(2)}
    refuses(lambda: torchopt.apply_updates(p, u, inplace=inplace), TypeError, ["params['n']", 'int64', 'None'], p, u)
    p = {'w': torch.ones(2), 'n': None}
    refuses(lambda: torchopt.apply_updates(p, u, inplace=inplace), ValueError, ["params['n'] is None", 'Pass None'], p)


def test_integer_parameters_with_none_in_their_place() -> None:
    """The documented way: None stands for what is not optimized."""
    tx, p = torchopt.adam(0.1), {'w': torch.ones(2), 'n': None}
    updates, state = tx.update({'w': torch.ones(2), 'n': None}, tx.init(p), p)
    assert updates['n'] is None
    assert state[0].mu['n'] is None
    n = torch.ones(2, dtype=torch.int64)
    before = Snapshot(n)
    new = torchopt.apply_updates({'w': p['w'], 'n': n}, updates)
    assert new['n'] is n
    before.check()


@pytest.mark.parametrize('empty', [{}, (), [], {'a': [], 'b': ()}, {'a': None}, [None, None]])
@every
def test_trees_without_tensors_are_no_error(name: str, empty: Any) -> None:
    tx = MOMENTS[name]()
    updates, state = tx.update(empty, tx.init(empty), empty)
    assert updates == empty
    assert torchopt.apply_updates(empty, updates) == empty
    assert tree.structure(state) == tree.structure(tx.init(empty))
