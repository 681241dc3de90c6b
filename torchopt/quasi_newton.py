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

References:
    Nocedal and Wright, `Numerical optimization <https://doi.org/10.1007/978-0-387-40065-5>`_, algorithm 7.4, 2006.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import tree
from torchopt.dtypes import real_dtype, widened
from torchopt.numerics import as_python_scalar, as_scalar_like

__all__ = [
    'CurvaturePair',
    'Memory',
    'Ring',
    'curvature_pair',
    'first_scale',
    'inner_product',
    'inverse_hessian_product',
    'remember',
]


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
        product: :math:`\langle y, s \rangle`, a 0-d tensor in double precision.
        square: :math:`\lVert y \rVert^2`, likewise.
    """

    s: list[Tensor]
    y: list[Tensor]
    product: Tensor
    square: Tensor

    @property
    def weight(self) -> Tensor:
        r""":math:`\rho = 1 / \langle y, s \rangle`; zero without curvature."""
        curved = self.product > 0
        return torch.where(curved, 1.0 / torch.where(curved, self.product, 1.0), 0.0)

    @property
    def scale(self) -> Tensor:
        r""":math:`\gamma = \langle y, s \rangle / \lVert y \rVert^2`, the scale of the inverse Hessian; else 1."""
        curved = self.product > 0
        return torch.where(curved, self.product, 1.0) / torch.where(curved, self.square, 1.0)


def curvature_pair(s: Sequence[Tensor], y: Sequence[Tensor]) -> CurvaturePair:
    r"""Return a pair with positive curvature unchanged, and replace any other pair by zeros.

    A pair with :math:`\langle y, s \rangle \le \epsilon \lVert y \rVert \lVert s \rVert`, with the machine precision
    :math:`\epsilon`, would make the inverse Hessian indefinite.  Pairs are also replaced if the differences are so
    small that they are dominated by rounding, or that derivatives of :math:`1 / \langle y, s \rangle` overflow.
    """
    wide = [[_row(x).to(torch.complex128 if x.is_complex() else torch.float64) for x in xs] for xs in (s, y)]
    product, ss, yy = inner_product(*wide), inner_product(wide[0], wide[0]), inner_product(wide[1], wide[1])
    kinds = [torch.finfo(widened(x).dtype) for x in s]
    eps, least = max([0.0, *[kind.eps for kind in kinds]]), max([_TINY**0.25, *[kind.tiny for kind in kinds]])
    s_norm, y_norm = ss.detach().sqrt(), yy.detach().sqrt()
    curved = (product > eps * s_norm * y_norm) & (product > _TINY**0.5)
    for norm in (s_norm, y_norm):
        curved = curved & (norm > least) & (norm < 1.0 / least)
    s, y = ([torch.where(curved.to(x.device), x, 0.0) for x in xs] for xs in (s, y))
    return CurvaturePair(s, y, torch.where(curved, product, 0.0), torch.where(curved, yy, 0.0))


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
        self.place: Any = (count - 1) % size if self.count is None else (self.count - 1) % size

    def write(self, memory: Tensor, row: Tensor, *, inplace: bool = False) -> Tensor:
        """The memory with a new row."""
        row = row.to(memory.dtype)
        if isinstance(self.place, Tensor):
            rows = torch.arange(self.size, device=memory.device)
            return torch.where((rows == self.place.to(memory.device)).view(-1, *[1] * row.dim()), row, memory)
        if inplace:
            memory[self.place].copy_(row)
            return memory
        return torch.select_scatter(memory, row, 0, self.place)

    def read(self, memories: Sequence[Tensor]) -> list[list[Tensor]]:
        """The rows of the memories from the oldest to the newest; if the count is known, only those written so far."""
        first = 0 if self.count is None else max(0, self.size - self.count)
        order = [(self.place + 1 + i) % self.size for i in range(first, self.size)]
        if isinstance(self.place, Tensor):
            columns = [[x.index_select(0, k.to(x.device).reshape(1)).squeeze(0) for k in order] for x in memories]
        else:
            every = [x.unbind() for x in memories]
            columns = [[rows[k] for k in order] for rows in every]
        return [list(row) for row in zip(*columns)] if memories else [[] for _ in order]


def remember(memory: Memory, ring: Ring, pair: CurvaturePair, *, inplace: bool = False) -> Memory:
    """The memory with a new pair."""
    s = [ring.write(old, x, inplace=inplace) for old, x in zip(memory.s, pair.s)]
    y = [ring.write(old, x, inplace=inplace) for old, x in zip(memory.y, pair.y)]
    return Memory(s, y, ring.write(memory.weights, pair.weight.to(memory.weights), inplace=inplace))


def first_scale(g: Sequence[Tensor]) -> Tensor:
    r""":math:`\min(1, 1 / \lVert g \rVert)`, which bounds the first step by 1; a constant in derivatives."""
    norm = tree.wide_norm([x.detach() for x in g]).to(torch.float64)
    return 1.0 / norm.clamp(min=1.0)


def inverse_hessian_product(
    g: Sequence[Tensor], memory: Memory, ring: Ring, gamma: Tensor | float = 1.0
) -> list[Tensor]:
    r"""The product :math:`H g`, in :math:`4 m` vector operations for :math:`m` pairs, in the dtypes of ``g``.

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
    gamma = as_scalar_like(gamma, memory.weights)
    size = tree.norm(list(g), ord=math.inf).detach().to(memory.weights)
    size = torch.where(size > 0, size, 1.0)
    unit = [x / as_scalar_like(size, x) for x in map(_row, g)]
    rows = [ring.read([x.reshape(ring.size, x[0].numel()) for x in part]) for part in (memory.s, memory.y)]
    product = _two_loops(unit, list(zip(*rows, ring.read([memory.weights]))), gamma)
    return _descending(unit, product, g, gamma * size)


