# SPDX-License-Identifier: Apache-2.0
r"""Optimality conditions of quadratic programs, as equations with as many unknowns.

The complementarity of a multiplier :math:`\lambda \ge 0` and a constraint :math:`s \le 0` is written
:math:`\min(\lambda, -s) = 0`, not :math:`\lambda s = 0`.  So its Jacobian is that of the active constraints, which is
regular wherever the solution is unique.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from torchopt.linear_solve import solve_lu, solve_normal_cg
from torchopt.solver.quadratic.scaling import BoxQP, product


def clip(z: Tensor, l: Tensor, u: Tensor) -> Tensor:
    """The nearest point of a box."""
    return torch.minimum(torch.maximum(z, l), u)


def box_residual(point: tuple[Tensor, Tensor], *data: Tensor) -> tuple[Tensor, Tensor]:
    r"""Zero at the solution and the multipliers of a :class:`BoxQP`.

    .. math:: Q x + c + A^\top y = 0, \qquad A x = \operatorname{clip}(A x + y,\, l,\, u)
    """
    x, y = point
    qp = BoxQP(*data)
    Ax = product(qp.A, x)
    # Of an equation, each bound takes half: the sides of a tie would not tell.
    nearest = torch.where(qp.l == qp.u, 0.5 * (qp.l + qp.u), clip(Ax + y, qp.l, qp.u))
    return product(qp.Q, x) + qp.c + product(qp.A.mT, y), Ax - nearest


def inequality_residual(excess: Tensor, multipliers: Tensor) -> Tensor:
    r"""Zero where a constraint ``excess <= 0`` and its multiplier ``>= 0`` are complementary."""
    return multipliers - torch.relu(multipliers + excess)


def solve_kkt(matvec: Any, b: Any) -> Any:
    """Solve a linear system of optimality conditions; of many solutions, find one of least norm."""
    try:
        return solve_lu(matvec, b)
    except LinAlgError:  # multipliers that are not unique, or a solution that is not
        return solve_normal_cg(matvec, b)
