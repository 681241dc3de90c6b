# SPDX-License-Identifier: Apache-2.0
r"""Limited-memory quasi-Newton matrices in compact form: a multiple of the identity and a low-rank matrix.

The last pairs :math:`s_i, y_i` are the rows of :math:`S` and :math:`Y`, from the oldest to the newest.  With the upper
triangle :math:`R` of :math:`S Y^\mathsf{T}`, its diagonal :math:`D`, and a scale :math:`\gamma`, the inverse Hessian is

.. math::
    H g = \gamma g + S^\mathsf{T} w - \gamma Y^\mathsf{T} u, \qquad
    u = R^{-1} S g, \qquad
    w = R^{-\mathsf{T}} \left( D u + \gamma (Y Y^\mathsf{T} u - Y g) \right).

It is the matrix of the two-loop recursion, in four products with matrices instead of :math:`4 m` with vectors.

References:
    Byrd, Nocedal and Schnabel, `Representations of quasi-Newton matrices and their use in limited memory methods
    <https://doi.org/10.1007/BF01582063>`_, 1994.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from torchopt.scalars import where

__all__ = ['Memory', 'Pair', 'Rows', 'Window', 'is_curved']


Pair = tuple[Tensor, Tensor]
"""A vector before a step, and after it."""


class Memory(Protocol):
    """The last pairs, and products with the inverse Hessian that they define."""

    @property
    def is_empty(self) -> Any:
        """Whether there are no pairs, so that the inverse Hessian is the identity."""

    def remember(self, x: Pair, gradient: Pair) -> Memory:
        """Add the differences of parameters and gradients before and after a step, if they have positive curvature."""

    def product(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times the gradient."""

    def cleared(self) -> Memory:
        """The memory without pairs."""

    def rows(self) -> Rows:
        """The memory as tensors."""


