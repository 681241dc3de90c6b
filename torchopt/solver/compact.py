# SPDX-License-Identifier: Apache-2.0
r"""Limited-memory quasi-Newton matrices in compact form: a multiple of the identity and a low-rank matrix.

The last pairs :math:`s_i, y_i` are the rows of :math:`S` and :math:`Y`, from the oldest to the newest.  With the upper
triangle :math:`R` of :math:`S Y^\mathsf{T}`, its diagonal :math:`D`, and a scale :math:`\gamma`, the inverse Hessian is

.. math::
    H g = \gamma g + S^\mathsf{T} w - \gamma Y^\mathsf{T} u, \qquad
    u = R^{-1} S g, \qquad
    w = R^{-\mathsf{T}} \left( D u + \gamma (Y Y^\mathsf{T} u - Y g) \right).

It is the matrix of :mod:`torchopt.quasi_newton`, for memories that keep the small matrices from step to step, and only
change one row and one column of them.  :class:`Rows`, which remembers vectors only, uses the formula of that module; in
batches of small problems, the recursion.

References:
    Byrd, Nocedal and Schnabel, `Representations of quasi-Newton matrices and their use in limited memory methods
    <https://doi.org/10.1007/BF01582063>`_, 1994.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from torchopt import quasi_newton
from torchopt.dtypes import widened
from torchopt.levels import is_readable
from torchopt.scalars import pick, root, settled, smaller, where

__all__ = ['Memory', 'Pair', 'Rows', 'Window', 'coefficients', 'has_curvature', 'is_curved', 'limits_of', 'longer']

_GROWTH = 4.0
"""The factor of the scale of the inverse Hessian after a step without positive curvature."""


def longer(scale: Any, is_identity: Any, ss: Any, gg: Any, tiny: float) -> Any:
    """The scale of the inverse Hessian after a step without positive curvature.

    Args:
        scale: The scale before it.
        is_identity: Whether the inverse Hessian was the identity, so that the step alone tells the scale.
        ss: The squared length of the step.
        gg: That of the gradient before it.
        tiny: The smallest number of their dtype.
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
    positive = product > tiny
    size = where(positive, ss, 1.0) * where(positive, yy, 1.0)
    return positive & (size > 0.0) & (product * product > eps**2 * size)


def limits_of(like: Any) -> tuple[float, float]:
    """The relative precision and the smallest number of a dtype."""
    info: Any = torch.finfo(like.dtype) if isinstance(like, Tensor) else np.finfo(like.dtype)
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


def coefficients(
    inverse: Any, d: Any, yy: Any, sg: Any, yg: Any, gamma: Any, times: Callable[[Any, Any], Any] = np.matmul
) -> tuple[Any, Any]:
    r"""The vectors ``u`` and ``w`` of the product.

    Args:
        inverse: The inverse of the triangle :math:`R`.
        d: The diagonal of :math:`D`.
        yy: The matrix :math:`Y Y^\mathsf{T}`.
        sg: The vector :math:`S g`.
        yg: The vector :math:`Y g`.
        gamma: The scale :math:`\gamma`.
        times: The product of a matrix with a vector, or of a batch of them.
    """
    u = times(inverse, sg)
    return u, times(inverse.swapaxes(-1, -2), d * u + gamma * (times(yy, u) - yg))


