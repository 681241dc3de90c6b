# SPDX-License-Identifier: Apache-2.0
"""Columns: NumPy arrays with an element, or a row, for each sample of a batch of ``torch.vmap``.

An operation on a batch of numbers takes NumPy a microsecond, and several as a tensor within ``torch.vmap``.  So a solver
whose run is batched but not differentiated keeps its numbers in columns, and converts them to tensors for the functions
of the user.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter
from torch.autograd import forward_ad

__all__ = ['batch_size', 'beside', 'from_column', 'to_column']

_functorch = torch._C._functorch


def batch_size() -> int | None:
    """The size of the batch if one ``torch.vmap`` is all that transforms and records this code, else None."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return None
    levels = _functorch.get_interpreter_stack()
    if levels is None or len(levels) != 1:
        return None
    innermost = retrieve_current_functorch_interpreter()
    return innermost.batch_size() if isinstance(innermost, VmapInterpreter) else None


def to_column(x: Tensor, size: int) -> np.ndarray[Any, Any]:
    """The values of all samples of the innermost batch, which come first in the array.

    Args:
        x: A tensor, which may be the same for all samples.
        size: The size of the batch.
    """
    level = _functorch.maybe_get_level(x) if _functorch.is_batchedtensor(x) else -1
    plain = _functorch._remove_batch_dim(x, level, size, 0) if level > 0 else x.expand(size, *x.shape)
    return plain.numpy(force=True)


def from_column(x: np.ndarray[Any, Any]) -> Tensor:
    """The tensor of a sample of the innermost batch."""
    innermost = _functorch.peek_interpreter_stack()
    assert innermost is not None
    return _functorch._add_batch_dim(torch.from_numpy(x), 0, innermost.level())


def beside(column: Any, x: np.ndarray[Any, Any]) -> Any:
    """A column of numbers as a factor of the rows of another one, in its dtype; a single number as it is."""
    if not isinstance(column, np.ndarray):
        return column
    return column.astype(x.dtype, copy=False).reshape(len(column), *(1,) * (x.ndim - 1))
