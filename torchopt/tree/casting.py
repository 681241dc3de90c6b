# SPDX-License-Identifier: Apache-2.0
"""The dtypes of trees."""

from __future__ import annotations

import functools
from typing import Any

import torch

from torchopt.dtypes import DTypeLike, as_dtype
from torchopt.tree.ops import map
from torchopt.tree.registry import flatten_with_path


def cast(tree: Any, dtype: DTypeLike | None) -> Any:
    """Cast every leaf to one dtype.

    Args:
        tree: Tree of tensors; ``None`` leaves stay ``None``.
        dtype: The dtype; with None the tree is returned unchanged.

    Returns:
        A tree of the same structure.  Leaves that already have the dtype are not copied.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.cast({'b': None, 'w': torch.ones(2)}, torch.bfloat16)
        {'b': None, 'w': tensor([1., 1.], dtype=torch.bfloat16)}
    """
    if dtype is None:
        return tree
    kind = as_dtype(dtype)
    return map(lambda x: torch.as_tensor(x).to(kind), tree)


def cast_like(tree: Any, other_tree: Any) -> Any:
    """Cast every leaf to the dtype of the corresponding leaf of another tree.

    Args:
        tree: Tree of tensors; ``None`` leaves stay ``None``.
        other_tree: Tree of the same structure; if its leaf has no dtype (``None`` or a Python number), the
            leaf of ``tree`` stays unchanged.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.cast_like([torch.ones(2)], [torch.ones(1, dtype=torch.float64)])
        [tensor([1., 1.], dtype=torch.float64)]
    """

    def follow(x: Any, other: Any) -> Any:
        kind = getattr(other, 'dtype', None)
        return x if kind is None else torch.as_tensor(x).to(as_dtype(kind))

    return map(follow, tree, other_tree)


def dtype(tree: Any, mixed_dtype_handler: str | None = None) -> torch.dtype:
    """The dtype of the leaves of a tree.

    Dtypes are ordered by promotion: ``b`` is at least as high as ``a`` if ``torch.promote_types(a, b)`` is
    ``b``.  The order is partial: neither of float16 and bfloat16 is higher.

    Args:
        tree: Tree of tensors or numbers; ``None`` leaves are ignored.
        mixed_dtype_handler: What to return if the dtypes differ.  ``'promote'``: the dtype that all of them
            promote to.  ``'highest'``, ``'lowest'``: the highest or lowest of them.  None: raise an error.

    Returns:
        The dtype; torch's default dtype if the tree has no leaves.

    Raises:
        ValueError: If the dtypes differ and there is no handler, if two of them are not ordered, or if the
            handler is unknown.

    Example:
        >>> import torch, torchopt
        >>> tree = {'w': torch.ones(2), 'b': torch.ones(2, dtype=torch.float16)}
        >>> torchopt.tree.dtype(tree, 'lowest'), torchopt.tree.dtype(tree, 'promote')
        (torch.float16, torch.float32)
    """
    known = (None, 'promote', 'highest', 'lowest')
    if mixed_dtype_handler not in known:
        raise ValueError(f'Invalid mixed_dtype_handler: {mixed_dtype_handler!r}; expected one of {known}.')
    found = [(path, torch.as_tensor(x).dtype) for path, x in flatten_with_path(tree) if x is not None]
    if not found:
        return torch.get_default_dtype()
    kinds = [kind for _, kind in found]
    if mixed_dtype_handler is None:
        for path, kind in found:
            if kind != kinds[0]:
                raise ValueError(
                    f'The leaves have different dtypes: tree{found[0][0]} has {kinds[0]}, '
                    f'tree{path} has {kind}. '
                    f"Cast them, or pass mixed_dtype_handler='promote', 'highest' or 'lowest'."
                )
        return kinds[0]
    if mixed_dtype_handler == 'promote':
        return functools.reduce(torch.promote_types, kinds)
    highest = mixed_dtype_handler == 'highest'
    return functools.reduce(lambda a, b: _ordered(a, b)[highest], kinds)


def _ordered(a: torch.dtype, b: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    top = torch.promote_types(a, b)
    if top == b:
        return a, b
    if top == a:
        return b, a
    raise ValueError(
        f"Neither of {a} and {b} promotes to the other, so neither is higher; pass mixed_dtype_handler='promote'."
    )
