# SPDX-License-Identifier: Apache-2.0
"""Trees in two parts, and back."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch

from torchopt import tree


class Pair(NamedTuple):
    left: Any
    right: Any


TREES = {
    'nothing': (),
    'none': None,
    'leaf': 3,
    'dict': {'a': 1, 'b': None, 'c': 'text'},
    'nested': Pair([1, {'x': None, 'y': 'text'}], (2.0, [])),
    'ordered': OrderedDict([('z', 1), ('a', [None, 'b'])]),
}


def is_int(x: Any) -> bool:
    return isinstance(x, int)


@pytest.mark.parametrize('name', TREES)
def test_combine_is_the_inverse_of_partition(name: str) -> None:
    whole = TREES[name]
    ints, rest = tree.partition(whole, is_int)
    assert tree.structure(ints) == tree.structure(rest) == tree.structure(whole)
    assert all(map(is_int, tree.leaves(ints)))
    assert not any(map(is_int, tree.leaves(rest)))
    for parts in ((ints, rest), (rest, ints)):
        assert tree.combine(*parts) == whole
    assert type(tree.combine(ints, rest)) is type(whole)


def test_the_predicate_never_sees_none() -> None:
    seen = []
    tree.partition([None, 1, {'a': None}], lambda x: seen.append(x) or True)
    assert seen == [1]


def test_the_first_leaf_wins() -> None:
    assert tree.combine([1, None, None], [2, 3, None]) == [1, 3, None]
    assert tree.combine({'a': 1}) == {'a': 1}


def test_errors() -> None:
    with pytest.raises(TypeError, match='at least one tree'):
        tree.combine()
    with pytest.raises(ValueError, match=r"tree 3 does not have the structure of tree 1: at tree 3\['a'\]"):
        tree.combine({'a': 1}, {'a': 1}, {'b': 1})


def test_gradients_of_a_part() -> None:
    """The use that it is made for: differentiate in the tensors of arguments that also hold other things."""
    arguments = {'w': torch.tensor([1.0, 2.0]), 'power': 3, 'mask': None}
    tensors, rest = tree.partition(arguments, torch.is_tensor)

    def loss(w: torch.Tensor) -> torch.Tensor:
        full = tree.combine({**tensors, 'w': w}, rest)
        return (full['w'] ** full['power']).sum()

    assert torch.equal(torch.func.grad(loss)(tensors['w']), torch.tensor([3.0, 12.0]))


def test_compiles() -> None:
    @torch.compile(fullgraph=True, backend='eager')
    def double(given: Any) -> Any:
        tensors, rest = tree.partition(given, torch.is_tensor)
        return tree.combine(tree.map(lambda x: 2 * x, tensors), rest)

    found = double({'w': torch.ones(2), 'b': None, 'k': [3, torch.zeros(())]})
    assert torch.equal(found['w'], torch.full((2,), 2.0))
    assert found['b'] is None
    assert found['k'][0] == 3


def test_a_selection_reads_other_trees() -> None:
    chosen = tree.Selection({'a': 1, 'b': 'x', 'c': 2}, is_int)
    assert chosen.of({'a': 'p', 'b': 'q', 'c': [0]}, name='other', like='tree') == ['p', [0]]
    with pytest.raises(ValueError, match='other does not have the structure of tree'):
        chosen.of({'a': 1}, name='other', like='tree')
