# SPDX-License-Identifier: Apache-2.0
"""Norms that are accurate at every scale and in half precision, with a derivative at zero."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from torchopt.dtypes import real_dtype, widened
from torchopt.levels import is_tracing, refuse_empty_batches, runs_directly, without_wrappers
from torchopt.numerics import abs_sq, safe_sqrt

__all__ = ['constant_norm', 'norm_in_double', 'root_mean_square', 'safe_norm', 'safe_root_mean_squares', 'two_norm']


def two_norm(xs: Sequence[torch.Tensor], dim: int | tuple[int, ...] | None = None, keepdim: bool = False) -> Any:
    r"""The 2-norm of several tensors together, accurate at every scale, with the derivative zero at zero.

    Squares of float32 overflow for numbers above :math:`10^{19}` and underflow for numbers below :math:`10^{-19}`.  So
    the tensors are first divided by a power of two near their largest element.  This is exact, and the divisor is a
    constant in derivatives of every order.

    Args:
        xs: Tensors of floating or complex dtypes, at least one.
        dim: The dimensions of the norm; the other dimensions must have the same sizes in all tensors.  By default all.
        keepdim: Keep these dimensions, with size 1.

    Returns:
        A real tensor on the device of the first tensor, of the widest dtype among them and float32, since the norm of
        a large tensor in half precision can overflow.
    """
    if dim is None and (known := _norm_at_once(xs)) is not None:
        return known
    parts, unit = _in_units(xs, dim)
    norm = unit * _root_of_squares(parts, dim)
    return norm if dim is None or keepdim else norm.squeeze(dim)


_SAFE = {
    dtype: (1e7 * torch.finfo(dtype).tiny ** 0.5, 0.1 * torch.finfo(dtype).max ** 0.5)
    for dtype in (torch.float32, torch.float64)
}
"""For norms in this range, squares neither overflow nor lose digits by underflow."""


def _norm_at_once(xs: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The norm of plain tensors on the CPU without derivatives if it needs no scaling; else None."""
    if not _read_at_once(xs):
        return None
    if xs[0].dtype not in _SAFE or any(x.dtype != xs[0].dtype for x in xs):
        xs = _widest(xs)
    norms = [torch.linalg.vector_norm(x) for x in xs]
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
    low, high = _SAFE[norm.dtype]
    return norm if low < norm.item() < high else None


def _read_at_once(xs: Sequence[torch.Tensor]) -> bool:
    """Whether tensors are plain tensors on the CPU without derivatives."""
    if not runs_directly() or forward_ad._current_level >= 0:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return False
    tracked = torch.is_grad_enabled()
    return all(
        type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type == 'cpu' and not (tracked and x.requires_grad)
        for x in xs
    )


def _root_of_squares(xs: Sequence[torch.Tensor], dim: int | tuple[int, ...] | None) -> torch.Tensor:
    squares = [abs_sq(x).sum() if dim is None else abs_sq(x).sum(dim, keepdim=True) for x in xs]
    return safe_sqrt(squares[0] if len(xs) == 1 else torch.stack([s.to(squares[0].device) for s in squares]).sum(0))


def constant_norm(xs: Sequence[torch.Tensor], order: float) -> torch.Tensor:
    """The norm of any positive order of several tensors together, as a constant; see :func:`two_norm`."""
    xs = [x.detach() for x in xs]
    if order == 2 and xs and (known := _norm_at_once(xs)) is not None:
        return known
    parts, unit = _in_units(xs, None)
    norms = [torch.linalg.vector_norm(x, order).to(unit.device) for x in parts if x.numel()]
    return unit * torch.linalg.vector_norm(torch.stack(norms), order) if norms else torch.zeros_like(unit)


