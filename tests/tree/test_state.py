# SPDX-License-Identifier: Apache-2.0
"""Entries of states by name, and the copies of the parameters inside states."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import optax
import pytest
import torch

import torchopt
from torchopt import tree


class Adam(NamedTuple):
    count: Any
    mu: Any
    nu: Any


class Schedule(NamedTuple):
    count: Any


class Wrapper(NamedTuple):
    inner: Any
    count: Any


STATE = (
    Adam(1, {'w': 10, 'b': None}, {'w': 20, 'b': 21}),
    {'lr': 0.1, 'deep': [Schedule(2), {'lr': 0.2}]},
    Wrapper((Schedule(3), ()), 4),
)

KEYS = ['count', 'mu', 'lr', 'w', 'b', 'Adam', 'Schedule', 'inner', 'deep', 'missing', 0]


def plain(path: Any) -> list[Any]:
    """The steps of a path of either library, without the classes of its keys."""
    return [(k.tuple_name, k.name) if hasattr(k, 'tuple_name') else k.key if hasattr(k, 'key') else k.idx for k in path]


@pytest.mark.parametrize('key', KEYS)
def test_get_all_with_path_equals_optax(key: Any) -> None:
    found = tree.get_all_with_path(STATE, key)
    expected = optax.tree.get_all_with_path(STATE, key)
    assert [(plain(path), value) for path, value in found] == [(plain(path), value) for path, value in expected]


def test_paths_speak() -> None:
    ((path, value),) = tree.get_all_with_path(STATE, 'mu')
    assert value == {'w': 10, 'b': None}
    assert path == (tree.SequenceKey(0), tree.NamedTupleKey('Adam', 'mu'))
    assert ''.join(map(str, path)) == '[0]Adam.mu'
    assert str(tree.DictKey('w')) == "['w']"


FILTERS = {
    'by tuple': lambda path, value: getattr(path[-1], 'tuple_name', '') == 'Adam',
    'by value': lambda path, value: value == 2,
    'by depth': lambda path, value: len(path) == 2,
}


@pytest.mark.parametrize('filtering', FILTERS.values(), ids=FILTERS)
def test_filters_equal_optax(filtering: Any) -> None:
    found = tree.get_all_with_path(STATE, 'count', filtering)
    expected = optax.tree.get_all_with_path(STATE, 'count', filtering)
    assert [plain(path) for path, _ in found] == [plain(path) for path, _ in expected]
    assert tree.set(STATE, filtering, count=100) == _set_by_hand(filtering)


def _set_by_hand(filtering: Any) -> Any:
    def choose(path: Any, old: Any) -> Any:
        return 100 if filtering(path, old) else old

    one = tree.NamedTupleKey
    adam = STATE[0]
    return (
        adam._replace(count=choose((tree.SequenceKey(0), one('Adam', 'count')), 1)),
        {'lr': 0.1, 'deep': [Schedule(choose([*'xyz', one('Schedule', 'count')], 2)), {'lr': 0.2}]},
        Wrapper(
            (Schedule(choose([*'xyz', one('Schedule', 'count')], 3)), ()),
            choose((tree.SequenceKey(2), one('Wrapper', 'count')), 4),
        ),
    )


def test_get() -> None:
    assert tree.get(STATE, 'mu') == {'w': 10, 'b': None}
    assert tree.get(STATE, 'missing') is None
    assert tree.get(STATE, 'missing', 7) == 7
    assert tree.get(STATE, 'count', filtering=FILTERS['by tuple']) == 1
    assert tree.get(STATE, 'Adam') is STATE[0]


def test_get_of_several_names_the_key_and_all_paths() -> None:
    message = r"'lr'.*'\[1\]\['lr'\]', '\[1\]\['deep'\]\[1\]\['lr'\]'.*filtering"
    with pytest.raises(KeyError, match=message):
        tree.get(STATE, 'lr')
    with pytest.raises(KeyError, match=r"'\[0\]\.count' \(of Adam\)"):
        tree.get(STATE, 'count')


def test_set_replaces_everywhere_and_leaves_the_old_tree_alone() -> None:
    new = tree.set(STATE, lr=9, mu='m')
    assert new[0] == Adam(1, 'm', STATE[0].nu)
    assert new[1] == {'lr': 9, 'deep': [Schedule(2), {'lr': 9}]}
    assert new[2] == STATE[2]
    assert STATE[1]['lr'] == 0.1
    assert new[0].nu['w'] is STATE[0].nu['w']


def test_set_by_the_name_of_a_tuple() -> None:
    new = tree.set(STATE, Schedule='s')
    assert new[1]['deep'][0] == 's'
    assert new[2].inner == ('s', ())


def test_set_keeps_the_kinds_of_containers() -> None:
    state = {'o': OrderedDict([('z', 1), ('a', 2)]), 'd': defaultdict(list, lr=1), 'l': [{'lr': 1}, None]}
    new = tree.set(state, lr=5, a=6)
    assert list(new['o'].items()) == [('z', 1), ('a', 6)]
    assert type(new['o']) is OrderedDict
    assert new['d'].default_factory is list
    assert new['l'] == [{'lr': 5}, None]


def test_set_takes_any_name() -> None:
    assert tree.set({'tree': 1, 'filtering': 2}, tree=3, filtering=4) == {'tree': 3, 'filtering': 4}


def test_set_and_get_reach_into_registered_classes() -> None:
    class Holder:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

    tree.register_node(Holder, lambda h: ((h.inner,), None), lambda static, kids: Holder(*kids))
    holder = Holder({'lr': 1})
    assert tree.get([holder], 'lr') == 1
    assert tree.set([holder], lr=2)[0].inner == {'lr': 2}


def test_set_errors_name_the_key_and_what_was_found() -> None:
    with pytest.raises(KeyError, match=r"'gamma'.*Names in this tree:.*count.*lr.*mu"):
        tree.set(STATE, gamma=1)
    with pytest.raises(KeyError, match=r"'mu' given the filtering operation.*'\[0\]\.mu' \(of Adam\)"):
        tree.set(STATE, lambda path, value: False, mu=1)
    with pytest.raises(KeyError, match='none at all'):
        tree.set([1, 2], lr=1)


def test_set_and_get_of_a_real_state() -> None:
    params = {'w': torch.ones(2)}
    optimizer = torchopt.adam(1e-3)
    state = optimizer.init(params)
    _, state = optimizer.update(params, state)
    assert tree.get(state, 'count').item() == 1
    back = tree.set(state, count=torch.tensor(0), mu=tree.zeros_like(params))
    assert tree.get(back, 'count').item() == 0
    assert tree.get(back, 'mu')['w'].tolist() == [0.0, 0.0]
    assert tree.get(back, 'nu') is tree.get(state, 'nu') or bool(
        tree.allclose(tree.get(back, 'nu'), tree.get(state, 'nu'))
    )


def test_get_and_set_compile_without_graph_breaks() -> None:
    def halve(state: Any) -> Any:
        return tree.set(state, mu=tree.scale(0.5, tree.get(state, 'mu')))

    state = (Adam(torch.tensor(1), {'w': torch.ones(2)}, {'w': torch.ones(2)}), {'lr': 0.1})
    found = torch.compile(halve, fullgraph=True, backend='aot_eager')(state)
    assert found[0].mu['w'].tolist() == [0.5, 0.5]
    assert found[1] == {'lr': 0.1}


# map_params

PARAMS = {'w': torch.ones(2), 'b': torch.ones(1), 'frozen': None}
NAMES = {'w': 'the w', 'b': 'the b', 'frozen': 'never'}

OPTIMIZERS = {
    'sgd': lambda: torchopt.sgd(0.1),
    'momentum': lambda: torchopt.sgd(0.1, momentum=0.9),
    'adam': lambda: torchopt.adam(0.1),
    'adamw': lambda: torchopt.adamw(0.1),
    'adamax': lambda: torchopt.adamax(0.1),
    'adadelta': lambda: torchopt.adadelta(0.1),
    'adagrad': lambda: torchopt.adagrad(0.1),
    'radam': lambda: torchopt.radam(0.1),
    'rmsprop': lambda: torchopt.rmsprop(0.1, momentum=0.9, centered=True),
    'scheduled': lambda: torchopt.adam(torchopt.schedule.linear_schedule(0.1, 0.0, 5)),
    'named chain': lambda: torchopt.named_chain(('one', torchopt.adam(0.1)), ('two', torchopt.sgd(0.1, momentum=0.9))),
    'mask function': lambda: torchopt.transform.masked(
        torchopt.adam(0.1), lambda p: tree.map_with_path(lambda path, x: 'w' in path, p)
    ),
    'mask tree': lambda: torchopt.transform.masked(torchopt.adam(0.1), {'w': True, 'b': False, 'frozen': False}),
    'partition': lambda: torchopt.transform.partition(
        {'x': torchopt.adam(0.1), 'y': torchopt.sgd(0.1, momentum=0.9)}, {'w': 'x', 'b': 'y', 'frozen': 'y'}
    ),
    'decay mask': lambda: torchopt.adamw(0.1, mask={'w': True, 'b': False, 'frozen': False}),
}


@pytest.mark.parametrize('make', OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_map_params_of_every_optimizer(make: Any) -> None:
    optimizer = make()
    state = optimizer.init(PARAMS)
    named = tree.map_params(optimizer, lambda x, name: name, state, NAMES, transform_non_params=lambda x: 'other')
    assert tree.structure(named) == tree.structure(state)
    for (path, name), x in zip(tree.flatten_with_path(named), tree.flatten(state)[0]):
        if x is None:
            assert name is None, path
        elif x.dim() == 0:
            assert name == 'other', path
        else:
            assert name == ('the w' if "'w'" in path else 'the b'), path
    assert tree.map_params(optimizer.init, lambda x: x, state) == state or bool(
        tree.allclose(tree.map_params(optimizer.init, lambda x: x, state), state)
    )


def test_map_params_equals_optax() -> None:
    optimizer = optax.chain(optax.scale_by_adam(), optax.trace(0.9), optax.scale_by_schedule(lambda t: 0.1))
    reference = optax.tree.map_params(
        optimizer,
        lambda x, name: name,
        optimizer.init({'b': 0.0, 'w': 0.0}),
        {'b': 'the b', 'w': 'the w'},
        transform_non_params=lambda x: 'other',
    )
    ours = torchopt.chain(
        torchopt.transform.scale_by_adam(),
        torchopt.transform.trace(0.9),
        torchopt.transform.scale_by_schedule(lambda t: 0.1),
    )
    found = tree.map_params(
        ours,
        lambda x, name: name,
        ours.init({'b': torch.ones(1), 'w': torch.ones(1)}),
        {'b': 'the b', 'w': 'the w'},
        transform_non_params=lambda x: 'other',
    )
    assert found[0].count == reference[0].count == 'other'
    assert found[0].mu == reference[0].mu == {'b': 'the b', 'w': 'the w'}
    assert found[0].nu == reference[0].nu
    assert found[1].trace == reference[1].trace
    assert found[2].count == reference[2].count


def test_map_params_of_a_user_function() -> None:
    def init(params: Any) -> Any:
        return {'copy': params, 'pair': (tree.zeros_like(params), 3)}

    state = init({'w': torch.ones(2)})
    moved = tree.map_params(init, lambda x: x + 1, state)
    assert moved['copy']['w'].tolist() == [2.0, 2.0]
    assert moved['pair'][0]['w'].tolist() == [1.0, 1.0]
    assert moved['pair'][1] == 3


def test_map_params_hands_nodes_over_where_is_leaf_says_so() -> None:
    state = {'mu': {'w': [1, 2]}}
    assert tree.map_params(lambda p: {'mu': p}, sum, state, is_leaf=lambda x: isinstance(x, list)) == {'mu': {'w': 3}}


def test_map_params_of_a_foreign_state_names_the_path() -> None:
    optimizer = torchopt.adam(0.1)
    with pytest.raises(ValueError, match='structure'):
        tree.map_params(optimizer, lambda x: x, {'not': 'a state'})
    state = optimizer.init({'w': torch.ones(1)})
    with pytest.raises(ValueError, match=r"\['w'\].*missing"):
        tree.map_params(optimizer, lambda x, y: x, state, {'v': 1})
