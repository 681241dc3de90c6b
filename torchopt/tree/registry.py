# SPDX-License-Identifier: Apache-2.0
"""The definition of trees: the only module that uses optree and torch's own pytree.

A tree is any nesting of tuples, lists, dicts, named tuples and registered classes around leaves.  ``None`` is
a leaf here, and the *None rule* holds for every function of this package: a ``None`` leaf stands for "nothing at
this place", it is never handed to a function, and it comes back as ``None``.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

import optree
import torch
import torch.utils._pytree as torch_pytree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    'TreeSpec',
    'flatten',
    'flatten_up_to',
    'flatten_with_path',
    'is_leaf_node',
    'leaves',
    'register_node',
    'structure',
    'unflatten',
]

TreeSpec = optree.PyTreeSpec
"""The structure of a tree without its leaves; two trees match when their structures are equal."""

_Node = TypeVar('_Node', bound=type)

# optree matches these with one another, whatever the order of their keys.
_DICTS = {dict, OrderedDict, defaultdict}


def register_node(
    cls: _Node,
    children: Callable[[Any], tuple[Sequence[Any], Any]],
    build: Callable[[Any, Iterable[Any]], Any],
    *,
    names: Callable[[Any], Sequence[Any]] | None = None,
) -> _Node:
    """Make a class a node of trees, for this package, for optree and for torch's pytree at once.

    Args:
        cls: The class.  Its instances become nodes, no longer leaves.
        children: ``children(node)`` returns the sequence of its children and its static part, which must be
            hashable and comparable: trees whose static parts differ do not match.
        build: ``build(static, children)`` puts a node together again.
        names: ``names(node)`` gives one name per child for error messages and paths; positions by default.

    Returns:
        ``cls``, so that the call can serve as the last line of a class decorator.

    Raises:
        ValueError: If the class is registered already.

    Example:
        >>> import torch, torchopt
        >>> class Pair:
        ...     def __init__(self, left, right):
        ...         self.left, self.right = left, right
        >>> _ = torchopt.tree.register_node(Pair, lambda p: ((p.left, p.right), None), lambda static, xs: Pair(*xs))
        >>> torchopt.tree.map(lambda x: 2 * x, Pair(1, 2)).right
        4
    """

    def flatten_for_optree(node: Any) -> tuple[Any, ...]:
        kids, static = children(node)
        return (kids, static) if names is None else (kids, static, tuple(names(node)))

    optree.register_pytree_node(cls, flatten_for_optree, build, namespace=optree.registry.__GLOBAL_NAMESPACE)
    torch_pytree.register_pytree_node(
        cls,
        lambda node: (list(children(node)[0]), children(node)[1]),
        lambda kids, static: build(static, kids),
        serialized_type_name=f'{cls.__module__}.{cls.__qualname__}',
    )
    return cls


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], TreeSpec]:
    """Split a tree into its leaves, ``None`` among them, and its structure.

    Dict entries come in the order of their sorted keys.

    Args:
        tree: Any tree.
        is_leaf: Where it returns True, the node is taken as a leaf.

    Returns:
        The leaves and the structure; :func:`unflatten` is the inverse.

    Example:
        >>> import torchopt
        >>> torchopt.tree.flatten({'w': 1, 'b': None})[0]
        [None, 1]
    """
    if torch.compiler.is_compiling():
        boxes, spec = optree.tree_flatten(_box(tree, is_leaf), none_is_leaf=True)
        return [box.content for box in boxes], spec
    return optree.tree_flatten(tree, is_leaf, none_is_leaf=True)


def unflatten(spec: TreeSpec, leaves: Iterable[Any]) -> Any:
    """Put leaves into a structure: the inverse of :func:`flatten`.

    Example:
        >>> import torchopt
        >>> xs, spec = torchopt.tree.flatten({'b': 2, 'w': 1})
        >>> torchopt.tree.unflatten(spec, [10 * x for x in xs])
        {'b': 20, 'w': 10}
    """
    if torch.compiler.is_compiling():
        return _unbox(optree.tree_unflatten(spec, [_Box(x) for x in leaves]))
    return optree.tree_unflatten(spec, leaves)


def structure(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> TreeSpec:
    """The structure of a tree.

    Example:
        >>> import torchopt
        >>> torchopt.tree.structure((1, 2)) == torchopt.tree.structure((3, 4))
        True
    """
    return flatten(tree, is_leaf)[1]


def leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """The leaves of a tree, without the ``None`` among them.

    Example:
        >>> import torchopt
        >>> torchopt.tree.leaves({'w': 1, 'b': None, 'c': (2, 3)})
        [2, 3, 1]
    """
    return [x for x in flatten(tree, is_leaf)[0] if x is not None]


def is_leaf_node(x: Any) -> bool:
    """Whether ``x`` is a leaf, that is, no node that trees look into.

    Example:
        >>> import torchopt
        >>> torchopt.tree.is_leaf_node(3.0), torchopt.tree.is_leaf_node([])
        (True, False)
    """
    return bool(optree.tree_is_leaf(x, none_is_leaf=True))


def flatten_with_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of a tree with the code that reaches them, as error messages print it.

    Example:
        >>> import torchopt
        >>> torchopt.tree.flatten_with_path({'layer': [1, 2]})
        [("['layer'][0]", 1), ("['layer'][1]", 2)]
    """
    if torch.compiler.is_compiling():
        accessors, boxes, _ = optree.tree_flatten_with_accessor(_box(tree, is_leaf), none_is_leaf=True)
        found = [box.content for box in boxes]
    else:
        accessors, found, _ = optree.tree_flatten_with_accessor(tree, is_leaf, none_is_leaf=True)
    return [(accessor.codify(''), leaf) for accessor, leaf in zip(accessors, found)]


