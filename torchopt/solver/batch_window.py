# SPDX-License-Identifier: Apache-2.0
"""The memories of a batch of runs, which the runs write in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from torchopt.columns import beside, dot, from_column
from torchopt.scalars import negated, settled, where
from torchopt.solver.compact import Rows, coefficients, has_curvature, limits_of, longer

__all__ = ['BatchInverse', 'BatchWindow', 'times']

_Array = np.ndarray[Any, Any]


def times(matrices: _Array, vectors: _Array) -> _Array:
    """The products of a batch of matrices with a batch of vectors."""
    return np.matmul(matrices, vectors[:, :, None])[:, :, 0]


class BatchWindow:
    r"""The memory of :class:`~torchopt.solver.compact.Window` for each run of a batch.

    The pairs of a run are the places ``first``, ``first + 1``, ... of a ring; each place is a row and a column of the
    small matrices, whose other rows and columns are zero.

    Args:
        like: The gradients, one in each row.
        size: The largest number of pairs.
        scaled: Whether the newest pair gives :math:`\gamma`.
    """

    def __init__(self, like: _Array, size: int, scaled: bool) -> None:
        runs, length = like.shape
        self.size, self.scaled, self.limits = size, scaled, limits_of(like)
        self.table = np.zeros((runs, 2 * size, length), like.dtype)  # the rows of S, then those of Y
        self.inverses, self.yys = np.zeros((runs, size, size)), np.zeros((runs, size, size))
        self.ds, self.sg, self.yg = (np.zeros((runs, size)) for _ in range(3))
        self.first, self.count = (np.zeros(runs, dtype=np.int64) for _ in range(2))
        self.gamma = np.ones(runs)

    @property
    def is_empty(self) -> Any:
        """Whether there are no pairs and no scale."""
        return self.has_no_pairs & (self.gamma == 1.0)

    @property
    def has_no_pairs(self) -> Any:
        """Whether there are no pairs."""
        return self.count == 0

    def cleared(self, test: Any) -> BatchWindow:
        """The memory itself, without the pairs of the runs for which a test holds."""
        runs = slice(None) if test is True else test
        for x in (self.table, self.inverses, self.yys, self.ds, self.sg, self.yg, self.first, self.count):
            x[runs] = 0
        self.gamma[runs] = 1.0
        return self

    def rows(self) -> Rows:
        """The memory as tensors, apart from this one."""
        places = np.arange(self.size) - (self.size - self.count)[:, None]
        held, places = places >= 0, (self.first[:, None] + places) % max(self.size, 1)
        found = []
        for x in (self.table[:, : self.size], self.table[:, self.size :]):
            found.append(np.where(held[:, :, None], np.take_along_axis(x, places[:, :, None], 1), 0.0))
        ds = np.where(held, np.take_along_axis(self.ds, places, 1), 1.0)
        weights = np.where(held, 1.0 / ds, 0.0)
        s, y, rho, gamma = (from_column(x.astype(self.table.dtype)) for x in (*found, weights, self.gamma))
        return Rows(s, y, rho, gamma, self.scaled)

    def remember(self, x: tuple[Any, Any], gradient: tuple[Any, Any], moved: Any = True) -> BatchWindow:
        """Add the pairs that have positive curvature in place; otherwise drop one."""
        if not self.size:
            return self
        s, y = x[1] - x[0], gradient[1] - gradient[0]
        product, ss, yy = dot(s, y), dot(s, s), dot(y, y)
        curved = has_curvature(product, ss, yy, *self.limits)
        bent = settled(negated(curved) & moved)
        if bent is not False:
            if self.scaled:
                longest = longer(self.gamma, self.is_empty, ss, dot(gradient[0], gradient[0]), self.limits[1])
                self.gamma = where(bent, longest, self.gamma)
            self._drop(np.flatnonzero((self.count > 0) & bent))
        curved = settled(curved & moved)
        if curved is not False:
            self._add(curved, s, y, product)
            if self.scaled:
                self.gamma = where(curved, product / where(curved, yy, 1.0), self.gamma)
        newest = np.stack([gradient[1], y], 1)
        inner = torch.bmm(torch.from_numpy(newest), torch.from_numpy(self.table).mT).double().numpy()
        self.sg, self.yg = inner[:, 0, : self.size], inner[:, 0, self.size :]
        if curved is not False:
            self._connect(curved, inner[:, 1, : self.size], inner[:, 1, self.size :], product)
        return self

    def _drop(self, runs: Any) -> None:
        """Drop the oldest pair of some runs."""
        place = self.first[runs]
        self.table[runs, place] = self.table[runs, self.size + place] = 0.0
        for matrix in (self.inverses, self.yys):
            matrix[runs, place] = matrix[runs, :, place] = 0.0
        self.ds[runs, place] = 0.0
        self.first[runs] = (place + 1) % self.size
        self.count[runs] -= 1

    def _at(self, curved: Any) -> tuple[Any, Any]:
        """The runs with a new pair, and its place."""
        place = (self.first + self.count - 1) % self.size
        if curved is True and (place == place[0]).all():
            return slice(None), int(place[0])
        runs = np.arange(len(place)) if curved is True else np.flatnonzero(curved)
        return runs, place[runs]

    def _add(self, curved: Any, s: Any, y: Any, product: Any) -> None:
        """Write new pairs, over the oldest ones where all places are held."""
        full = (self.count == self.size) & curved
        self.first = np.where(full, (self.first + 1) % self.size, self.first)
        self.count = np.where(full, self.count, self.count + curved)
        runs, place = self._at(curved)
        self.table[runs, place], self.table[runs, self.size + place] = s[runs], y[runs]
        self.ds[runs, place] = product[runs]

    def _connect(self, curved: Any, sy: Any, yy: Any, product: Any) -> None:
        """The rows and columns of new pairs in the small matrices."""
        runs, place = self._at(curved)
        self.inverses[runs, place] = self.inverses[runs, :, place] = 0.0
        column = times(self.inverses, sy)[runs] / -product[runs, None]
        self.inverses[runs, :, place] = column
        self.inverses[runs, place, place] = 1.0 / product[runs]
        self.yys[runs, place] = self.yys[runs, :, place] = yy[runs]

    def product(self, gradient: Any) -> Any:
        """The inverse Hessians times the gradients that were given with the last pairs."""
        scaled = beside(self.gamma, gradient) * gradient
        if not self.size or settled(self.has_no_pairs) is True:
            return scaled
        gamma = self.gamma[:, None]
        u, w = coefficients(self.inverses, self.ds, self.yys, self.sg, self.yg, gamma, times)
        weights = np.concatenate([w, -gamma * u], 1).astype(gradient.dtype, copy=False)
        return scaled + np.matmul(weights[:, None], self.table)[:, 0]


class BatchInverse:
    """The inverse Hessian of each run of a batch, and whether it is still the identity.

    Args:
        like: The gradients, one in each row.
    """

    def __init__(self, like: _Array) -> None:
        runs, length = like.shape
        self.limits = limits_of(like)
        self.matrix = np.tile(np.eye(length, dtype=like.dtype), (runs, 1, 1))
        self.is_identity: Any = np.ones(runs, dtype=np.bool_)

    def cleared(self, test: Any) -> BatchInverse:
        """The memory itself, with the identity for the runs for which a test holds."""
        runs = slice(None) if test is True else test
        self.matrix[runs] = np.eye(self.matrix.shape[1])
        self.is_identity[runs] = True
        return self

    def product(self, gradient: Any) -> Any:
        """The inverse Hessians times the gradients."""
        return times(self.matrix, gradient)

    def remember(self, x: tuple[Any, Any], gradient: tuple[Any, Any], moved: Any) -> BatchInverse:
        """Update the matrices in place where the pairs have positive curvature; otherwise they grow."""
        s, y = x[1] - x[0], gradient[1] - gradient[0]
        product, ss, yy = dot(s, y), dot(s, s), dot(y, y)
        curved = has_curvature(product, ss, yy, *self.limits)
        first = settled(self.is_identity & moved)
        bent = settled(negated(curved) & moved)
        curved = settled(curved & moved)
        if bent is not False or first is not False:
            scale = where(curved & self.is_identity, product / where(curved, yy, 1.0), 1.0)
            if bent is not False:
                largest = self.matrix.diagonal(axis1=1, axis2=2).max(1).astype(np.float64)
                gg = dot(gradient[0], gradient[0])
                scale = where(bent, longer(largest, self.is_identity, ss, gg, self.limits[1]) / largest, scale)
            self.matrix *= beside(scale, self.matrix)
            self.is_identity = self.is_identity & negated(moved)
        if curved is False:
            return self
        rho = beside(1.0 / where(curved, product, 1.0), s)
        s, y = where(curved, s, 0.0), where(curved, y, 0.0)
        by_y = rho * times(self.matrix, y)
        factor = rho * (1.0 + beside(dot(y, by_y), s))
        left, right = np.stack([s, -by_y], 2), np.stack([factor * s - by_y, s], 1)
        torch.from_numpy(self.matrix).baddbmm_(torch.from_numpy(left), torch.from_numpy(right))
        return self

    def tensor(self) -> torch.Tensor:
        """The matrix of a run, apart from this one."""
        return from_column(self.matrix.copy())
