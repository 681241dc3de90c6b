# SPDX-License-Identifier: Apache-2.0
"""Map and reduce functions on trees, and checks whose errors name the leaf."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from torchopt.kinds import kind_of
from torchopt.tree.registry import flatten, flatten_up_to, flatten_with_path, leaves, unflatten

if TYPE_CHECKING:
    from collections.abc import Callable

_NOTHING: Any = object()


def map(f: Callable[..., Any], tree: Any, *rest: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Apply a function to every leaf; ``None`` leaves of the first tree stay ``None``.

    Args:
        f: Called with one leaf of each tree.
        tree: The tree that gives the structure of the result.
        *rest: Trees of the same structure; they may be deeper below a leaf of ``tree``.
        is_leaf: ``is_leaf(node)`` returns True for nodes of ``tree`` to treat as leaves.

    Raises:
        ValueError: If the structures differ; the message names the path of the first difference.

    Example:
        >>> import torchopt
        >>> torchopt.tree.map(lambda x, y: x + y, {'b': None, 'w': 1}, {'b': 3, 'w': 2})
        {'b': None, 'w': 3}
    """
    first, spec = flatten(tree, is_leaf)
    columns = [flatten_up_to(spec, other, name=f'tree {i}', like='tree 1') for i, other in enumerate(rest, 2)]
    return unflatten(spec, [None if row[0] is None else f(*row) for row in zip(first, *columns)])


def detached(tree: Any) -> Any:
    """The same tree with its tensors detached; other leaves are unchanged."""
    return map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, tree)


def map_with_path(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Like :func:`map`, with the path of the leaf (``"['layer'][0]"``) as first argument of ``f``.

    Example:
        >>> import torchopt
        >>> torchopt.tree.map_with_path(lambda path, x: path, {'b': [2], 'w': 1})
        {'b': ["['b'][0]"], 'w': "['w']"}
    """
    paths = iter([path for path, _ in flatten_with_path(tree)])
    _, spec = flatten(tree)
    return map(lambda x, path, *others: f(path, x, *others), tree, unflatten(spec, paths), *rest)


def reduce(
    f: Callable[[Any, Any], Any], tree: Any, initializer: Any = _NOTHING, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """Reduce the leaves of a tree from left to right, without ``None`` leaves.

    Args:
        f: ``f(total, leaf)`` returns the next total.
        tree: The tree.
        initializer: The first total; the first leaf if it is left out.
        is_leaf: ``is_leaf(node)`` returns True for nodes of ``tree`` to treat as leaves.

    Raises:
        TypeError: If the tree has no leaves and there is no ``initializer``.

    Example:
        >>> import torchopt
        >>> torchopt.tree.reduce(lambda total, x: total + x, {'w': 1, 'b': (2, None)}, 0)
        3
    """
    first = () if initializer is _NOTHING else (initializer,)
    return functools.reduce(f, leaves(tree, is_leaf), *first)


def all(tree: Any) -> bool:
    """Whether every leaf is true; ``None`` leaves are ignored.

    Example:
        >>> import torchopt
        >>> torchopt.tree.all({'w': True, 'b': None})
        True
    """
    return bool(reduce(lambda total, x: total and bool(x), tree, initializer=True))


def any(tree: Any) -> bool:
    """Whether at least one leaf is true; ``None`` leaves are ignored.

    Example:
        >>> import torchopt
        >>> torchopt.tree.any({'w': False, 'b': None})
        False
    """
    return bool(reduce(lambda total, x: total or bool(x), tree, initializer=False))


def broadcast_prefix(prefix: Any, tree: Any, *, name: str = 'prefix', like: str = 'tree') -> Any:
    """Repeat each leaf of ``prefix`` for all leaves of the corresponding subtree of ``tree``.

    Args:
        prefix: A tree whose structure is a prefix of that of ``tree``.
        tree: The tree whose structure the result has.
        name: The name of ``prefix`` in error messages.
        like: The name of ``tree`` in error messages.

    Raises:
        ValueError: If ``prefix`` is not a prefix of ``tree``.

    Example:
        >>> import torchopt
        >>> torchopt.tree.broadcast_prefix({'a': True, 'b': False}, {'a': [1, 2], 'b': 3})
        {'a': [True, True], 'b': False}
    """
    values, spec = flatten(prefix)
    subtrees = flatten_up_to(spec, tree, name=like, like=name)
    spread = []
    for value, subtree in zip(values, subtrees):
        inner, inner_spec = flatten(subtree)
        spread.append(unflatten(inner_spec, [value] * len(inner)))
    return unflatten(spec, spread)


def check_matching(tree: Any, reference: Any, *, name: str, like: str) -> None:
    """Require that two trees of tensors have the same structure and shapes.

    Leaves that are ``None`` in ``tree`` match anything.

    Args:
        tree: The tree to check.
        reference: The tree to compare with.
        name: The name of ``tree`` in error messages.
        like: The name of ``reference``.

    Raises:
        ValueError: If they differ; the message names the path of the first difference.

    Example:
        >>> import torch, torchopt
        >>> grads, params = {'w': torch.ones(2)}, {'w': torch.ones(3)}
        >>> torchopt.tree.check_matching(grads, params, name='grads', like='params')
        Traceback (most recent call last):
            ...
        ValueError: grads['w'] has shape (2,), but params['w'] has shape (3,). Pass one of the same shape.
    """
    found, spec = flatten(tree)
    expected = flatten_up_to(spec, reference, name=like, like=name)
    for i, (x, y) in enumerate(zip(found, expected)):
        if x is not None and getattr(y, 'shape', None) != x.shape:
            path = flatten_with_path(tree)[i][0]
            raise ValueError(describe_shapes(x, y, f'{name}{path}', f'{like}{path}'))


def describe_shapes(x: torch.Tensor, y: Any, name: str, like: str) -> str:
    """Describe the difference between the shapes of ``x`` and ``y`` for an error message."""
    shape = getattr(y, 'shape', None)
    found = f'has shape {tuple(shape)}' if shape is not None else f'is {kind_of(y)}'
    return f'{name} has shape {tuple(x.shape)}, but {like} {found}. Pass one of the same shape.'
