# SPDX-License-Identifier: Apache-2.0
r"""Steps of Newton's method on the optimality conditions, from a point near a solution.

A constraint is active if :math:`A x + y / \rho` lies beyond its bound.  Given which constraints are active, the
optimality conditions are linear:

.. math::
    \begin{pmatrix} Q & A_a^\top \\ A_a & 0 \end{pmatrix} \begin{pmatrix} x \\ y_a \end{pmatrix}
    = \begin{pmatrix} -c \\ b_a \end{pmatrix}, \qquad y = 0 \text{ elsewhere.}

They are solved by refinement: :math:`\delta I` and :math:`-\delta I` on the diagonal make the matrix regular, and with
:math:`y_a` eliminated, :math:`Q + \delta I + A_a^\top A_a / \delta` is positive definite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt.solver.quadratic.admm import Iterate
from torchopt.solver.quadratic.kkt import clip
from torchopt.solver.quadratic.scaling import BoxQP, Scaled, product

_PASSES = 4


def polish(
    scaled: Scaled, original: BoxQP, now: Iterate, rho: Tensor, tol: float, rounds: int
) -> tuple[Iterate, Tensor]:
    """Improve points; where that fails they stay.

    Returns:
        The points, scaled as they were, and their errors in the original problem.
    """
    best = Iterate(*(v.clone() for v in now))
    error = original.error(*scaled.original(*now))
    rows = torch.arange(len(error), device=error.device)
    x, y = now.x, now.y
    for _ in range(rounds):
        x, y = _newton(scaled.qp, x, y, rho)
        z = clip(product(scaled.qp.A, x) + y / rho, scaled.qp.l, scaled.qp.u)
        # Only multipliers that belong to the point z: what is left out shows in the residuals.
        lower, upper = z <= scaled.qp.l, z >= scaled.qp.u
        found = Iterate(x, z, torch.where(lower, y.clamp(max=0.0), 0.0) + torch.where(upper, y.clamp(min=0.0), 0.0))
        found_error = original.error(*scaled.original(*found))
        better = found_error < error[rows]
        error[rows[better]] = found_error[better]
        for into, value in zip(best, found):
            into[rows[better]] = value[better]
        unfinished = (found_error > tol) & found_error.isfinite()
        if not bool(unfinished.any()):
            break
        if not bool(unfinished.all()):
            rows, rho, x, y = (v[unfinished] for v in (rows, rho, x, y))
            original = BoxQP(*(v[unfinished] for v in original))
            scaled = scaled.part(unfinished)
    return best, error


def _newton(qp: BoxQP, x: Tensor, y: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """One step."""
    v = product(qp.A, x) + y / rho
    above, below = (v > qp.u) | (qp.l == qp.u), v < qp.l
    active = above | below
    b = torch.where(above, qp.u, torch.where(below, qp.l, 0.0))
    y, weight = torch.where(active, y, 0.0), active.to(x.dtype)
    delta = torch.finfo(x.dtype).eps ** 0.375
    A = qp.A * weight.unsqueeze(-1)
    K = qp.Q + (A.mT @ A) / delta + torch.diag_embed(torch.full_like(x, delta))
    root, _ = torch.linalg.cholesky_ex(K)
    for _ in range(_PASSES):
        left_x = -qp.c - product(qp.Q, x) - product(A.mT, y)
        left_y = weight * (b - product(A, x))
        dx = torch.cholesky_solve((left_x + product(A.mT, left_y) / delta).unsqueeze(-1), root).squeeze(-1)
        x, y = x + dx, y + (product(A, dx) - left_y) / delta
    return x, y
