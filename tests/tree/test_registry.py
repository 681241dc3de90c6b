# SPDX-License-Identifier: Apache-2.0
"""What a tree is, for this package, for optree and for torch's pytree; and the verbs over it."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import optree
import pytest
import torch
import torch.utils._pytree as torch_pytree

import torchopt
from torchopt import tree


class Pair(NamedTuple):
    left: Any
    right: Any


class Nothing(NamedTuple):
    """A node without children."""


class Box:
    """A registered class with a static part."""

    def __init__(self, content: Any, label: str = 'box') -> None:
        self.content, self.label = content, label


tree.register_node(
    Box,
    lambda box: ((box.content,), box.label),
    lambda label, kids: Box(next(iter(kids)), label),
    names=lambda box: ('content',),
)

CONTAINERS = {
    'dict': lambda x, y: {'b': x, 'a': y},
    'ordered dict': lambda x, y: OrderedDict([('b', x), ('a', y)]),
    'default dict': lambda x, y: defaultdict(list, {'b': x, 'a': y}),
    'list': lambda x, y: [x, y],
    'tuple': lambda x, y: (x, y),
    'named tuple': Pair,
    'deque': lambda x, y: deque([x, y]),
    'registered': lambda x, y: Box([x, y]),
}


@pytest.mark.parametrize('make', CONTAINERS.values(), ids=CONTAINERS)
def test_map_keeps_the_container_and_skips_none(make: Any) -> None:
    seen = []
    result = tree.map(lambda x: seen.append(x) or 10 * x, make(1, (None, 2)))
    assert type(result) is type(make(0, 0))
    assert tree.flatten(result)[0] == tree.flatten(make(10, (None, 20)))[0]
    assert sorted(seen) == [1, 2]


@pytest.mark.parametrize('make', CONTAINERS.values(), ids=CONTAINERS)
def test_flatten_and_unflatten_are_inverse(make: Any) -> None:
    leaves, spec = tree.flatten(make(1, None))
    assert sorted(map(str, leaves)) == ['1', 'None']
    again, same = tree.flatten(tree.unflatten(spec, leaves))
    assert again == leaves
    assert same == spec


def test_dicts_match_whatever_their_kind_and_order() -> None:
    plain = {'a': 1, 'b': 2}
    for other in (OrderedDict([('b', 20), ('a', 10)]), defaultdict(int, b=20, a=10)):
        assert tree.map(lambda x, y: x + y, plain, other) == {'a': 11, 'b': 22}


def test_default_dict_keeps_its_factory_and_ordered_dict_its_order() -> None:
    made = tree.map(lambda x: x, defaultdict(list, a=1))
    assert made.default_factory is list
    assert list(tree.map(lambda x: x, OrderedDict([('b', 1), ('a', 2)]))) == ['b', 'a']


def test_a_registered_class_is_a_node_everywhere() -> None:
    box = Box({'w': 1}, 'label')
    assert tree.leaves(box) == [1]
    assert optree.tree_leaves(box) == [1]
    assert torch_pytree.tree_leaves(box) == [1]
    for module_map in (tree.map, optree.tree_map, torch_pytree.tree_map):
        made = module_map(lambda x: x + 1, box)
        assert (type(made), made.content, made.label) == (Box, {'w': 2}, 'label')


def test_a_registered_class_works_under_torch_func() -> None:
    box = Box(torch.arange(3.0))
    out = torch.func.vmap(lambda b: Box(b.content * 2))(box)
    assert out.content.tolist() == [0.0, 2.0, 4.0]
    gradient = torch.func.grad(lambda b: (b.content**2).sum())(box)
    assert gradient.content.tolist() == [0.0, 2.0, 4.0]


def test_registering_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match='Box'):
        tree.register_node(Box, lambda b: ((), None), lambda static, kids: Box(None))


MISMATCHES = {
    'missing key': ({'a': {'x': 1, 'y': 2}}, {'a': {'x': 1}}, r"tree 2\['a'\]\['y'\].*missing"),
    'extra key': ({'a': [1]}, {'a': [1], 'b': 2}, r"tree 2\['b'\].*not expected"),
    'wrong kind': ({'a': (1, 2)}, {'a': [1, 2]}, r"tree 2\['a'\], expected a tuple.*a list"),
    'wrong length': ([[1, 2]], [[1]], r'tree 2\[0\]\[1\].*missing'),
    'leaf for node': ({'a': {'b': 1}}, {'a': 1}, r"tree 2\['a'\], expected a dict and found an int"),
    'none for node': ({'a': {'b': 1}}, {'a': None}, r"tree 2\['a'\], expected a dict and found None"),
    'named tuple for tuple': ([(1, 2)], [Pair(1, 2)], r'tree 2\[0\], expected a tuple.*Pair'),
    'static part': (Box(1, 'x'), Box(1, 'y'), 'static parts differ'),
}


@pytest.mark.parametrize(('first', 'second', 'message'), MISMATCHES.values(), ids=MISMATCHES)
def test_mismatch_names_the_path(first: Any, second: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tree.map(lambda x, y: x, first, second)


def test_mismatch_inside_a_registered_class_names_the_path() -> None:
    with pytest.raises(ValueError, match=r"content.*\['w'\]"):
        tree.map(lambda x, y: x, Box({'w': 1}), Box({'v': 1}))


def test_rest_trees_may_be_deeper() -> None:
    assert tree.map(lambda x, y: (x, y), {'a': 1}, {'a': [2, 3]}) == {'a': (1, [2, 3])}


def test_is_leaf_stops_the_descent() -> None:
    assert tree.map(len, {'a': [1, 2]}, is_leaf=lambda x: isinstance(x, list)) == {'a': 2}


def test_map_with_path_counts_none_in_its_paths() -> None:
    paths = tree.map_with_path(lambda path, x: path, {'a': [None, 1], 'b': Pair(2, None)})
    assert paths == {'a': [None, "['a'][1]"], 'b': Pair("['b'].left", None)}


def test_reduce_all_any_and_leaves_skip_none() -> None:
    some = {'a': 1, 'b': [None, 0]}
    assert tree.leaves(some) == [1, 0]
    assert tree.reduce(lambda total, x: total + x, some, 5) == 6
    assert tree.reduce(lambda total, x: total - x, {'a': 5, 'b': (None, 2, 1)}) == 2
    assert tree.reduce(lambda total, x: total + x, [(1, 2), (3,)], is_leaf=lambda x: isinstance(x, tuple)) == (1, 2, 3)
    assert (tree.all(some), tree.any(some)) == (False, True)
    assert (tree.all({'a': None}), tree.any({'a': None})) == (True, False)


@pytest.mark.parametrize('empty', [{}, [], (), None, {'a': {}, 'b': [None]}], ids=str)
def test_empty_trees(empty: Any) -> None:
    assert tree.leaves(empty) == []
    assert tree.map(lambda x: 1 / 0, empty) == empty


def test_broadcast_prefix() -> None:
    full = {'a': [1, (2, None)], 'b': 3}
    assert tree.broadcast_prefix({'a': 'x', 'b': 'y'}, full) == {'a': ['x', ('x', 'x')], 'b': 'y'}
    with pytest.raises(ValueError, match=r"params\['b'\]"):
        tree.broadcast_prefix({'a': 1, 'b': 2}, {'a': 1}, name='mask', like='params')


def test_check_matching_names_the_first_leaf_at_fault() -> None:
    grads = {'a': None, 'b': [torch.ones(2), torch.ones(3)]}
    tree.check_matching(grads, {'a': torch.ones(9), 'b': grads['b']}, name='grads', like='params')
    with pytest.raises(ValueError, match=r"grads\['b'\]\[1\] has shape \(3,\).*shape \(4,\)"):
        wrong = {'a': None, 'b': [torch.ones(2), torch.ones(4)]}
        tree.check_matching(grads, wrong, name='grads', like='params')


COMPILED = {
    'dict': {'b': torch.ones(2), 'a': None, 'c': [torch.ones(())]},
    'named tuple': Pair({'w': torch.ones(2)}, (torch.ones(3), None)),
    'registered': Box([torch.ones(2)]),
    'empty nodes': {'w': torch.ones(2), 'a': {}, 'b': [(), {'c': []}], 'd': Nothing()},
    'no leaves': {'a': Nothing(), 'b': {}},
    'nothing': {},
}


@pytest.mark.parametrize('example', COMPILED.values(), ids=COMPILED)
def test_map_and_reduce_compile_without_graph_breaks(example: Any) -> None:
    def double(t: Any, u: Any) -> Any:
        total = tree.reduce(lambda total, x: total + x.sum(), t, 0.0)
        return tree.map(lambda x, y: x + y, t, u), total

    torch.compiler.reset()
    compiled = torch.compile(double, fullgraph=True, backend='aot_eager')
    out, total = compiled(example, example)
    expected, expected_total = double(example, example)
    assert tree.structure(out) == tree.structure(expected)
    assert bool(tree.allclose(out, expected))
    assert float(total) == float(expected_total)


def test_what_compiles_matches_structures_of_empty_nodes() -> None:
    """An empty node is no leaf, and is another one than an empty node of another kind."""

    def both(t: Any, u: Any) -> Any:
        return tree.structure(t) == tree.structure(u), tree.structure(t) == tree.structure({'w': u['w']})

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend='eager')
    w = torch.ones(1)
    for t, u in (({}, {}), ({}, ()), (Nothing(), ()), ({}, w), ([{}], [{}])):
        pair = {'w': w, 'x': t}, {'w': w, 'x': u}
        assert compiled(*pair) == both(*pair)


def test_what_compiles_stops_where_it_is_told() -> None:
    torch.compiler.reset()
    example = {'a': Pair(1, 2), 'b': [(), Pair(torch.ones(1), None)], 'c': None}
    found = torch.compile(lambda t: tree.flatten(t, lambda x: isinstance(x, Pair))[0], fullgraph=True, backend='eager')(
        example
    )
    assert found == [example['a'], example['b'][1], None]
    assert tree.flatten(example, lambda x: isinstance(x, Pair))[0] == found


class Layer(Box):
    """A registered class whose objects can be called."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.content * x


tree.register_node(Layer, lambda layer: ((layer.content,), layer.label), lambda label, kids: Layer(next(iter(kids))))


def test_a_node_that_can_be_called_is_a_mask_and_no_function() -> None:
    params = Layer(torch.ones(2))
    for chosen, expected in ((True, -2.0), (False, 2.0)):
        tx = torchopt.masked(torchopt.sgd(1.0), Layer(chosen))
        updates, _ = tx.update(Layer(torch.full((2,), 2.0)), tx.init(params), params)
        assert updates.content.tolist() == [expected] * 2
    tx = torchopt.partition({'a': torchopt.sgd(1.0), 'b': torchopt.sgd(0.5)}, Layer('b'))
    updates, _ = tx.update(Layer(torch.full((2,), 2.0)), tx.init(params), params)
    assert updates.content.tolist() == [-1.0] * 2
