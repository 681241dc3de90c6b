# SPDX-License-Identifier: Apache-2.0
r"""The memory of limited-memory quasi-Newton methods, and products with their approximation of the inverse Hessian.

A vector is a list of tensors, such as the leaves of a tree of parameters.  For complex tensors, inner products are
replaced by their real parts.  With the differences of parameters :math:`s_j = w_{j+1} - w_j` and of gradients
:math:`y_j = g_{j+1} - g_j` of the last steps, and the weights :math:`\rho_j = 1 / \langle y_j, s_j \rangle`, the
approximation :math:`H` is the last one of

.. math::
    H^{(0)} = \gamma I, \qquad
    H^{(i+1)} = (I - \rho_j s_j y_j^\mathsf{T})\, H^{(i)}\, (I - \rho_j y_j s_j^\mathsf{T}) + \rho_j s_j s_j^\mathsf{T},

where :math:`j` runs from the oldest pair to the newest.

With the pairs as the rows of :math:`S` and :math:`Y`, from the oldest to the newest, the strict upper triangle
:math:`N` of :math:`S Y^\mathsf{T}`, and :math:`A = I + N \operatorname{diag}(\rho)`, the product with a vector
:math:`g` is

.. math::
    \alpha = \rho \odot A^{-1} S g, \qquad
    q = g - Y^\mathsf{T} \alpha, \qquad
    H g = \gamma q + S^\mathsf{T} A^{-\mathsf{T}} (\alpha - \rho \odot \gamma\, Y q).

These are the two loops of Nocedal and Wright: substitution with :math:`A` computes their scalars one after another, but
each sum over the pairs is one product with a matrix.  :math:`A` is computed in double precision.  The results are as
accurate as those of the loops, also for ill-conditioned pairs.

References:
    Nocedal and Wright, `Numerical optimization <https://doi.org/10.1007/978-0-387-40065-5>`_, algorithm 7.4, 2006.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import tree
from torchopt._C import quasi_newton as kernels
from torchopt.dtypes import real_dtype, widened
from torchopt.levels import is_tracing, refuse_empty_batches, runs_directly, without_autocast
from torchopt.numerics import as_python_scalar, as_scalar_like, tensor_like
from torchopt.scalars import larger, root, settled, smaller, where

__all__ = [
    'CurvaturePair',
    'Memory',
    'Ring',
    'curvature_pair',
    'first_scale',
    'inner_product',
    'inverse_hessian_product',
    'remember',
    'remember_step',
    'scaled_product',
]


_Change = tuple[Sequence[Tensor], Sequence[Tensor]]


class Memory(NamedTuple):
    r"""The last few pairs, in ring buffers; see :class:`Ring`.

    Attributes:
        s: The differences of parameters, stacked along a new first dimension of each tensor.
        y: The differences of gradients, likewise.
        weights: The weights :math:`\rho_j`, in double precision; zero for skipped pairs.
    """

    s: Any
    y: Any
    weights: Tensor

    @classmethod
    def like(cls, vector: Any, size: int) -> Memory:
        """A memory of ``size`` zero pairs, whose ``s`` and ``y`` have the structure of ``vector``."""
        s, y = (tree.map(lambda x: x.new_zeros((size, *x.shape)), vector) for _ in range(2))
        device = next((x.device for x in tree.leaves(vector)), None)
        return cls(s, y, torch.zeros(size, dtype=torch.float64, device=device))


class CurvaturePair(NamedTuple):
    r"""The differences of one step; all fields are zero if the pair has no positive curvature.

    Attributes:
        s: The difference of the parameters.
        y: The difference of the gradients.
        product: :math:`\langle y, s \rangle`, a float if its value is known on the host, else a 0-d tensor in double
            precision.
        square: :math:`\lVert y \rVert^2`, likewise.
    """

    s: list[Tensor]
    y: list[Tensor]
    product: Any
    square: Any

    @property
    def weight(self) -> Any:
        r""":math:`\rho = 1 / \langle y, s \rangle`; zero without curvature."""
        curved = self.product > 0.0
        return where(curved, 1.0 / where(curved, self.product, 1.0), 0.0)

    @property
    def scale(self) -> Any:
        r""":math:`\gamma = \langle y, s \rangle / \lVert y \rVert^2`, the scale of the inverse Hessian; else 1."""
        curved = self.product > 0.0
        return where(curved, self.product, 1.0) / where(curved, self.square, 1.0)


def curvature_pair(s: Sequence[Tensor], y: Sequence[Tensor]) -> CurvaturePair:
    r"""Return a pair with positive curvature unchanged, and replace any other pair by zeros.

    A pair with :math:`\langle y, s \rangle \le \epsilon \lVert y \rVert \lVert s \rVert`, with the machine precision
    :math:`\epsilon`, would make the inverse Hessian indefinite.  Pairs are also replaced if the differences are so
    small that they are dominated by rounding, or that derivatives of :math:`1 / \langle y, s \rangle` overflow.
    """
    refuse_empty_batches()
    wide_s, wide_y = ([_double(_row(x)) for x in xs] for xs in (s, y))
    pairs = (wide_s, wide_y), (wide_s, wide_s), (wide_y, wide_y)
    product, ss, yy = _known(*(inner_product(*pair) for pair in pairs))
    curved = _is_curved(product, ss, yy, s)
    s, y = ([x if curved is True else _kept(x, curved) for x in xs] for xs in (s, y))
    return CurvaturePair(s, y, where(curved, product, 0.0), where(curved, yy, 0.0))


def _is_curved(product: Any, ss: Any, yy: Any, like: Sequence[Tensor]) -> Any:
    kinds = [torch.finfo(widened(x).dtype) for x in like]
    eps, least = max([0.0, *[kind.eps for kind in kinds]]), max([_TINY**0.25, *[kind.tiny for kind in kinds]])
    s_norm, y_norm = (root(x.detach() if isinstance(x, Tensor) else x) for x in (ss, yy))
    curved = (product > eps * s_norm * y_norm) & (product > _TINY**0.5)
    for norm in (s_norm, y_norm):
        curved = curved & (norm > least) & (norm < 1.0 / least)
    return curved


def _kept(x: Tensor, curved: Any) -> Tensor:
    return torch.where(curved.to(x.device), x, 0.0) if isinstance(curved, Tensor) else torch.zeros_like(x)


class Ring:
    """The positions of the pairs in the ring buffers of a memory: the newest pair replaces the oldest.

    Args:
        count: The number of previous steps, an int or a 0-d tensor; under ``vmap``, it can differ between samples.
        size: The number of rows.
    """

    def __init__(self, count: Any, size: int) -> None:
        self.size = size
        known = as_python_scalar(count)
        self.count = None if known is None else int(known)
        self.place: Any = ((count if self.count is None else self.count) - 1) % size
        # The rows written so far, if their number is known; and the oldest of them.
        self.written = size if self.count is None else min(self.count, size)
        self.oldest: Any = 0 if self.written < size else (self.place + 1) % size

    def write(self, memory: Tensor, row: Any, *, inplace: bool = False) -> Tensor:
        """The memory with a new row."""
        row = tensor_like(row, memory) if memory.dim() == 1 else row.to(memory.dtype)
        if isinstance(self.place, Tensor):
            rows = torch.arange(self.size, device=memory.device)
            return torch.where((rows == self.place.to(memory.device)).view(-1, *[1] * row.dim()), row, memory)
        if inplace:
            memory[self.place].copy_(row)
            return memory
        return torch.select_scatter(memory, row, 0, self.place)

    def sorted(self, x: Tensor) -> Tensor:
        """From the order of the rows to that from the oldest to the newest, in all dimensions."""
        return self._rolled(x, self.oldest)

    def unsorted(self, x: Tensor) -> Tensor:
        """Back to the order of the rows."""
        return self._rolled(x, -self.oldest)

    def _rolled(self, x: Tensor, by: Any) -> Tensor:
        if isinstance(by, Tensor):
            order = (torch.arange(self.size, device=x.device) + by.to(x.device)) % self.size
            for dim in range(x.dim()):
                x = x.index_select(dim, order)
            return x
        return torch.roll(x, (-by,) * x.dim(), tuple(range(x.dim()))) if by else x


def remember(memory: Memory, ring: Ring, pair: CurvaturePair, *, inplace: bool = False) -> Memory:
    """The memory with a new pair."""
    s = [ring.write(old, x, inplace=inplace) for old, x in zip(memory.s, pair.s)]
    y = [ring.write(old, x, inplace=inplace) for old, x in zip(memory.y, pair.y)]
    return Memory(s, y, ring.write(memory.weights, pair.weight, inplace=inplace))


def remember_step(
    memory: Memory, ring: Ring, params: _Change, gradients: _Change, *, inplace: bool = False
) -> tuple[Memory, Any]:
    r"""The memory with the pair of a step, and the scale :math:`\gamma`.

    A leaf whose parameters and gradients before the step are zero was not known then: its differences are zero.

    Args:
        memory: The memory before.
        ring: The positions after the step.
        params: The leaves before and after the step.
        gradients: The gradients there.
        inplace: Whether to write into the memory.
    """
    columns: Any = (*params, *gradients)
    if ring.count is not None and _are_plain(*columns, memory.s, memory.y, [memory.weights]):
        s, y = (part if inplace else [x.clone() for x in part] for part in (memory.s, memory.y))
        inner = np.empty(4)
        if kernels.difference((*columns, s, y), ring.size, ring.place, True, inner):
            product, ss, yy, _ = inner.tolist()
            curved = _is_curved(product, ss, yy, params[1])
            for x in () if curved else (*s, *y):
                x[ring.place] = 0.0
            if inplace:
                torch.autograd.graph.increment_version([*s, *y])
            pair = CurvaturePair(s, y, *((product, yy) if curved else (0.0, 0.0)))
            return Memory(s, y, ring.write(memory.weights, pair.weight, inplace=inplace)), pair.scale
    pairs = [_differences(*leaf) for leaf in zip(*columns)]
    pair = curvature_pair([s for s, _ in pairs], [y for _, y in pairs])
    return remember(memory, ring, pair, inplace=inplace), pair.scale


def _differences(last_p: Tensor, p: Tensor, last_g: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    s, y = p - last_p, g - last_g
    seen = settled(last_p.any())
    if seen is not True:
        seen = settled(seen | last_g.any())
    return (s, y) if seen is True else (where(seen, s, torch.zeros_like(s)), where(seen, y, torch.zeros_like(y)))


def _are_plain(*columns: Iterable[Any]) -> bool:
    """Whether no graph and no transform follows tensors, so that kernels may read them."""
    if not runs_directly() or forward_ad._current_level >= 0:
        return False
    return not torch.is_grad_enabled() or not any(getattr(x, 'requires_grad', False) for xs in columns for x in xs)


def first_scale(g: Sequence[Tensor]) -> Tensor:
    r""":math:`\min(1, 1 / \lVert g \rVert)`, which bounds the first step by 1; a constant in derivatives."""
    norm = tree.wide_norm([x.detach() for x in g]).to(torch.float64)
    return 1.0 / norm.clamp(min=1.0)


def inverse_hessian_product(
    g: Sequence[Tensor], memory: Memory, ring: Ring, gamma: Tensor | float = 1.0
) -> list[Tensor]:
    r"""The product :math:`H g`, in five products with matrices of :math:`m` rows, in the dtypes of ``g``.

    The vector is first divided by its largest element, so that no product overflows or underflows.  If rounding errors
    make :math:`\langle g, H g \rangle` nonpositive, the result is :math:`\gamma g`.

    Args:
        g: The vector, usually a gradient.  Negate the product for a descent direction.
        memory: The pairs.
        ring: Their positions.
        gamma: :math:`\gamma`, a positive number or 0-d tensor.

    Example:
        >>> import torch
        >>> from torchopt import quasi_newton
        >>> hessian = torch.tensor([2.0, 5.0])  # its diagonal
        >>> memory = quasi_newton.Memory.like([hessian], 2)
        >>> for count, s in enumerate(torch.eye(2), 1):
        ...     pair = quasi_newton.curvature_pair([s], [hessian * s])
        ...     memory = quasi_newton.remember(memory, quasi_newton.Ring(count, 2), pair)
        >>> quasi_newton.inverse_hessian_product([hessian], memory, quasi_newton.Ring(count, 2))
        [tensor([1., 1.])]
    """
    if ring.count is not None and _are_plain(g, memory.s, memory.y, [memory.weights, gamma]):
        found = [torch.empty_like(x) for x in g]
        if kernels.product((g, memory.s, memory.y, found), memory.weights, ring.place, gamma, True):
            return found
    with without_autocast(x.device.type for x in g):
        rows = [_row(x) for x in g]
        (largest,) = _known(_largest(rows))
        size = where(largest > 0.0, largest, 1.0)
        unit = [x / as_scalar_like(size, x) for x in rows]
        return _descending(unit, scaled_product(unit, memory, ring, gamma), g, gamma * size)


def scaled_product(g: list[Tensor], memory: Memory, ring: Ring, gamma: Any) -> list[Tensor]:
    r"""The product :math:`H g / \gamma` for a list of vectors of real numbers."""
    n = ring.written
    if not n or not g:
        return g
    s, y = ([_row(x[:n], 1) for x in part] for part in (memory.s, memory.y))
    weights = memory.weights[:n]
    inner = ring.sorted(_inner_products(s, y) * weights)
    identity = torch.eye(n, dtype=inner.dtype, device=inner.device)
    # Only the elements above the diagonal are read.
    inverse = ring.unsorted(torch.linalg.solve_triangular(inner, identity, upper=True, unitriangular=True))
    alpha = weights * (inverse @ _times(s, g))
    q = _plus(g, -1, alpha, y)
    return _plus(q, 1, (alpha / gamma - weights * _times(y, q)) @ inverse, s)


def _inner_products(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Those of the rows of some matrices with the rows of others, in double precision."""
    return _sum([_double(a) @ _double(b).mT for pair in zip(x, y) for a, b in _in_blocks(*pair)])


