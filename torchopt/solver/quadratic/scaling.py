# SPDX-License-Identifier: Apache-2.0
"""Box-constrained quadratic programs as matrices, and their equilibration.

All tensors may have batch dimensions in front, the same for all.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchopt.levels import is_readable


class BoxQP(NamedTuple):
    r"""The problem of minimizing :math:`\tfrac12 x^\top Q x + c^\top x` subject to :math:`l \le A x \le u`."""

    Q: Tensor
    c: Tensor
    A: Tensor
    l: Tensor
    u: Tensor

    def residuals(self, x: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""The residuals :math:`A x - z` and :math:`Q x + c + A^\top y`."""
        return product(self.A, x) - z, product(self.Q, x) + self.c + product(self.A.mT, y)

    def error(self, x: Tensor, z: Tensor, y: Tensor) -> Tensor:
        r"""The largest residual: primal, dual, or the gap between the objectives.

        Let :math:`z` lie within its bounds, with :math:`y` in their normal cone there.  The gap is
        :math:`x^\top Q x + c^\top x + y^\top z`, less than what rounding makes of its terms.
        """
        primal, dual = self.residuals(x, z, y)
        terms = torch.stack([(product(self.Q, x) * x).sum(-1), (self.c * x).sum(-1), (y * z).sum(-1)], -1)
        rounding = 10.0 * torch.finfo(x.dtype).eps * terms.abs().sum(-1)
        gap = torch.relu(terms.sum(-1).abs() - rounding)
        return torch.maximum(gap, torch.maximum(primal.abs().amax(-1), dual.abs().amax(-1)))


class Scaled(NamedTuple):
    """A problem in variables for which its matrices have rows and columns of about size one.

    Attributes:
        qp: The scaled problem.
        D: The original variables are ``D`` times the scaled ones.
        E: The scaled constraints are ``E`` times the original ones.
        cost: The scaled objective is ``cost`` times the original one.
    """

    qp: BoxQP
    D: Tensor
    E: Tensor
    cost: Tensor

    def of(self, qp: BoxQP) -> Scaled:
        """Another problem, or the same with its derivatives, scaled by the same factors."""
        Q, c, A, l, u = qp
        D, E = self.D, self.E
        cost = self.cost.unsqueeze(-1)
        return self._replace(
            qp=BoxQP(
                cost.unsqueeze(-1) * Q * D.unsqueeze(-1) * D.unsqueeze(-2),
                cost * c * D,
                A * E.unsqueeze(-1) * D.unsqueeze(-2),
                l * E,
                u * E,
            )
        )

    def part(self, rows: Tensor) -> Scaled:
        """Some of the problems of a batch."""
        return Scaled(BoxQP(*(v[rows] for v in self.qp)), *(v[rows] for v in self[1:]))

    def original(self, x: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The original variables."""
        return self.D * x, z / self.E, self.E * y / self.cost.unsqueeze(-1)

    def scaled(self, x: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scaled variables."""
        return x / self.D, z * self.E, self.cost.unsqueeze(-1) * y / self.E


def product(M: Tensor, v: Tensor) -> Tensor:
    """Matrices times vectors."""
    if M.ndim == 2:
        return M @ v
    if M.ndim == 3 and len(M) == 1:
        return (M[0] @ v[0]).unsqueeze(0)
    return (M @ v.unsqueeze(-1)).squeeze(-1)


def equilibrate(qp: BoxQP, rounds: int = 10) -> Scaled:
    """Scale rows and columns of the matrix of optimality conditions until their largest elements are near one.

    This is the method of Ruiz (2001) as Stellato and others (2020) use it, with the objective scaled too.
    """
    Q, c, A, l, u = qp
    D, E = torch.ones_like(c), torch.ones_like(l)
    cost = torch.ones_like(c[..., 0])
    for _ in range(rounds):
        columns = torch.maximum(_largest(Q), _largest(A))
        d, e = _factor(columns), _factor(_largest(A.mT))
        Q, c, A = Q * d.unsqueeze(-1) * d.unsqueeze(-2), c * d, A * e.unsqueeze(-1) * d.unsqueeze(-2)
        size = torch.maximum(_largest(Q).mean(-1), c.abs().amax(-1))
        k = _factor(size).square()
        Q, c = Q * k[..., None, None], c * k[..., None]
        D, E, cost = D * d, E * e, cost * k
        if is_readable(d) and bool(_is_even(d) & _is_even(e)):
            break
    return Scaled(BoxQP(Q, c, A, l * E, u * E), D, E, cost)


def _largest(M: Tensor) -> Tensor:
    """The largest absolute value of each column."""
    return M.abs().amax(-2)


def _is_even(factors: Tensor) -> Tensor:
    """Whether factors would hardly change anything."""
    return ((factors > 0.8) & (factors < 1.25)).all()


def _factor(size: Tensor) -> Tensor:
    """What a row and a column of a size are multiplied by; nothing where there is next to nothing."""
    return torch.where(size > 1e-4, size, torch.where(size > 1e-30, size.clamp(min=1e-8), 1.0)).rsqrt()
