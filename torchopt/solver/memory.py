# SPDX-License-Identifier: Apache-2.0
"""The memories of L-BFGS: the last pairs of differences, and products with the inverse Hessian that they define.

The matrix is that of :mod:`torchopt.quasi_newton`.  :class:`Rows` holds tensors, for runs that are differentiated,
batched or compiled, and is the specification; :class:`Window` holds arrays, which a run or a batch of runs writes in
place.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from torchopt import quasi_newton
from torchopt._C import quasi_newton as kernels
from torchopt.columns import dot, from_column, to_column
from torchopt.dtypes import widened
from torchopt.levels import is_readable
from torchopt.scalars import negated, pick, root, settled, smaller, where

_Array = np.ndarray[Any, Any]
_GROWTH = 4.0
"""The factor of the scale of the inverse Hessian after a step without positive curvature."""


def longer(scale: Any, is_identity: Any, ss: Any, gg: Any, tiny: float) -> Any:
    """The scale of the inverse Hessian after a step without positive curvature.

    ``ss`` and ``gg`` are the squared lengths of the step and of the gradient before it; the step alone tells the scale
    if the inverse Hessian was the identity.  ``tiny`` is the smallest number of their dtype.
    """
    if settled(is_identity) is not False:
        of_step = root(ss / where(gg > 0.0, gg, 1.0))
        scale = where(is_identity & (of_step > 0.0), of_step, scale)
    return smaller(_GROWTH * scale, tiny**-0.5)  # the square does not overflow


Pair = tuple[Tensor, Tensor]
"""A vector before a step, and after it."""


class Memory(Protocol):
    """The last pairs, and products with the inverse Hessian that they define."""

    @property
    def is_empty(self) -> Any:
        """Whether there are no pairs and no scale, so that the inverse Hessian is the identity."""

    @property
    def has_no_pairs(self) -> Any:
        """Whether there are no pairs, so that the inverse Hessian is a multiple of the identity."""

    def remember(self, x: Pair, gradient: Pair, moved: Any = True) -> Memory:
        """Add the differences of parameters and gradients before and after a step, if they have positive curvature.

        Otherwise the objective bends downward along the step, and its minimum is farther away than the memory says: the
        oldest pair is dropped, and the scale grows.  If there was no step, the memory stays as it is.
        """

    def product(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times the gradient."""

    def cleared(self, test: Any) -> Memory:
        """The memory without pairs, if a test holds."""

    def rows(self) -> Rows:
        """The memory as tensors."""


def is_curved(product: Any, ss: Any, yy: Any, dtype: torch.dtype) -> Any:
    r"""Whether :math:`s^\mathsf{T} y > \epsilon \lVert s \rVert \lVert y \rVert`: the matrix stays definite."""
    info = torch.finfo(dtype)
    return has_curvature(product, ss, yy, info.eps, info.tiny)


def has_curvature(product: Any, ss: Any, yy: Any, eps: float, tiny: float) -> Any:
    """:func:`is_curved` with the precision and the smallest number of the dtype."""
    size = ss * yy
    return (product > tiny) & (size > 0.0) & (product * product > eps**2 * size)


def limits_of(like: _Array) -> tuple[float, float]:
    """The relative precision and the smallest number of a dtype."""
    info = np.finfo(like.dtype)
    return float(info.eps), float(info.tiny)