_SAME_STRUCTURE = 'Pass a tree of the same structure; use None for a leaf to skip.'


def flatten_up_to(spec: TreeSpec, tree: Any, *, name: str, like: str, remedy: str = _SAME_STRUCTURE) -> list[Any]:
    """Cut ``tree`` where the leaves of ``spec`` lie; what hangs below a leaf stays whole.

    Args:
        spec: The structure to follow.
        tree: A tree that has this structure at its top.
        name: The name of ``tree`` in error messages.
        like: What to call the tree that ``spec`` belongs to.
        remedy: What an error message advises.

    Returns:
        One subtree for each leaf of ``spec``.

    Raises:
        ValueError: If the trees differ; the message names the path of the first difference.
    """
    if torch.compiler.is_compiling():
        return [_unbox(x) for x in spec.flatten_up_to(_box(tree))]
    try:
        return spec.flatten_up_to(tree)
    except ValueError as error:
        raise ValueError(describe_mismatch(spec, tree, name=name, like=like, remedy=remedy)) from error


def describe_mismatch(spec: TreeSpec, tree: Any, *, name: str, like: str, remedy: str = _SAME_STRUCTURE) -> str:
    """Say where ``tree`` first departs from ``spec``, in words for an error message."""
    path, reason = first_difference(spec, tree)
    return f'{name} does not have the structure of {like}: at {name}{path}, {reason}. {remedy}'


def first_difference(spec: TreeSpec, tree: Any, path: str = '') -> tuple[str, str]:
    """Where ``tree`` first departs from ``spec``, and how."""
    kind = spec.type
    if kind is None:
        return path, 'the leaves differ'
    if kind is not type(tree) and not {kind, type(tree)} <= _DICTS:
        return path, f'expected a {kind.__name__} and found {_kind(tree)}'
    expected = list(spec.entries())
    inner = optree.tree_structure(tree, none_is_leaf=True)
    found = list(inner.entries())
    for entry in expected:
        if entry not in found:
            return f'{path}[{entry!r}]', 'this entry is missing'
    for entry in found:
        if entry not in expected:
            return f'{path}[{entry!r}]', 'this entry is not expected'
    subtrees, _ = optree.tree_flatten(tree, lambda x: x is not tree, none_is_leaf=True)
    by_entry = dict(zip(found, subtrees))
    for entry, child in zip(expected, spec.children()):
        try:
            child.flatten_up_to(by_entry[entry])
        except ValueError:
            return first_difference(child, by_entry[entry], f'{path}[{entry!r}]')
    return path, f'the static parts differ: expected {spec}, found {inner}'


def _kind(x: Any) -> str:
    return 'None' if x is None else f'a {type(x).__name__}'


# Dynamo folds what optree does to a dict of constants, a mask or nodes without leaves, say, into a constant that it
# then cannot represent.  So while it traces, optree sees no constants: leaves are in boxes, empty nodes stand aside.


class _Box:
    """Holds a leaf."""

    def __init__(self, content: Any) -> None:
        self.content = content


class _Empty:
    """Stands for a node without children."""

    def __init__(self, node: Any) -> None:
        self.node = node


register_node(_Empty, lambda empty: ((), (type(empty.node), empty.node)), lambda static, _: _Empty(static[1]))


def _box(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    def stops(x: Any) -> bool:
        return _is_empty(x) or (is_leaf is not None and is_leaf(x))

    return torch_pytree.tree_map(lambda x: _Empty(x) if _is_empty(x) else _Box(x), tree, is_leaf=stops)


def _unbox(tree: Any) -> Any:
    def content(x: Any) -> Any:
        if isinstance(x, _Box):
            return x.content
        return x.node.copy() if isinstance(x.node, (list, dict)) else x.node

    return torch_pytree.tree_map(content, tree, is_leaf=lambda x: isinstance(x, (_Box, _Empty)))


def _is_empty(x: Any) -> bool:
    return isinstance(x, (tuple, list, dict)) and len(x) == 0 and not is_leaf_node(x)