def _in_blocks(*matrices: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Some columns of each at a time, so that those converted to double precision stay in the cache."""
    first = matrices[0]
    if first.shape[1] <= _COLUMNS or first.dtype is torch.float64 or is_tracing():
        return [matrices]
    return zip(*[torch.split(x, _COLUMNS, 1) for x in matrices])


def _times(rows: Sequence[Tensor], vector: Sequence[Tensor]) -> Tensor:
    """The inner products of a vector with the rows."""
    return _sum([a @ x for a, x in zip(rows, vector)])


def _plus(vector: Sequence[Tensor], sign: int, scalars: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """A vector plus or minus the rows times scalars."""
    return [torch.addmv(x, a.mT, scalars.to(x.device, x.dtype), alpha=sign) for x, a in zip(vector, rows)]


def _descending(unit: list[Tensor], r: list[Tensor], g: Sequence[Tensor], factor: Any) -> list[Tensor]:
    """The direction in the dtypes of the gradients; a multiple of the gradient if rounding has lost the descent."""
    squares = (inner_product(x, x).detach() for x in (r, unit))
    slope, r_square, square = _known(inner_product(unit, r), *squares)
    r_norm, norm = root(r_square), root(square)
    eps = max([0.0, *[torch.finfo(x.dtype).eps for x in g]])  # the direction is rounded to their dtypes
    descends = (slope > eps * r_norm * norm) | (norm == 0.0)
    # Clip the length of the direction to the largest number of the dtype.
    longest = min([math.inf, *[torch.finfo(x.dtype).max for x in g]])
    factor = smaller(factor, longest / larger(where(descends, r_norm, norm), _TINY))
    return [
        _like((where(descends, x, u) * as_scalar_like(factor, x)).to(real_dtype(old.dtype)), old)
        for x, u, old in zip(r, unit, g)
    ]


_TINY = torch.finfo(torch.float64).tiny
_COLUMNS = 1 << 13


def inner_product(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of real tensors of one dimension; a 0-d tensor in double precision."""
    return _sum([torch.dot(a, b) for a, b in zip(x, y)])


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """The sum, in double precision, where the first part is."""
    total = _double(parts[0]) if parts else torch.zeros((), dtype=torch.float64)
    for part in parts[1:]:
        total = total + part.to(total)
    return total


def _largest(rows: Sequence[Tensor]) -> Tensor:
    """The largest absolute value, a constant in derivatives; 0 without elements."""
    sizes = [torch.linalg.vector_norm(x.detach(), math.inf) for x in rows if x.numel()]
    return functools.reduce(lambda x, y: torch.maximum(x, y.to(x)), sizes) if sizes else torch.zeros(())


def _known(*values: Tensor) -> list[Any]:
    """Scalars as floats if all of them are known on the host without synchronization and have no graph."""
    read: list[Any] = []
    for x in values:
        read.append(as_python_scalar(x))
        if read[-1] is None:
            return list(values)
    return read


def _double(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.to(torch.float64)


def _row(x: Tensor, lead: int = 0) -> Tensor:
    """The elements as a vector of real numbers, at least in single precision, below ``lead`` leading dimensions."""
    if x.is_complex():
        x = torch.view_as_real(x.resolve_conj())
    if x.dim() != lead + 1:
        x = x.reshape(*x.shape[:lead], math.prod(x.shape[lead:]))
    return widened(x)


def _like(row: Tensor, x: Tensor) -> Tensor:
    """The vector of real numbers in the shape of a tensor, complex if that is."""
    return torch.view_as_complex(row.view(*x.shape, 2)) if x.is_complex() else row.view(x.shape)
