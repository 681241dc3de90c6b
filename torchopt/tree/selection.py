# SPDX-License-Identifier: Apache-2.0
"""Split a tree into two trees by a predicate on its leaves, for example tensors and other leaves, and combine them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt.tree.registry import flatten, flatten_up_to, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Selection:
    """The leaves of a tree for which a predicate is true, and functions that replace them.

    Args:
        tree: Any tree.
        predicate: Called with each leaf that is not None; None is never selected.

    Attributes:
        selected: The leaves for which the predicate is true, in order.
        positions: Their positions among all leaves.
        spec: The structure of the tree.

    Example:
        >>> import torchopt
        >>> numbers = torchopt.tree.Selection({'a': 1, 'b': 'text', 'c': [2, None]}, lambda x: isinstance(x, int))
        >>> numbers.selected
        [1, 2]
        >>> numbers.replace([10, 20])
        {'a': 10, 'b': 'text', 'c': [20, None]}
        >>> numbers.alone([10, 20])
        {'a': 10, 'b': None, 'c': [20, None]}
    """

    def __init__(self, tree: Any, predicate: Callable[[Any], bool]) -> None:
        self._leaves, self.spec = flatten(tree)
        self.positions = [i for i, x in enumerate(self._leaves) if x is not None and predicate(x)]
        self.selected: list[Any] = [self._leaves[i] for i in self.positions]

    def replace(self, values: Iterable[Any]) -> Any:
        """The tree with other leaves in place of the selected ones."""
        return self._fill(list(self._leaves), values)

    def alone(self, values: Iterable[Any]) -> Any:
        """The tree with other leaves in place of the selected ones, and None in place of all others."""
        return self._fill([None] * len(self._leaves), values)

    def rest(self) -> Any:
        """The tree with None in place of the selected leaves."""
        return self.replace([None] * len(self.positions))

    def of(self, other: Any, *, name: str, like: str) -> list[Any]:
        """The entries of another tree of the same structure at the positions of the selected leaves.

        Raises:
            ValueError: If the structures differ; the message calls the trees by ``name`` and ``like``.
        """
        leaves = flatten_up_to(self.spec, other, name=name, like=like)
        return [leaves[i] for i in self.positions]

    def _fill(self, leaves: list[Any], values: Iterable[Any]) -> Any:
        for i, x in zip(self.positions, values):
            leaves[i] = x
        return unflatten(self.spec, leaves)


def partition(tree: Any, predicate: Callable[[Any], bool]) -> tuple[Any, Any]:
    """Split a tree into two trees of the same structure, by a predicate on its leaves.

    Args:
        tree: Any tree.
        predicate: Called with each leaf that is not None.

    Returns:
        The tree of the leaves for which the predicate is true, and the tree of all others.  Each has None where the
        leaf is in the other one; where ``tree`` has None, both have None.  :func:`combine` is the inverse.

    Example:
        >>> import torch, torchopt
        >>> arguments = {'b': None, 'mode': 'mean', 'w': torch.ones(2)}
        >>> tensors, rest = torchopt.tree.partition(arguments, torch.is_tensor)
        >>> tensors, rest
        ({'b': None, 'mode': None, 'w': tensor([1., 1.])}, {'b': None, 'mode': 'mean', 'w': None})
        >>> torchopt.tree.combine(torchopt.tree.map(lambda x: 2 * x, tensors), rest)
        {'b': None, 'mode': 'mean', 'w': tensor([2., 2.])}
    """
    chosen = Selection(tree, predicate)
    return chosen.alone(chosen.selected), chosen.rest()


def combine(*trees: Any) -> Any:
    """Combine trees of the same structure: each leaf is the first one that is not None.

    Args:
        *trees: At least one tree, such as the results of :func:`partition`.

    Returns:
        A tree of the same structure, with None where all trees have None.

    Raises:
        TypeError: If there is no tree.
        ValueError: If the structures differ; the message names the path of the first difference.

    Example:
        >>> import torchopt
        >>> torchopt.tree.combine({'a': 1, 'b': None}, {'a': None, 'b': 2}, {'a': 3, 'b': 4})
        {'a': 1, 'b': 2}
    """
    if not trees:
        raise TypeError('combine() needs at least one tree.')
    first, spec = flatten(trees[0])
    columns = [flatten_up_to(spec, x, name=f'tree {i}', like='tree 1') for i, x in enumerate(trees[1:], 2)]
    return unflatten(spec, [next((x for x in row if x is not None), None) for row in zip(first, *columns)])
