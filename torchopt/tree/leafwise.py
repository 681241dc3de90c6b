# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on leaves: conversion of scalars, and errors that name the leaf."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from torchopt.dtypes import is_inexact
from torchopt.numerics import as_scalar_like
from torchopt.tree.ops import describe_shapes, map
from torchopt.tree.registry import flatten, flatten_up_to, flatten_with_path, leaves

if TYPE_CHECKING:
    from collections.abc import Callable


def map_leaves(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Like :func:`map`; if shapes do not match, the error names the leaf."""
    try:
        return map(f, tree, *rest)
    except (RuntimeError, TypeError):
        _blame_leaf(tree, rest)
        raise


def _blame_leaf(tree: Any, rest: tuple[Any, ...]) -> None:
    """Raise an error that names the first leaf whose shape does not match, if there is one."""
    _, spec = flatten(tree)
    for i, other in enumerate(rest, 2):
        column = flatten_up_to(spec, other, name=f'tree {i}', like='tree 1')
        for (path, x), y in zip(flatten_with_path(tree), column):
            if x is not None and y is None:
                raise ValueError(
                    f'tree {i}{path} is None, but tree 1{path} is not. Use None, or a tensor, in both trees.'
                )
            try:
                np.broadcast_shapes(np.shape(x), np.shape(y))
            except ValueError:
                raise ValueError(describe_shapes(y, x, f'tree {i}{path}', f'tree 1{path}')) from None


def tensors(tree: Any) -> list[torch.Tensor]:
    """The leaves of a tree, with numbers converted to tensors."""
    return [torch.as_tensor(x) for x in leaves(tree)]


def together(xs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Move 0-d tensors to the device of the first."""
    return [x.to(xs[0].device) for x in xs]


def plain(value: Any) -> Any:
    """Convert a NumPy number to a Python number; return other values unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def scalar_like(value: Any, like: Any) -> Any:
    """Convert a scalar to the precision and the device of a leaf, so that it does not promote the leaf."""
    if not isinstance(value, torch.Tensor) or not isinstance(like, torch.Tensor):
        return plain(value)
    if not is_inexact(like):
        return value.to(like.device)
    if value.is_complex():
        return value.to(dtype=like.dtype.to_complex(), device=like.device)
    return as_scalar_like(value, like)
