# SPDX-License-Identifier: Apache-2.0
"""What a loss accepts: tensors brought together, and errors that name the argument at fault.

Only shapes, dtypes and axes are looked at, never values: no check waits for a device.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

__all__ = ['Axis', 'Number', 'axes', 'broadcastable', 'floating', 'integral', 'mask', 'real', 'same_shape', 'tensor']

Axis: TypeAlias = int | tuple[int, ...] | None
"""One axis, several, or None for all of them."""

Number: TypeAlias = float | torch.Tensor
"""A number or a tensor that broadcasts."""


def tensor(value: Any, like: torch.Tensor | None = None) -> torch.Tensor:
    """A tensor as it is; anything else as a tensor, of the dtype and on the device of ``like``."""
    if isinstance(value, torch.Tensor):
        return value
    if like is None:
        return torch.as_tensor(value)
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def floating(name: str, value: Any, like: torch.Tensor | None = None) -> torch.Tensor:
    """Require a floating dtype."""
    x = tensor(value, like)
    if not x.is_floating_point():
        raise TypeError(f'{name} has dtype {x.dtype}; expected a floating dtype. Convert it, say with `.float()`.')
    return x


def real(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    """Require real numbers; integers and bools come in the dtype of ``like``."""
    x = tensor(value, like)
    if x.is_complex():
        raise TypeError(f'{name} has dtype {x.dtype}; expected real numbers. Pass its real part.')
    return x if x.is_floating_point() else x.to(like.dtype)


def integral(name: str, value: Any, like: torch.Tensor) -> torch.Tensor:
    """Require an integer dtype; the result is int64, as torch wants its indices."""
    x = value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device=like.device)
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f'{name} has dtype {x.dtype}; expected integers, one class each. Convert it with `.long()`.')
    return x.long()


def mask(value: Any, like: torch.Tensor) -> torch.Tensor | None:
    """A mask as bools, on the device of ``like``; None stays None."""
    return None if value is None else torch.as_tensor(value, device=like.device).to(torch.bool)


def same_shape(name: str, x: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Require one shape."""
    if x.shape != other.shape:
        raise ValueError(
            f'{other_name} has shape {tuple(other.shape)}, but {name} has shape {tuple(x.shape)}. '
            f'Pass tensors of the same shape; this loss does not broadcast.'
        )


def broadcastable(name: str, x: torch.Tensor | torch.Size, other_name: str, other: torch.Tensor) -> None:
    """Require shapes that broadcast."""
    shape = x.shape if isinstance(x, torch.Tensor) else x
    if any(m != n and m != 1 and n != 1 for m, n in zip(reversed(shape), reversed(other.shape))):
        raise ValueError(
            f'{other_name} has shape {tuple(other.shape)}, which does not broadcast with the shape {tuple(shape)} '
            f'of {name}. Pass one that does.'
        )


def axes(axis: Axis, name: str, x: torch.Tensor) -> tuple[int, ...]:
    """The axes of ``x`` that are meant, counted from the front."""
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
        raise ValueError(f'axis {axis!r} names a dimension twice. Name each once.')
    return tuple(found)
