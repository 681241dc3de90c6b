# SPDX-License-Identifier: Apache-2.0
r"""A primal-dual interior-point method, for problems on which steps of splitting converge slowly.

With slacks :math:`s_l, s_u > 0`, multipliers :math:`\lambda_l, \lambda_u > 0` and
:math:`y = \lambda_u - \lambda_l`, Newton's method is applied to

.. math::
    Q x + c + A^\top y = 0, \qquad A x - l = s_l, \quad u - A x = s_u, \qquad s_l \lambda_l = s_u \lambda_u = \mu.

Slacks and their multipliers are eliminated.  With :math:`W = \lambda_l / s_l + \lambda_u / s_u` this leaves

.. math::
    \begin{pmatrix} Q & A^\top \\ A & -W^{-1} \end{pmatrix}
    \begin{pmatrix} \Delta x \\ \Delta y \end{pmatrix} = r,

where :math:`W^{-1} = 0` for equations.  Directions and step sizes are those of Mehrotra (1992).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.solver.quadratic.admm import Iterate
from torchopt.solver.quadratic.kkt import clip
from torchopt.solver.quadratic.scaling import BoxQP, Scaled, product

_STEPS = 80
"""The largest number of steps."""
_PASSES = 2
"""How often a solution of a linear system is refined."""
_LARGEST = 1e4
"""The largest multipliers to start with."""
_FARTHEST = 1e12
"""Bounds beyond this are none, as far as the method goes."""


class _Point(NamedTuple):
    x: Tensor
    y: Tensor
    lower: Tensor
    upper: Tensor
    slack_lower: Tensor
    slack_upper: Tensor


def interior_point(scaled: Scaled, original: BoxQP, now: Iterate, tol: float) -> Iterate:
    """Solve problems that have a solution to an error of ``tol``; the points of the others are of no use.

    Only the variables of the start count.  The results are scaled, with multipliers in the normal cone of the bounds.
    """
    qp = scaled.qp
    sides = _Sides(qp)
    point = sides.start(now.x)
    best, least = now, torch.full_like(qp.c[..., 0], torch.inf)
    stuck = torch.zeros_like(least)
    for _ in range(_STEPS):
        point = sides.step(point)
        found = Iterate(*_feasible(qp, point.x, point.y))
        error = original.error(*scaled.original(*found)).nan_to_num(nan=torch.inf)
        better = error < least
        stuck = torch.where(error < 0.9 * least, 0.0, stuck + 1.0)
        best = Iterate(*(torch.where(better.unsqueeze(-1), a, b) for a, b in zip(found, best)))
        least = torch.where(better, error, least)
        if bool(((least <= 0.1 * tol) | (stuck > 20)).all()):
            break
    return best


def _feasible(qp: BoxQP, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A point within the bounds for multipliers that are not negligible, which keep it at their bounds."""
    Ax = product(qp.A, x)
    z = clip(Ax + y, qp.l, qp.u)
    return x, z, torch.where(z <= qp.l, y.clamp(max=0.0), 0.0) + torch.where(z >= qp.u, y.clamp(min=0.0), 0.0)


