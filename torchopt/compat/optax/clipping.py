# SPDX-License-Identifier: Apache-2.0
"""Clipping per unit, where a unit is a column: weights in Optax have the shape ``(..., in, out)``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchopt import clip
from torchopt.base import GradientTransformation

__all__ = ['adaptive_grad_clip', 'unitwise_norm']


def adaptive_grad_clip(
    clipping: Any, eps: Any = 1e-3, axis: int | tuple[int, ...] | None = None
) -> GradientTransformation:
    """:func:`torchopt.clip.adaptive_grad_clip` with the columns of a matrix as units instead of the rows.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> tx, w = optax.adaptive_grad_clip(0.5), torch.tensor([[1.0, 0.2], [0.0, 0.0]])
        >>> tx.update([torch.tensor([[0.0, 8.0], [8.0, 0.0]])], tx.init([w]), [w])[0]
        [tensor([[0.0000, 0.1000],
                [0.5000, 0.0000]])]
    """
    return clip.adaptive_grad_clip(clipping, eps, _units if axis is None else axis)


def unitwise_norm(x: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """:func:`torchopt.clip.unitwise_norm` with the columns of a matrix as units instead of the rows.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optax.transforms.unitwise_norm(torch.tensor([[3.0, 0.0], [4.0, 1.0]]))
        tensor([[5., 1.],
                [5., 1.]])
    """
    return clip.unitwise_norm(x, _units if axis is None else axis)


def _units(x: Tensor) -> tuple[int, ...]:
    """The dimensions of the norm of a unit."""
    if sum(size != 1 for size in x.shape) <= 1:
        return tuple(range(x.dim()))
    if x.dim() > 5:
        raise ValueError(f'There is no rule for the units of a parameter of shape {tuple(x.shape)}. Pass axis.')
    # With three dimensions, the second one is that of the heads, and every head has its own units.
    return tuple(range(x.dim() - 1)) if x.dim() > 3 else (0,)
