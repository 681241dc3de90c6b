# SPDX-License-Identifier: Apache-2.0
"""The leaves of a tree with their paths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optree

from torchopt.tree.state import DictKey, NamedTupleKey, SequenceKey

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchopt.tree.state import KeyPath


def flatten_with_keys(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[KeyPath, Any]]:
    """The leaves of a tree, including ``None``, each with its path, a tuple of keys.

    Args:
        tree: Any tree.
        is_leaf: ``is_leaf(node)`` returns True for nodes to treat as leaves.

    Returns:
        Pairs of path and leaf, in the order of :func:`flatten`.

    Example:
        >>> import torchopt
        >>> torchopt.tree.flatten_with_keys([{'w': 1}])
        [((SequenceKey(idx=0), DictKey(key='w')), 1)]
    """
    accessors, leaves, _ = optree.tree_flatten_with_accessor(tree, is_leaf, none_is_leaf=True)
    return [(tuple(_key(entry) for entry in accessor), leaf) for accessor, leaf in zip(accessors, leaves)]


def _key(entry: Any) -> NamedTupleKey | DictKey | SequenceKey:
    if isinstance(entry, optree.NamedTupleEntry):
        return NamedTupleKey(entry.type.__name__, entry.field)
    if isinstance(entry, optree.MappingEntry) or not isinstance(entry.entry, int):
        return DictKey(entry.entry)
    return SequenceKey(entry.entry)
