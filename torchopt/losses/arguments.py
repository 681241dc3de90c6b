# SPDX-License-Identifier: Apache-2.0
"""Conversion and checks of the arguments of losses.

The checks read shapes, dtypes and axes but never values, so that none synchronizes with a device.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

Axis: TypeAlias = int | tuple[int, ...] | None
"""One axis, several, or None for all of them."""

Number: TypeAlias = float | torch.Tensor
"""A number or a tensor that broadcasts."""


def tensor(value: Any, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return a tensor unchanged; convert anything else to a tensor with the dtype and device of ``like``."""
    if isinstance(value, torch.Tensor):
        return value
    if like is None:
        return torch.as_tensor(value)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def floating(name: str, value: Any, like: torch.Tensor | None = None) -> torch.Tensor:
    """Convert to a tensor and require a floating dtype."""
    x = tensor(value, like)
    if not x.is_floating_point():
        raise TypeError(f'{name} has dtype {x.dtype}; expected a floating dtype. Convert it, say with `.float()`.')
    return x


def real(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    """Convert to a tensor and require real numbers; integers and bools are converted to the dtype of ``like``."""
    x = tensor(value, like)
    if x.is_complex():
        raise TypeError(f'{name} has dtype {x.dtype}; expected real numbers. Pass the real part.')
    return x if x.is_floating_point() else x.to(like.dtype)


def integral(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    """Convert to a tensor and require an integer dtype; return int64, the dtype of indices in torch."""
    x = value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device=like.device)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f'{name} has dtype {x.dtype}; expected integer classes. Convert it with `.long()`.')
    return x.long()


def mask(value: Any, like: torch.Tensor) -> torch.Tensor | None:
    """Convert a mask to a bool tensor on the device of ``like``; None stays None."""
    return None if value is None else torch.as_tensor(value, device=like.device).to(torch.bool)


def same_shape(name: str, x: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Require equal shapes."""
    if x.shape != other.shape:
        raise ValueError(
            f'{other_name} has shape {tuple(other.shape)}, but {name} has shape {tuple(x.shape)}. '
            f'Pass tensors of the same shape; this loss does not broadcast.'
        )


def broadcastable(name: str, x: torch.Tensor | torch.Size, other_name: str, other: torch.Tensor) -> None:
    """Require shapes that broadcast to one of them, unless both have as many axes.

    Shapes such as ``[n, 1]`` and ``[n]``, which broadcast to ``[n, n]``, are a common mistake.
    """
    shape, others = tuple(x.shape if isinstance(x, torch.Tensor) else x), tuple(other.shape)
    if shape == others:
        return
    pairs = list(zip(reversed(shape), reversed(others)))
    if any(m != n and m != 1 and n != 1 for m, n in pairs):
        raise ValueError(
            f'{other_name} has shape {others}, which does not broadcast with the shape {shape} of {name}. Reshape one '
            f'of them.'
        )
    longer, shorter = sorted((shape, others), key=len, reverse=True)
    if len(shorter) < len(longer) and any(m < n for m, n in zip(reversed(longer), reversed(shorter))):
        raise ValueError(
            f'{other_name} has shape {others}, and {name} has shape {shape}: neither has the shape to which both '
            f'broadcast. Reshape one of them, such as by squeeze(-1), or give both the same number of axes.'
        )


def axes(axis: Axis, name: str, x: torch.Tensor) -> tuple[int, ...]:
    """Return the dimensions of ``x`` that ``axis`` selects, as nonnegative numbers."""
    if axis is None:
        return tuple(range(x.ndim))
    found = []
    for a in axis if isinstance(axis, (tuple, list)) else (axis,):
        if isinstance(a, bool) or not hasattr(a, '__index__'):
            raise TypeError(f'axis is {axis!r}; expected an int, a tuple of ints, or None.')
        if not -x.ndim <= a < x.ndim:
            raise ValueError(
                f'axis {a} is out of bounds for {name}, which has {x.ndim} dimensions. '
                f'Pass one from {-x.ndim} to {x.ndim - 1}.'
            )
        found.append(a % x.ndim)
    if len(set(found)) < len(found):
        raise ValueError(f'axis {axis!r} contains a dimension twice. Pass each dimension once.')
    return tuple(found)