def is_curved(product: Any, ss: Any, yy: Any, dtype: torch.dtype) -> Any:
    r"""Whether :math:`s^\mathsf{T} y > \epsilon \lVert s \rVert \lVert y \rVert`: the matrix stays definite."""
    info = torch.finfo(dtype)
    positive = product > info.tiny
    size = where(positive, ss, 1.0) * where(positive, yy, 1.0)
    return positive & (size > 0.0) & (product * product > info.eps**2 * size)


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
        """Whether there are no pairs."""
        return (self.weights == 0).all()

    def cleared(self) -> Rows:
        """The memory without pairs."""
        s, y, weights = (torch.zeros_like(x) for x in self[:3])
        return Rows(s, y, weights, 1.0, self.scaled)

    def rows(self) -> Rows:
        """The memory itself."""
        return self

    def remember(self, x: Pair, gradient: Pair) -> Rows:
        """The memory with one more pair, if that has positive curvature."""
        if not len(self.weights):
            return self
        s, y = x[1] - x[0], gradient[1] - gradient[0]
        product, ss, yy = s @ y, s @ s, y @ y
        curved = is_curved(product, ss, yy, s.dtype)
        weight, gamma = 1.0 / where(curved, product, 1.0), where(curved, product, 1.0) / where(curved, yy, 1.0)
        new = (torch.cat([old[1:], row[None]]) for old, row in zip(self[:3], (s, y, weight)))
        kept = [torch.where(curved, x, old) for x, old in zip(new, self[:3])]
        return Rows(kept[0], kept[1], kept[2], where(curved, gamma, self.gamma) if self.scaled else 1.0, self.scaled)

    def product(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times the gradient."""
        if not len(self.weights):
            return gradient
        g, (s, y) = gradient, self[:2]
        sy = s @ y.mT
        d = torch.diagonal(sy)
        # Rows of zeros have no part in the product, but the triangle must be regular.
        upper = torch.triu(sy) + torch.diag_embed(torch.where(self.weights == 0, 1.0, 0.0).to(sy.dtype))
        inverse = torch.linalg.solve_triangular(upper, torch.eye(len(d), dtype=d.dtype, device=d.device), upper=True)
        u, w = coefficients(inverse, d, y @ y.mT, s @ g, y @ g, self.gamma)
        return self.gamma * g + w @ s - self.gamma * (u @ y)


def coefficients(inverse: Any, d: Any, yy: Any, sg: Any, yg: Any, gamma: Any) -> tuple[Any, Any]:
    """The vectors ``u`` and ``w`` of the product, as tensors or arrays; ``inverse`` is that of the triangle."""
    u = inverse @ sg
    return u, (d * u + gamma * (yy @ u - yg)) @ inverse


def _array(x: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return (x if x.dtype == torch.float64 and x.is_cpu else x.double().cpu()).numpy()


class Window:
    """The memory of a run that is neither batched nor differentiated, written in place.

    The pairs are a window of matrices with twice as many rows, which moves down by a row with each pair, and back to
    the top at the end.  The small matrices are arrays in double precision, updated by a row and a column: the inverse
    of the triangle needs no solution of a system.
    """

    def __init__(self, like: Tensor, size: int, scaled: bool) -> None:
        self.size, self.scaled, self.gamma = size, scaled, 1.0
        self.s, self.y = like.new_empty(2 * size, len(like)), like.new_empty(2 * size, len(like))
        self.dtype, self.device = like.dtype, like.device
        self._clear()

    def _clear(self) -> None:
        self.first = self.count = 0
        self.gamma = 1.0
        self.inverse, self.yy, self.d = np.zeros((0, 0)), np.zeros((0, 0)), np.zeros(0)
        self.sg, self.yg = np.zeros(0), np.zeros(0)

    @classmethod
    def of(cls, rows: Rows, gradient: Tensor) -> Window:
        """The memory with the pairs of another one; ``gradient`` is the one of the next product."""
        memory = cls(gradient, len(rows.weights), rows.scaled)
        for s, y, weight in zip(rows.s, rows.y, rows.weights.tolist()):
            if weight:
                memory.remember((torch.zeros_like(s), s), (gradient - y, gradient))
        return memory

    @property
    def is_empty(self) -> bool:
        """Whether there are no pairs."""
        return self.count == 0

    def cleared(self) -> Window:
        """The memory itself, without its pairs."""
        self._clear()
        return self

    def rows(self) -> Rows:
        """The memory as tensors, apart from this one."""
        s, y = (x.new_zeros(self.size, x.shape[1]) for x in (self.s, self.y))
        weights, start = s.new_zeros(self.size), self.size - self.count
        if self.count:
            s[start:], y[start:] = self._window(self.s), self._window(self.y)
            weights[start:] = torch.from_numpy(1.0 / self.d)
        return Rows(s, y, weights, self.gamma, self.scaled)

    def _window(self, x: Tensor, more: int = 0) -> Tensor:
        return x[self.first : self.first + self.count + more]

    def remember(self, x: Pair, gradient: Pair) -> Window:
        """Add a pair in place, if it has positive curvature."""
        if not self.size:
            return self
        if self.first == self.size:
            self.s[: self.size], self.y[: self.size] = self._window(self.s), self._window(self.y)
            self.first = 0
        end = self.first + self.count
        s = torch.sub(x[1], x[0], out=self.s[end])
        y = torch.sub(gradient[1], gradient[0], out=self.y[end])
        both = torch.stack((y, gradient[1])).T
        sy_sg, yy_yg = _array(self._window(self.s, 1) @ both), _array(self._window(self.y, 1) @ both)
        product, square = float(sy_sg[-1, 0]), float(yy_yg[-1, 0])
        if not is_curved(product, float(s @ s), square, self.dtype):
            self.sg, self.yg = sy_sg[:-1, 1], yy_yg[:-1, 1]
            return self
        drop = int(self.count == self.size)
        self.first, self.count = self.first + drop, self.count + 1 - drop
        k = self.count - 1
        inverse, yy, d = np.zeros((k + 1, k + 1)), np.empty((k + 1, k + 1)), np.empty(k + 1)
        inverse[:k, :k] = self.inverse[drop:, drop:]
        inverse[:k, k] = inverse[:k, :k] @ sy_sg[drop:-1, 0] / -product
        inverse[k, k] = 1.0 / product
        yy[:k, :k] = self.yy[drop:, drop:]
        yy[:, k] = yy[k] = yy_yg[drop:, 0]
        d[:k], d[k] = self.d[drop:], product
        self.inverse, self.yy, self.d, self.sg, self.yg = inverse, yy, d, sy_sg[drop:, 1], yy_yg[drop:, 1]
        if self.scaled:
            self.gamma = product / square
        return self

    def product(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times the gradient that was given with the last pair."""
        if not self.count:
            return gradient
        u, w = coefficients(self.inverse, self.d, self.yy, self.sg, self.yg, self.gamma)
        u, w = (torch.from_numpy(x).to(self.device, self.dtype) for x in (u, w))
        h = torch.addmv(gradient, self._window(self.s).T, w, beta=self.gamma)
        return h.addmv_(self._window(self.y).T, u, alpha=-self.gamma)