def _two_loops(
    g: list[Tensor], pairs: list[tuple[list[Tensor], list[Tensor], list[Tensor]]], gamma: Any
) -> list[Tensor]:
    r"""The product of the inverse Hessian with a vector, divided by :math:`\gamma`.

    Applied to :math:`q`, one step of the recursion above is

    .. math::
        \alpha = \rho \langle s, q \rangle, \qquad q' = q - \alpha y, \qquad r' = H q', \qquad
        \beta = \rho \langle y, r' \rangle, \qquad r = r' + (\alpha - \beta) s,

    so all :math:`q` are computed from the newest pair to the oldest, and then all :math:`r` from the oldest to the
    newest.
    """
    alphas = []
    for s, y, (weight,) in reversed(pairs):
        alpha = weight * inner_product(s, g)
        g = [_add(q, alpha, x, -1) for q, x in zip(g, y)]
        alphas.append(alpha)
    if alphas:
        alphas = list((torch.stack(alphas) / gamma).unbind())
    for (s, y, (weight,)), alpha in zip(pairs, reversed(alphas)):
        scalar = alpha - weight * inner_product(y, g)
        g = [_add(r, scalar, x, 1) for r, x in zip(g, s)]
    return g


def _descending(unit: list[Tensor], r: list[Tensor], g: Sequence[Tensor], factor: Any) -> list[Tensor]:
    """The direction in the dtypes of the gradients; a multiple of the gradient if rounding has lost the descent."""
    r_norm, norm = (inner_product(x, x).detach().sqrt() for x in (r, unit))
    eps = max([0.0, *[torch.finfo(x.dtype).eps for x in unit]])
    descends = (inner_product(unit, r) > eps * r_norm * norm) | (norm == 0)
    # Clip the length of the direction to the largest number of the dtype.
    longest = min([math.inf, *[torch.finfo(x.dtype).max for x in g]])
    factor = torch.minimum(factor, longest / torch.where(descends, r_norm, norm).to(factor))
    return [
        (torch.where(descends.to(x.device), x, u) * as_scalar_like(factor, x)).to(old.dtype).view(old.shape)
        for x, u, old in zip(r, unit, g)
    ]


_FUSED = (torch.float32, torch.float64)
_TINY = torch.finfo(torch.float64).tiny


def _row(x: Tensor) -> Tensor:
    """The elements as a vector, at least in single precision."""
    return widened(x.reshape(-1))


def inner_product(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """The real inner product of two vectors whose tensors have one dimension; most of the work of a step."""
    products = [
        torch.dot(a, b) if a.dtype is b.dtype and a.dtype in _FUSED else (a.conj() * b).sum().real for a, b in zip(x, y)
    ]
    return sum((part.to(products[0].device) for part in products[1:]), products[0]) if products else torch.zeros(())


def _add(x: Tensor, scalar: Tensor, y: Tensor, sign: int) -> Tensor:
    scalar = scalar.to(x.device, real_dtype(x.dtype))
    if x.dtype in _FUSED:
        return torch.addcmul(x, y.to(x.dtype), scalar, value=sign)
    return x + sign * scalar * y.to(x.dtype)
