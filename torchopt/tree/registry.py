# SPDX-License-Identifier: Apache-2.0
"""The definition of trees: the only module that uses optree and torch's own pytree.

A tree is any nesting of tuples, lists, dicts, named tuples and registered classes; everything else is a leaf.  ``None``
is a leaf here.  Every function of this package follows the *None rule*: it passes no ``None`` leaf to a function and
returns ``None`` in its place.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

import optree
import torch
import torch.utils._pytree as torch_pytree

from torchopt.kinds import kind_of, with_article

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

TreeSpec = optree.PyTreeSpec
"""The structure of a tree without its leaves; two trees match if their structures are equal."""

_Node = TypeVar('_Node', bound=type)

# optree treats these as the same kind of node, in any order of their keys.
_DICTS = {dict, OrderedDict, defaultdict}


def register_node(
    cls: _Node,
    children: Callable[[Any], tuple[Sequence[Any], Any]],
    build: Callable[[Any, Iterable[Any]], Any],
    *,
    names: Callable[[Any], Sequence[Any]] | None = None,
) -> _Node:
    """Register a class as a node of trees, in this package, in optree and in torch's pytree.

    Args:
        cls: The class.  Its instances become nodes instead of leaves.
        children: ``children(node)`` returns the sequence of its children and its static part, which must be
            hashable and comparable: trees whose static parts differ do not match.
        build: ``build(static, children)`` makes a node from its parts.
        names: ``names(node)`` returns one name per child for error messages and paths; by default, positions.

    Raises:
        ValueError: If the class is already registered.

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
    """Split a tree into its leaves, including ``None``, and its structure.

    Dict entries are in the order of their sorted keys.

    Args:
        tree: Any tree.
        is_leaf: ``is_leaf(node)`` returns True for nodes to treat as leaves.

    Returns:
        The leaves and the structure; :func:`unflatten` is the inverse.

    Example:
        >>> import torchopt
        >>> torchopt.tree.flatten({'w': 1, 'b': None})[0]
        [None, 1]
    """
    if torch.compiler.is_dynamo_compiling():
        boxes, spec = optree.tree_flatten(_box(tree, is_leaf), none_is_leaf=True)
        return [box.content for box in boxes], spec
    return optree.tree_flatten(tree, is_leaf, none_is_leaf=True)


def unflatten(spec: TreeSpec, leaves: Iterable[Any]) -> Any:
    """Build a tree from its structure and its leaves: the inverse of :func:`flatten`.

    Example:
        >>> import torchopt
        >>> xs, spec = torchopt.tree.flatten({'b': 2, 'w': 1})
        >>> torchopt.tree.unflatten(spec, [10 * x for x in xs])
        {'b': 20, 'w': 10}
    """
    if torch.compiler.is_dynamo_compiling():
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
    """The leaves of a tree, without ``None``.

    Example:
        >>> import torchopt
        >>> torchopt.tree.leaves({'w': 1, 'b': None, 'c': (2, 3)})
        [2, 3, 1]
    """
    return [x for x in flatten(tree, is_leaf)[0] if x is not None]


def is_leaf_node(x: Any) -> bool:
    """Whether ``x`` is a leaf, that is, not a node with children.

    Example:
        >>> import torchopt
        >>> torchopt.tree.is_leaf_node(3.0), torchopt.tree.is_leaf_node([])
        (True, False)
    """
    return bool(optree.tree_is_leaf(x, none_is_leaf=True))


def made_for(like: Any, tree: Any) -> Any:
    """A tree that is given itself, or by a function of another tree: the result of the function.

    A node that can be called, such as a module registered by :func:`register_node`, is a tree.

    Args:
        like: The other tree.
        tree: The tree, or a function that makes it from ``like``.

    Example:
        >>> from torchopt.tree.registry import made_for
        >>> made_for([1.0, 2.0], len), made_for([1.0, 2.0], [True, False])
        (2, [True, False])
    """
    return tree(like) if callable(tree) and is_leaf_node(tree) else tree


def flatten_with_path(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of a tree with their paths, written as Python code as in error messages.

    Example:
        >>> import torchopt
        >>> torchopt.tree.flatten_with_path({'layer': [1, 2]})
        [("['layer'][0]", 1), ("['layer'][1]", 2)]
    """
    if torch.compiler.is_dynamo_compiling():
        accessors, boxes, _ = optree.tree_flatten_with_accessor(_box(tree, is_leaf), none_is_leaf=True)
        found = [box.content for box in boxes]
    else:
        accessors, found, _ = optree.tree_flatten_with_accessor(tree, is_leaf, none_is_leaf=True)
    return [(accessor.codify(''), leaf) for accessor, leaf in zip(accessors, found)]


_SAME_STRUCTURE = 'Pass a tree of the same structure; use None for a leaf to skip.'


def flatten_up_to(spec: TreeSpec, tree: Any, *, name: str, like: str, remedy: str = _SAME_STRUCTURE) -> list[Any]:
    """Split ``tree`` into the subtrees at the leaves of ``spec``.

    Args:
        spec: A prefix of the structure of ``tree``.
        tree: The tree.
        name: The name of ``tree`` in error messages.
        like: The name of the tree with structure ``spec`` in error messages.
        remedy: The advice in error messages.

    Raises:
        ValueError: If the trees differ; the message names the path of the first difference.
    """
    if torch.compiler.is_dynamo_compiling():
        return [_unbox(x) for x in spec.flatten_up_to(_box(tree))]
    try:
        return spec.flatten_up_to(tree)
    except ValueError as error:
        path, reason = first_difference(spec, tree)
        problem = f'{name} does not have the structure of {like}: at {name}{path}, {reason}. {remedy}'
        raise ValueError(problem) from error


def first_difference(spec: TreeSpec, tree: Any, path: str = '') -> tuple[str, str]:
    """The path of the first difference between ``tree`` and ``spec``, and its description."""
    kind = spec.type
    if kind is None:
        return path, 'the leaves differ'
    if kind is not type(tree) and not {kind, type(tree)} <= _DICTS:
        return path, f'expected {with_article(kind.__name__)} and found {kind_of(tree)}'
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


# If a tree has only constants (such as a mask) or no leaves, Dynamo folds calls of optree into a constant that it
# cannot represent.  So during tracing, leaves are wrapped in boxes and empty nodes are replaced by placeholders.


class _Box:
    """Wraps a leaf."""

    def __init__(self, content: Any) -> None:
        self.content = content


class _Empty:
    """A placeholder for a node without children."""

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
