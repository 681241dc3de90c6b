# SPDX-License-Identifier: Apache-2.0
"""Trees of zeros, ones or one value, and copies along new dimensions, in the shapes of another tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchopt.dtypes import DTypeLike, as_dtype
from torchopt.tree.ops import map


def batch_shape(tree: Any, shape: tuple[int, ...] = ()) -> Any:
    """Expand every leaf along new leading batch dimensions.

    Args:
        tree: The tree.
        shape: The sizes of the new dimensions.

    Returns:
        A tree of expanded views; clone a leaf before you write to it.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.batch_shape([torch.ones(2)], (3,))[0].shape
        torch.Size([3, 2])
    """
    return map(lambda x: torch.as_tensor(x).expand(*shape, *np.shape(x)), tree)


def zeros_like(tree: Any, dtype: DTypeLike | None = None) -> Any:
    """A tree of zeros with the shapes of another tree.

    Args:
        tree: The tree.
        dtype: The dtype of the zeros; that of each leaf by default.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.zeros_like({'b': None, 'w': torch.ones(2)})
        {'b': None, 'w': tensor([0., 0.])}
    """
    kind = None if dtype is None else as_dtype(dtype)
    return map(lambda x: torch.zeros_like(torch.as_tensor(x), dtype=kind), tree)


def ones_like(tree: Any, dtype: DTypeLike | None = None) -> Any:
    """A tree of ones; see :func:`zeros_like`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.ones_like({'b': None, 'w': torch.zeros(2)})
        {'b': None, 'w': tensor([1., 1.])}
    """
    kind = None if dtype is None else as_dtype(dtype)
    return map(lambda x: torch.ones_like(torch.as_tensor(x), dtype=kind), tree)


def full_like(tree: Any, fill_value: Any, dtype: DTypeLike | None = None) -> Any:
    """A tree filled with one value; see :func:`zeros_like`.

    Args:
        tree: The tree.
        fill_value: A number, or a tensor that broadcasts against every leaf; the result is differentiable with respect
            to it.
        dtype: The dtype of the result; that of each leaf by default.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.full_like({'b': None, 'w': torch.zeros(2)}, 0.5)
        {'b': None, 'w': tensor([0.5000, 0.5000])}
    """
    kind = None if dtype is None else as_dtype(dtype)

    def fill(x: Any) -> torch.Tensor:
        x = torch.as_tensor(x)
        if not isinstance(fill_value, torch.Tensor):
            return torch.full_like(x, fill_value, dtype=kind)
        return fill_value.to(dtype=kind or x.dtype, device=x.device).expand_as(x).clone()

    return map(fill, tree)