class _Sides:
    """The constraints of a problem by their kind, and a step."""

    def __init__(self, qp: BoxQP) -> None:
        self.qp = qp
        self.equal = qp.l == qp.u
        self.has_lower, self.has_upper = ((v.abs() < _FARTHEST) & ~self.equal for v in (qp.l, qp.u))
        self.l, self.u = (torch.where(v.isfinite(), v, 0.0) for v in (qp.l, qp.u))
        self.count = (self.has_lower.sum(-1) + self.has_upper.sum(-1)).clamp(min=1)
        self.delta = torch.finfo(qp.c.dtype).eps ** 0.5

    def start(self, x: Tensor) -> _Point:
        """The least-squares solution of all constraints, with slacks and multipliers far from zero."""
        qp = self.qp
        z = clip(product(qp.A, x), qp.l, qp.u)
        ones = torch.ones_like(z)
        x, y = self._solver(ones)(-qp.c, z)
        Ax = product(qp.A, x)

        def shifted(values: Tensor, exists: Tensor) -> Tensor:
            lowest = torch.where(exists, values, torch.inf).amin(-1, keepdim=True)
            return torch.where(exists, values + (1.0 - lowest).clamp(min=0.0), 1.0)

        slack_lower, slack_upper = shifted(Ax - self.l, self.has_lower), shifted(self.u - Ax, self.has_upper)
        y = y.clamp(-_LARGEST, _LARGEST)
        lower, upper = shifted(-y, self.has_lower), shifted(y, self.has_upper)
        lower, upper = torch.where(self.has_lower, lower, 0.0), torch.where(self.has_upper, upper, 0.0)
        return _Point(x, torch.where(self.equal, y, upper - lower), lower, upper, slack_lower, slack_upper)

    def step(self, p: _Point) -> _Point:
        """A predictor and a corrector, with the same matrix."""
        qp = self.qp
        of_l, of_u = p.lower / p.slack_lower, p.upper / p.slack_upper
        weight = of_l + of_u
        # 1 / weight, but for equations next to nothing, and for constraints without bounds more than anything.
        solve = self._solver(torch.where(self.equal, self.delta, 1.0 / weight.clamp(min=1e-20)))
        Ax = product(qp.A, p.x)
        dual = product(qp.Q, p.x) + qp.c + product(qp.A.mT, p.y)
        left_l = torch.where(self.has_lower, Ax - self.l - p.slack_lower, 0.0)
        left_u = torch.where(self.has_upper, self.u - Ax - p.slack_upper, 0.0)
        # The change of y is a constant and `weight` times that of A x.
        shift = of_l * left_l - of_u * left_u - p.y

        def direction(target: Any, bend_l: Any, bend_u: Any) -> _Point:
            next_l = torch.where(self.has_lower, (target - bend_l) / p.slack_lower, 0.0)
            next_u = torch.where(self.has_upper, (target - bend_u) / p.slack_upper, 0.0)
            constant = (shift + next_u - next_l) / weight.clamp(min=1e-20)
            dx, dy = solve(-dual, torch.where(self.equal, self.u - Ax, -constant))
            along = product(qp.A, dx)
            d_l = torch.where(self.has_lower, along + left_l, 0.0)
            d_u = torch.where(self.has_upper, left_u - along, 0.0)
            return _Point(dx, dy, next_l - p.lower - of_l * d_l, next_u - p.upper - of_u * d_u, d_l, d_u)

        ahead = direction(0.0, 0.0, 0.0)
        mu, size = self._gap(p), self._longest(p, ahead)
        expected = self._gap(_Point(*(a + size * b for a, b in zip(p, ahead))))
        center = (mu * (expected / mu.clamp(min=1e-300)).clamp(0.0, 1.0) ** 3).unsqueeze(-1)
        d = direction(center, ahead.slack_lower * ahead.lower, ahead.slack_upper * ahead.upper)
        size = 0.99 * self._longest(p, d)
        moved = _Point(*(a + size * b for a, b in zip(p, d)))
        # Far below every tolerance, but not so small that products underflow.
        return _Point(moved.x, moved.y, *(torch.where(v == 0, v, v.clamp(min=1e-40)) for v in moved[2:]))

    def _solver(self, lower: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Solve ``Q x + A' y = a, A x - lower y = b``; of equations, ``lower`` stands in for zero."""
        Q, A, n = self.qp.Q, self.qp.A, self.qp.c.shape[-1]
        corner = torch.diag_embed(-torch.where(self.equal, 0.0, lower))
        K = torch.cat([torch.cat([Q, A.mT], -1), torch.cat([A, corner], -1)], -2)
        shift = torch.cat([torch.full_like(self.qp.c, self.delta), torch.where(self.equal, -lower, 0.0)], -1)
        factors, pivots, _ = torch.linalg.ldl_factor_ex(K + torch.diag_embed(shift))

        def solve(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            right = torch.cat([a, b], -1).unsqueeze(-1)
            found = torch.linalg.ldl_solve(factors, pivots, right)
            for _ in range(_PASSES):
                found = found + torch.linalg.ldl_solve(factors, pivots, right - K @ found)
            found = found.squeeze(-1)
            return found[..., :n], found[..., n:]

        return solve

    def _gap(self, p: _Point) -> Tensor:
        """The mean of the products of slacks and multipliers."""
        return ((p.lower * p.slack_lower).sum(-1) + (p.upper * p.slack_upper).sum(-1)) / self.count

    def _longest(self, p: _Point, d: _Point) -> Tensor:
        """How far all slacks and multipliers stay positive."""
        size = torch.ones_like(p.x[..., :1])
        for value, change in zip(p[2:], d[2:]):
            ratio = torch.where(change < 0, -value / change, torch.inf).amin(-1, keepdim=True)
            size = torch.minimum(size, ratio)
        return size