class Rows(NamedTuple):
    r"""The memory as tensors, for batches and derivatives.

    Attributes:
        s: :math:`S`, whose first rows are zero as long as there are few pairs.
        y: :math:`Y`.
        weights: One over the inner product of each pair, zero where there is none.
        gamma: :math:`\gamma`.
        scaled: Whether the newest pair gives :math:`\gamma`.
    """

    s: Tensor
    y: Tensor
    weights: Tensor
    gamma: Any
    scaled: bool

    @classmethod
    def empty(cls, like: Tensor, size: int, scaled: bool) -> Rows:
        """A memory without pairs for vectors like this one."""
        zeros = like.new_zeros(size, len(like))
        return cls(zeros, zeros, like.new_zeros(size), 1.0, scaled)

    @property
    def is_empty(self) -> Any:
        """Whether there are no pairs and no scale."""
        return self.has_no_pairs & (self.gamma == 1.0)

    @property
    def has_no_pairs(self) -> Any:
        """Whether there are no pairs."""
        return (self.weights == 0).all()

    def cleared(self, test: Any) -> Rows:
        """The memory without pairs, if a test holds."""
        s, y, weights = (torch.zeros_like(x) for x in self[:3])
        return pick(test, Rows(s, y, weights, 1.0, self.scaled), self)

    def rows(self) -> Rows:
        """The memory itself."""
        return self

    def of_multiple(self, unit: Any) -> Rows:
        """The memory for the objective times a number; None for one."""
        if unit is None:
            return self
        return self._replace(y=unit * self.y, weights=self.weights / unit, gamma=self.gamma / unit)

    def remember(self, x: Pair, gradient: Pair, moved: Any = True) -> Rows:
        """The memory with one more pair, if that has positive curvature; otherwise with one less."""
        if not len(self.weights):
            return self
        return pick(moved, self._after(x, gradient), self)

    def _after(self, x: Pair, gradient: Pair) -> Rows:
        s, y = x[1] - x[0], gradient[1] - gradient[0]
        product, ss, yy = s @ y, s @ s, y @ y
        curved = settled(is_curved(product, ss, yy, s.dtype))
        scale: Any = 1.0
        if self.scaled and curved is not True:
            gg = gradient[0] @ gradient[0]
            scale = longer(self.gamma, self.is_empty, ss, gg, torch.finfo(s.dtype).tiny)
        if curved is False:
            older = self._with_one_less()
            return Rows(older[0], older[1], older[2], scale, self.scaled)
        weight, gamma = 1.0 / where(curved, product, 1.0), where(curved, product, 1.0) / where(curved, yy, 1.0)
        kept = [torch.cat([old[1:], row[None]]) for old, row in zip(self[:3], (s, y, weight))]
        if curved is not True:
            kept = [torch.where(curved, more, less) for more, less in zip(kept, self._with_one_less())]
        return Rows(kept[0], kept[1], kept[2], where(curved, gamma, scale) if self.scaled else 1.0, self.scaled)

    def _with_one_less(self) -> list[Tensor]:
        """Pairs and weights without the oldest pair."""
        present = self.weights != 0
        newer = present & (present.cumsum(0) > 1)
        return [torch.where(newer[:, None] if old.dim() == 2 else newer, old, 0.0) for old in self[:3]]

    def product(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times the gradient."""
        if not len(self.weights):
            return gradient
        if not is_readable(gradient):
            return self._product_by_recursion(gradient)
        size = len(self.weights)
        memory, ring = quasi_newton.Memory([self.s], [self.y], self.weights), quasi_newton.Ring(size, size)
        (scaled,) = quasi_newton.scaled_product([widened(gradient)], memory, ring, self.gamma)
        return (self.gamma * scaled).to(gradient.dtype)

    def _product_by_recursion(self, g: Tensor) -> Tensor:
        """The same by the two-loop recursion: in a batch, many small matrices cost more than many vectors."""
        pairs = list(zip(self.s, self.y, self.weights))
        alphas = []
        for s, y, weight in reversed(pairs):
            alphas.append(weight * (s * g).sum())
            g = torch.addcmul(g, y, alphas[-1], value=-1.0)
        g = self.gamma * g
        for (s, y, weight), alpha in zip(pairs, reversed(alphas)):
            g = torch.addcmul(g, s, alpha - weight * (y * g).sum())
        return g


def difference(x: tuple[Any, Any], gradient: tuple[Any, Any], s: _Array, y: _Array, place: Any, inner: _Array) -> Any:
    r"""Write the differences of a step into rings of pairs, one ring for each run of a batch.

    Args:
        x: The parameters before and after the step.
        gradient: The gradients there.
        s: The rings of the differences of parameters, of shape ``(*batch, size, n)``.
        y: The rings of the differences of gradients.
        place: The rows to write; if negative, nothing is written.
        inner: Memory for the result.

    Returns:
        The inner products :math:`\langle y, s \rangle, \lVert s \rVert^2, \lVert y \rVert^2` and that of the gradient
        before the step: floats, or columns.
    """
    size = s.shape[-2]
    if not kernels.difference(
        ((x[0],), (x[1],), (gradient[0],), (gradient[1],), (s,), (y,)), size, place, False, inner
    ):
        new_s, new_y = x[1] - x[0], gradient[1] - gradient[0]
        rows, runs = _rows_at(place >= 0, place)
        s[rows], y[rows] = new_s[runs], new_y[runs]
        pairs = (new_y, new_s), (new_s, new_s), (new_y, new_y), (gradient[0], gradient[0])
        inner[:] = [dot(a, b) if a.ndim == 2 else dot(a[None], b[None])[0] for a, b in pairs]
    return inner if inner.ndim == 2 else inner.tolist()


def _rows_at(test: Any, place: Any) -> tuple[Any, Any]:
    """The index of a row in each ring for which a test holds, and that of these runs."""
    if not isinstance(test, np.ndarray):
        return place, ...
    runs = np.flatnonzero(test)
    return (runs, place[runs]), runs


class Window:
    r"""The memory of a run, or of each run of a batch, in rings of arrays that are written in place.

    The pairs are the rows ``newest``, ``newest - 1``, ...; rows that hold no pair have the weight zero.

    Args:
        like: A vector like those of the run; of a batch, one in each row.
        size: The largest number of pairs.
        scaled: Whether the newest pair gives :math:`\gamma`.
    """

    def __init__(self, like: _Array, size: int, scaled: bool) -> None:
        batch = like.shape[:-1]
        self.size, self.scaled, self.limits = size, scaled, limits_of(like)
        self.s, self.y = (np.zeros((*batch, size, like.shape[-1]), like.dtype) for _ in range(2))
        self.weights, self.inner = np.zeros((*batch, size)), np.empty((4, *batch))
        # The row of the newest pair, the number of pairs, and the scale: numbers, or columns.
        self.newest: Any = np.full(batch, size - 1) if batch else size - 1
        self.count: Any = np.full(batch, 0) if batch else 0
        self.gamma: Any = np.ones(batch) if batch else 1.0

    @classmethod
    def of(cls, rows: Rows, gradient: _Array) -> Window:
        """The memory with the pairs of another one, whose last row is the newest."""
        memory = cls(gradient, len(rows.weights), rows.scaled)
        memory.s[:], memory.y[:], memory.weights[:] = (x.numpy(force=True) for x in rows[:3])
        held = np.flatnonzero(memory.weights)
        memory.count = memory.size - int(held[0]) if len(held) else 0
        memory.gamma = float(rows.gamma)
        return memory

    @property
    def is_empty(self) -> Any:
        """Whether there are no pairs and no scale."""
        return self.has_no_pairs & (self.gamma == 1.0)

    @property
    def has_no_pairs(self) -> Any:
        """Whether there are no pairs."""
        return self.count == 0

    def cleared(self, test: Any) -> Window:
        """The memory itself, without its pairs where a test holds."""
        test = np.broadcast_to(test, self.count.shape) if isinstance(self.count, np.ndarray) else bool(test)
        self.weights[test] = 0.0
        self.count, self.gamma = where(test, 0, self.count), where(test, 1.0, self.gamma)
        return self

    def rows(self) -> Rows:
        """The memory as tensors, apart from this one."""
        order = (np.asarray(self.newest)[..., None] + np.arange(1, self.size + 1)) % max(self.size, 1)
        weights = np.take_along_axis(self.weights, order, -1)
        held = (weights != 0.0)[..., None]
        arrays = [np.where(held, np.take_along_axis(x, order[..., None], -2), 0.0) for x in (self.s, self.y)]
        dtype, batched = self.s.dtype, isinstance(self.gamma, np.ndarray)
        s, y, rho = (self._tensor(x.astype(dtype, copy=False)) for x in (*arrays, weights))
        return Rows(s, y, rho, self._tensor(self.gamma.astype(dtype)) if batched else self.gamma, self.scaled)

    def _tensor(self, x: _Array) -> Tensor:
        """An array as the tensor of a run."""
        return from_column(x) if isinstance(self.gamma, np.ndarray) else torch.from_numpy(x)

    def remember(self, x: tuple[Any, Any], gradient: tuple[Any, Any], moved: Any = True) -> Window:
        """Add the pairs that have positive curvature in place; otherwise drop one."""
        if not self.size or moved is False:
            return self
        place = where(moved, (self.newest + 1) % self.size, -1)
        product, ss, yy, gg = difference(x, gradient, self.s, self.y, place, self.inner)
        curved = has_curvature(product, ss, yy, *self.limits) & moved
        bent = negated(curved) & moved
        if settled(bent) is not False:
            # Where all rows held pairs, the new differences have replaced the oldest.
            rows, _ = _rows_at(bent, (self.newest - self.count + 1) % self.size)
            if self.scaled:
                self.gamma = where(bent, longer(self.gamma, self.is_empty, ss, gg, self.limits[1]), self.gamma)
            self.weights[rows] = 0.0
            self.count = where(bent & (self.count > 0), self.count - 1, self.count)
        if settled(curved) is not False:
            weight = 1.0 / where(curved, product, 1.0)
            rows, runs = _rows_at(curved, place)
            self.weights[rows] = weight[runs] if isinstance(weight, np.ndarray) else weight
            self.newest = where(curved, place, self.newest)
            self.count = where(curved & (self.count < self.size), self.count + 1, self.count)
            if self.scaled:
                self.gamma = where(curved, product / where(curved, yy, 1.0), self.gamma)
        return self

    def product(self, gradient: Any) -> Any:
        """The inverse Hessian times the gradient."""
        found = np.empty_like(gradient)
        columns = (gradient,), (self.s,), (self.y,), (found,)
        if not self.size or kernels.product(columns, self.weights, self.newest, self.gamma, False):
            return found if self.size else gradient
        product = self.rows().product(self._tensor(gradient))
        return to_column(product, len(gradient)) if isinstance(self.gamma, np.ndarray) else product.numpy()
