# SPDX-License-Identifier: Apache-2.0
"""Columns: NumPy arrays with an element, or a row, for each sample of a batch of ``torch.vmap``.

An operation on a batch of numbers takes NumPy a microsecond, and several on a tensor within ``torch.vmap``.  A solver
whose run is batched but not differentiated keeps its numbers in columns, and makes tensors of them for the functions of
the user.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter
from torch.autograd import forward_ad

from torchopt.levels import is_tracing, without_wrappers

__all__ = [
    'SMALLEST_SQUARE',
    'as_number',
    'batch_size',
    'beside',
    'dot',
    'from_column',
    'has_array',
    'is_batched',
    'lengths',
    'of_all_samples',
    'to_column',
]

SMALLEST_SQUARE = 1e-290
"""A smaller sum of squares has lost digits by underflow."""

_functorch = torch._C._functorch


def batch_size() -> int | None:
    """The size of the batch if one ``torch.vmap`` is all that transforms and records this code, else None."""
    if is_tracing() or torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return None
    levels = _functorch.get_interpreter_stack()
    if levels is None or len(levels) != 1:
        return None
    innermost = retrieve_current_functorch_interpreter()
    return innermost.batch_size() if isinstance(innermost, VmapInterpreter) else None


def to_column(x: Tensor, size: int) -> np.ndarray[Any, Any]:
    """The values of all samples of the innermost batch, along the first axis; ``x`` may be the same for all samples."""
    return (of_all_samples(x, size) if is_batched(x) else x.expand(size, *x.shape)).numpy(force=True)


def is_batched(x: Any) -> bool:
    """Whether a value is a tensor that has another value for each sample of a batch."""
    return isinstance(x, Tensor) and _functorch.is_batchedtensor(x)


def of_all_samples(x: Tensor, size: int) -> Tensor:
    """The values of a batched tensor, with the samples along the first dimension."""
    return _functorch._remove_batch_dim(x, _functorch.maybe_get_level(x), size, 0)


def from_column(x: np.ndarray[Any, Any]) -> Tensor:
    """The tensor of a sample of the innermost batch."""
    innermost = _functorch.peek_interpreter_stack()
    assert innermost is not None
    return _functorch._add_batch_dim(torch.from_numpy(x), 0, innermost.level())


def has_array(x: Any) -> bool:
    """Whether an array can share the memory and the precision of a tensor, or of its samples."""
    x = without_wrappers(x)
    return type(x) in (Tensor, torch.nn.Parameter) and x.is_cpu and x.dtype in (torch.float32, torch.float64)


def as_number(x: Any, dtype: torch.dtype) -> Any:
    """A column as the tensor of a sample, in this dtype if its numbers are real; other numbers as they are."""
    if not isinstance(x, np.ndarray):
        return x
    found = from_column(x)
    return found.to(dtype) if found.is_floating_point() else found


def dot(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Any:
    """The inner products of the rows of two arrays, in double precision."""
    return np.einsum('ij,ij->i', x, y, dtype=np.float64)


def lengths(x: np.ndarray[Any, Any]) -> Any:
    """The Euclidean norms of the rows of an array, accurate at every scale."""
    square = dot(x, x)
    exact = (square > SMALLEST_SQUARE) & (square < math.inf)
    if exact.all() or not x.size:
        return np.sqrt(square)
    largest = np.abs(x).max(1).astype(np.float64)  # squares overflow, or lose digits
    unit = np.where((largest > 0.0) & (largest < math.inf), largest, 1.0)
    x = x / unit[:, None]
    return np.where(exact, np.sqrt(square), np.where(unit == largest, unit * np.sqrt(dot(x, x)), largest))


def beside(column: Any, x: np.ndarray[Any, Any]) -> Any:
    """A column of numbers as a factor of the rows of another one, in its dtype; a single number as it is."""
    if not isinstance(column, np.ndarray):
        return column
    return column.astype(x.dtype, copy=False).reshape(len(column), *(1,) * (x.ndim - 1))