def _widest(xs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Convert tensors to the widest precision among them and float32."""
    wide = functools.reduce(torch.promote_types, [real_dtype(x.dtype) for x in xs], torch.float32)
    return [x.to(wide.to_complex() if x.is_complex() else wide) for x in xs]


def _in_units(xs: Sequence[torch.Tensor], dim: int | tuple[int, ...] | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tensors divided by a power of two near the largest absolute value along some dimensions, and this constant."""
    refuse_empty_batches()
    xs = _widest(xs)
    wide = real_dtype(xs[0].dtype)
    largest = [torch.linalg.vector_norm(x.detach(), math.inf, dim, dim is not None) for x in xs if x.numel()]
    if not largest:
        return xs, torch.ones((), dtype=wide, device=xs[0].device)
    most = largest[0] if len(largest) == 1 else torch.stack([x.to(xs[0].device) for x in largest]).amax(0)
    limits = torch.finfo(wide)
    unit = torch.exp2(torch.floor(torch.log2(most))).clamp(limits.tiny, limits.max / 2)
    return [_over(x, unit.to(x.device)) for x in xs], unit


def _over(x: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    # Complex division of infinity gives NaN.
    return torch.complex(x.real / unit, x.imag / unit) if x.is_complex() else x / unit


def norm_in_double(x: torch.Tensor) -> torch.Tensor:
    """The 2-norm, accurate at every scale: in float64 where the device has it, which is faster than scaling float32."""
    if x.device.type == 'mps':
        return two_norm([x])
    norm = torch.linalg.vector_norm(x, dtype=torch.complex128 if x.is_complex() else torch.float64)
    return two_norm([x]) if real_dtype(x.dtype) == torch.float64 and not _is_safe(norm) else norm


def _is_safe(norm: torch.Tensor) -> bool:
    """Whether norms, of all samples of a batch, are known to need no scaling."""
    if is_tracing() or not norm.is_cpu:
        return False
    low, high = _SAFE[norm.dtype]
    values = without_wrappers(norm)
    return bool(((values > low) & (values < high)).all())


def root_mean_square(x: torch.Tensor) -> torch.Tensor:
    """The root mean square of a tensor, computed by :func:`two_norm`; zero for a tensor without elements."""
    return two_norm([x]) / math.sqrt(max(x.numel(), 1))


def safe_norm(
    x: torch.Tensor,
    min_norm: Any,
    ord: int | float | str | None = None,
    axis: int | tuple[int, ...] | None = None,
    keepdims: bool = False,
) -> torch.Tensor:
    r"""The norm of a tensor with a lower bound, :math:`\max(\lVert x \rVert, s)`, with a derivative everywhere.

    If :math:`\lVert x \rVert \le s`, the derivative with respect to ``x`` is zero, also at :math:`x = 0`.

    Args:
        x: A tensor of a floating or complex dtype.
        min_norm: The lower bound :math:`s`, a number or a tensor.
        ord: The order of the norm, as in :func:`torch.linalg.norm`; by default the 2-norm of all elements.
        axis: The dimension of a vector norm, or the two dimensions of a matrix norm; by default all.
        keepdims: Keep these dimensions, with size 1.

    Example:
        >>> import torch
        >>> from torchopt.norms import safe_norm
        >>> x = torch.zeros(2, requires_grad=True)
        >>> norm = safe_norm(x, 1e-3)
        >>> norm.backward()
        >>> norm.detach(), x.grad
        (tensor(0.0010), tensor([0., 0.]))
    """
    dims = tuple(range(x.dim())) if axis is None else axis
    # All norms but that of order 0, the number of nonzero elements, are proportional to the scale of x.
    (parts,), unit = ([widened(x)], 1.0) if ord == 0 else _in_units([x], dims)
    small = unit * torch.linalg.norm(parts.detach(), ord, dim=axis, keepdim=True) <= min_norm
    norm = unit * torch.linalg.norm(torch.where(small, torch.ones_like(parts), parts), ord, dim=axis, keepdim=True)
    norm = torch.where(small, min_norm, norm.to(real_dtype(x.dtype)))
    return norm if keepdims else norm.squeeze(dims)


def safe_root_mean_squares(x: torch.Tensor, min_rms: Any) -> torch.Tensor:
    r"""The root mean square of a tensor with a lower bound, with a derivative everywhere; see :func:`safe_norm`.

    Args:
        x: A tensor of a floating or complex dtype.
        min_rms: The lower bound, a number or a tensor.

    Returns:
        A real 0-d tensor.

    Example:
        >>> import torch
        >>> from torchopt.norms import safe_root_mean_squares
        >>> safe_root_mean_squares(torch.tensor([3.0, -3.0]), 0.1)
        tensor(3.)
    """
    rms = root_mean_square(x)
    return torch.where(rms <= min_rms, min_rms, rms.to(real_dtype(x.dtype)))
