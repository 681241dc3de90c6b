# SPDX-License-Identifier: Apache-2.0
"""Dtypes: which ones can have gradients, and in which one to compute."""

from __future__ import annotations

import contextlib
from typing import Any, TypeAlias

import numpy as np
import torch

__all__ = ['DTypeLike', 'as_dtype', 'is_half', 'is_inexact', 'real_dtype', 'wide_dtype', 'widened']

_HALVES = frozenset({torch.float16, torch.bfloat16})

DTypeLike: TypeAlias = 'torch.dtype | np.dtype[Any] | type | str'
"""The types that :func:`as_dtype` accepts."""


def as_dtype(dtype: DTypeLike, name: str = 'dtype') -> torch.dtype:
    """Convert a dtype of torch or NumPy, or the name of one, to a dtype of torch.

    Args:
        dtype: ``torch.bfloat16``, ``'bfloat16'``, ``np.float32``, ``np.dtype('float32')``.
        name: The name of the argument in an error message.

    Raises:
        TypeError: If torch has no such dtype.

    Example:
        >>> import numpy as np
        >>> from torchopt.dtypes import as_dtype
        >>> as_dtype('bfloat16'), as_dtype(np.float32)
        (torch.bfloat16, torch.float32)
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if found is None and dtype is not None:  # NumPy would accept None as a dtype
        with contextlib.suppress(TypeError):
            found = getattr(torch, np.dtype(dtype).name, None)
    if not isinstance(found, torch.dtype):
        raise TypeError(
            f'Invalid {name}: {dtype!r}; expected a dtype of torch or of NumPy, or its name, such as torch.bfloat16 or '
            f"'bfloat16'."
        )
    return found


def is_inexact(x: Any) -> bool:
    """Whether ``x`` is a tensor of a floating or complex dtype, one that can have a gradient."""
    return isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())


def is_half(x: Any) -> bool:
    """Whether ``x`` is a tensor in half precision, float16 or bfloat16."""
    return isinstance(x, torch.Tensor) and x.dtype in _HALVES


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """The real dtype of the same precision: ``complex64`` gives ``float32``."""
    return dtype.to_real() if dtype.is_complex else dtype


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The real dtype for computations: the same precision, but at least float32."""
    return torch.promote_types(real_dtype(dtype), torch.float32)


def widened(x: Any) -> Any:
    """Convert a tensor in half precision to float32; other values are unchanged."""
    return x.float() if is_half(x) else x
