# SPDX-License-Identifier: Apache-2.0
"""Trees as vectors, and the vector operations of the iterative solvers.

A solver works on real vectors of shape ``(*batch, n)``: all leaves of the unknown side by side, complex leaves as pairs
of real numbers, half precision computed in float32.  Real pairs are necessary: the Jacobian of a function
that is not holomorphic is linear over the reals only.

Scales are powers of two, stored as exponents: multiplication by a scale causes no rounding, and the product of two
scales is the sum of their exponents, even if the dtype cannot represent it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    'Layout',
    'Scalar',
    'add_scaled',
    'any_above',
    'can_improve',
    'divide',
    'exponent',
    'inner',
    'norm',
    'step_size',
    'times_power',
]

Scalar = Any
"""A Python number for a single system, a tensor of shape ``(*batch, 1)`` for a batch.

With numbers on the host an iteration has fewer tensor operations.  These dominate the time for small systems, and on a
GPU they would cost more than the synchronization."""


class Layout(NamedTuple):
    """The layout of leaves in a vector."""

    batch: tuple[int, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_vector: bool
    """Whether there is one leaf, which already is such a vector."""

    @classmethod
    def of(cls, leaves: Sequence[Tensor], batch: tuple[int, ...] = ()) -> Layout:
        """The layout of vectors like these leaves, whose first dimensions are those of the batch."""
        dtype = torch.float32
        for x in leaves:
            dtype = torch.promote_types(dtype, x.dtype.to_real() if x.is_complex() else x.dtype)
        shapes = tuple(x.shape[len(batch) :] for x in leaves)
        sizes = tuple(math.prod(s) * (2 if x.is_complex() else 1) for s, x in zip(shapes, leaves))
        device = leaves[0].device if leaves else torch.device('cpu')
        is_vector = len(shapes) == 1 and len(shapes[0]) == 1 and leaves[0].dtype == dtype
        return cls(batch, shapes, tuple(x.dtype for x in leaves), sizes, dtype, device, is_vector)

    @property
    def size(self) -> int:
        """The number of real unknowns of one system."""
        return sum(self.sizes)

    def ravel(self, leaves: Sequence[Tensor]) -> Tensor:
        """Concatenate leaves to a vector."""
        if self.is_vector:
            return leaves[0]
        parts = [
            (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).reshape((*self.batch, n)).to(self.dtype)
            for x, n in zip(leaves, self.sizes)
        ]
        if not parts:
            return torch.zeros((*self.batch, 0), dtype=self.dtype, device=self.device)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def unravel(self, vector: Tensor) -> list[Tensor]:
        """The leaves in a vector, as views where dtypes allow it.  Further leading dimensions are kept."""
        if self.is_vector:
            return [vector]
        lead = vector.shape[:-1]
        leaves = []
        for part, shape, dtype in zip(torch.split(vector, list(self.sizes), dim=-1), self.shapes, self.dtypes):
            if dtype.is_complex:
                # Not view_as_complex, which needs an even offset.
                leaves.append(torch.complex(*part.reshape((*lead, *shape, 2)).unbind(-1)).to(dtype))
            else:
                leaves.append(part.reshape((*lead, *shape)).to(dtype))
        return leaves


def inner(x: Tensor, y: Tensor) -> Scalar:
    """The inner product of each system."""
    if x.dim() == 1:
        return torch.dot(x, y).item()
    return torch.linalg.vecdot(x, y).unsqueeze(-1)


def norm(x: Tensor) -> Scalar:
    """The Euclidean norm of each system."""
    if x.dim() == 1:
        return torch.linalg.vector_norm(x).item()
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


_MODERATE = 12
"""Numbers from ``2**-k`` to ``2**k``, with this ``k``, are of order one: products do not overflow or underflow."""


def exponent(x: Tensor, size: Scalar) -> int | Tensor:
    """For each system the exponent of the power of two next to its largest element; zero for vectors of order one.

    Args:
        x: The vectors.
        size: Their norms, which may be wrong if they overflow or underflow.
    """
    if not isinstance(size, Tensor):
        if 2.0**-_MODERATE < size < 2.0**_MODERATE or not x.numel():
            return 0
        largest = torch.linalg.vector_norm(x, math.inf).item()
        return math.frexp(largest)[1] if 0 < largest < math.inf else 0
    if not x.numel():
        return 0
    largest = torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True)
    found = torch.frexp(largest).exponent
    found = torch.where((largest > 0) & torch.isfinite(largest) & (found.abs() > _MODERATE), found, 0)
    return found if bool(found.any()) else 0


def times_power(x: Any, e: int | Tensor) -> Any:
    """``x * 2**e`` for a vector or a scalar; exact unless it leaves the range of the dtype."""
    if isinstance(e, Tensor):
        like = x if isinstance(x, Tensor) else torch.zeros((), dtype=torch.float64, device=e.device)
        first = torch.div(e, 2, rounding_mode='floor')
        return x * torch.exp2(first.to(like.dtype)) * torch.exp2((e - first).to(like.dtype))
    if e == 0:
        return x
    if -100 < e < 100:
        return x * 2.0**e
    half = e // 2
    return x * 2.0**half * 2.0 ** (e - half)


def divide(a: Scalar, b: Scalar) -> Scalar:
    """The quotient, or zero if the divisor is zero, so that a system that is solved or broke down does not change."""
    if isinstance(b, Tensor):
        return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))
    return a / b if b != 0 else 0.0


def add_scaled(x: Tensor, y: Tensor, by: Scalar) -> Tensor:
    """``x + by * y``."""
    return torch.addcmul(x, y, by) if isinstance(by, Tensor) else torch.add(x, y, alpha=by)


def any_above(x: Scalar, limit: Scalar) -> bool:
    """Whether some system's value exceeds its limit, or is NaN."""
    return bool((~(x <= limit)).any()) if isinstance(x, Tensor) else not x <= limit


def step_size(a: Scalar, b: Scalar, size: Scalar, limit: Scalar) -> Scalar:
    """:func:`divide`; zero for the solved systems of a batch, whose ``size`` is within the limit."""
    if isinstance(a, Tensor):
        a = torch.where(size <= limit, 0.0, a)
    elif b != 0:
        return a / b
    return divide(a, b)


def can_improve(size: Any, limit: Any, *steps: Any) -> bool:
    """Whether some system is not solved yet, is finite, and moved in at least one of the last steps."""
    if not isinstance(size, Tensor):
        return size > limit and math.isfinite(size) and any(step != 0 for step in steps)
    moved = torch.stack([step != 0 for step in steps]).any(dim=0)
    return bool(((size > limit) & torch.isfinite(size) & moved).any())