class Window:
    r"""The memory of a run that is neither batched nor differentiated, written in place.

    Pairs are neighbouring rows of one matrix, ``s`` before ``y``, and the gradient of the next product is the row below
    the newest pair, so that one product of matrices gives all inner products with the last three.  The pairs are a
    window of the matrix, which moves down with each of them, and back to the top at the end.  So are the small
    matrices, in double precision; each pair adds a row and a column, so that the inverse of the triangle needs no
    solution.

    Args:
        like: A vector like those of the run: a tensor, or an array.
        size: The largest number of pairs.
        scaled: Whether the newest pair gives :math:`\gamma`.
    """

    def __init__(self, like: Any, size: int, scaled: bool) -> None:
        self.size, self.scaled, self.gamma = size, scaled, 1.0
        shape, self.limits = (4 * size + 1, len(like)), limits_of(like)
        if isinstance(like, Tensor):
            self.table: Any = like.new_empty(shape)
            self.subtract: Callable[..., Any] = torch.sub
        else:
            self.table, self.subtract = np.empty(shape, like.dtype), np.subtract
        self.inverses, self.yys, self.ds = (
            np.zeros((2 * size, 2 * size)),
            np.empty((2 * size, 2 * size)),
            np.empty(2 * size),
        )
        self.sg = self.yg = self.ds
        self._clear()

    def _clear(self) -> None:
        self.first = self.count = 0
        self.gamma = 1.0

    @classmethod
    def of(cls, rows: Rows, gradient: Any) -> Window:
        """The memory with the pairs of another one; ``gradient`` is the one of the next product."""
        memory = cls(gradient, len(rows.weights), rows.scaled)
        for s, y, weight in zip(rows.s, rows.y, rows.weights.tolist()):
            if weight:
                s, y = (s, y) if isinstance(gradient, Tensor) else (s.numpy(), y.numpy())
                memory.remember((0.0 * s, s), (gradient - y, gradient))
        return memory

    @property
    def is_empty(self) -> bool:
        """Whether there are no pairs and no scale."""
        return self.has_no_pairs and self.gamma == 1.0

    @property
    def has_no_pairs(self) -> bool:
        """Whether there are no pairs."""
        return self.count == 0

    def cleared(self, test: Any) -> Window:
        """The memory itself, without its pairs if a test holds."""
        if test:
            self._clear()
        return self

    def rows(self) -> Rows:
        """The memory as tensors, apart from this one."""
        pairs = torch.as_tensor(self._window())
        s, y = (pairs.new_zeros(self.size, pairs.shape[1]) for _ in range(2))
        weights, start = s.new_zeros(self.size), self.size - self.count
        if self.count:
            s[start:], y[start:] = pairs[::2], pairs[1::2]
            weights[start:] = torch.from_numpy(1.0 / self.ds[self.held])
        return Rows(s, y, weights, self.gamma, self.scaled)

    @property
    def held(self) -> slice:
        """The places of the pairs in the small matrices."""
        return slice(self.first, self.first + self.count)

    def _window(self) -> Any:
        return self.table[2 * self.first : 2 * (self.first + self.count)]

    def remember(self, x: tuple[Any, Any], gradient: tuple[Any, Any], moved: Any = True) -> Window:
        """Add a pair in place, if it has positive curvature; otherwise drop one."""
        if not self.size or not moved:
            return self
        if self.first >= self.size:
            self.table[: 2 * self.count] = self._window()
            moved = slice(0, self.count)
            for matrix in (self.inverses, self.yys):
                matrix[moved, moved] = matrix[self.held, self.held]
            self.ds[moved] = self.ds[self.held]
            self.first = 0
        begin, end = 2 * self.first, 2 * (self.first + self.count)
        newest = self.table[end : end + 3]
        self.subtract(x[1], x[0], out=newest[0])
        self.subtract(gradient[1], gradient[0], out=newest[1])
        newest[2] = gradient[1]
        # The columns: inner products of each s and y with the new s, the new y, and the gradient.
        inner = _array(self.table[begin : end + 2] @ newest.T)
        of_s, of_y = inner[::2], inner[1::2]
        product, square = float(inner[-1, 0]), float(inner[-1, 1])
        ss = float(inner[-2, 0])
        if not has_curvature(product, ss, square, *self.limits):
            if self.scaled:
                gg = float(gradient[0] @ gradient[0])
                self.gamma = float(longer(self.gamma, self.is_empty, ss, gg, self.limits[1]))
            drop = int(self.count > 0)
            self.first, self.count = self.first + drop, self.count - drop
            self.sg, self.yg = of_s[drop:-1, 2], of_y[drop:-1, 2]
            return self
        drop = int(self.count == self.size)
        self.first, self.count = self.first + drop, self.count - drop
        old, new = self.held, self.first + self.count
        self.count += 1
        # The inverse of the triangle with one more row, of zeros before the diagonal, and one more column.
        self.inverses[old, new] = self.inverses[old, old] @ of_s[drop:-1, 1] / -product
        self.inverses[new, new] = 1.0 / product
        self.yys[self.held, new] = self.yys[new, self.held] = of_y[drop:, 1]
        self.ds[new] = product
        self.sg, self.yg = of_s[drop:, 2], of_y[drop:, 2]
        if self.scaled:
            self.gamma = product / square
        return self

    def product(self, gradient: Any) -> Any:
        """The inverse Hessian times the gradient that was given with the last pair."""
        if not self.count:
            return gradient if self.gamma == 1.0 else self.gamma * gradient
        held = self.held
        matrices = self.inverses[held, held], self.ds[held], self.yys[held, held]
        u, w = coefficients(*matrices, self.sg, self.yg, self.gamma)
        weights = np.empty((self.count, 2))
        weights[:, 0], weights[:, 1] = w, -self.gamma * u
        flat = weights.ravel()
        if isinstance(gradient, Tensor):
            return torch.addmv(gradient, self._window().T, torch.from_numpy(flat).to(gradient), beta=self.gamma)
        return self.gamma * gradient + flat.astype(gradient.dtype, copy=False) @ self._window()


def _array(x: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A tensor or an array in double precision on the host."""
    if isinstance(x, Tensor):
        x = x.double().cpu().numpy()
    return x.astype(np.float64, copy=False)
