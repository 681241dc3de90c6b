# SPDX-License-Identifier: Apache-2.0
r"""The alternating direction method of multipliers for box-constrained quadratic programs.

One step (Stellato and others, 2020), with weights :math:`\rho` of the constraints:

.. math::
    (Q + \sigma I + A^\top \rho A)\, \tilde x &= \sigma x - c + A^\top (\rho z - y) \\
    x^+ &= \alpha \tilde x + (1 - \alpha)\, x, \qquad \hat z = \alpha A \tilde x + (1 - \alpha)\, z \\
    z^+ &= \operatorname{clip}(\hat z + y / \rho,\, l,\, u), \qquad y^+ = y + \rho\, (\hat z - z^+)

All tensors may have batch dimensions in front.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.solver.quadratic.kkt import clip
from torchopt.solver.quadratic.scaling import BoxQP, product
from torchopt.solver.status import Status

_EQUATION_WEIGHT = 1e3
"""How much larger the weight of an equation is than that of an inequality."""


class Settings(NamedTuple):
    """The options of a run, all of them numbers."""

    sigma: float
    momentum: float
    rho_start: float
    rho_min: float
    rho_max: float
    primal_infeasible_tol: float
    dual_infeasible_tol: float
    tol: float
    maxiter: int
    rho_every: int
    check_every: int
    check_infeasible: bool


class Iterate(NamedTuple):
    """The scaled variables."""

    x: Tensor
    z: Tensor
    y: Tensor


class Factor(NamedTuple):
    """The matrix of the linear systems of a step, factored: the inverse if it is small, its triangular root if not.

    ``sigma`` is what was added to its diagonal.
    """

    root: Tensor
    rho: Tensor
    sigma: Tensor

    def solve(self, b: Tensor) -> Tensor:
        """Solve a system."""
        if self.root.shape[-1] <= _SMALL:
            return product(self.root, b)
        return torch.cholesky_solve(b.unsqueeze(-1), self.root).squeeze(-1)


_SMALL = 64


def factorize(qp: BoxQP, rho_bar: Tensor, settings: Settings) -> Factor:
    """Choose the weight of each constraint, and factor the matrix of the linear systems."""
    rho = rho_bar.unsqueeze(-1).expand_as(qp.l)
    free = qp.l.isneginf() & qp.u.isposinf()
    rho = torch.where(qp.l == qp.u, _EQUATION_WEIGHT * rho, torch.where(free, settings.rho_min, rho))
    K = qp.Q + qp.A.mT @ (rho.unsqueeze(-1) * qp.A)
    diagonal = K.diagonal(dim1=-2, dim2=-1)
    # At least so much that the factorization succeeds in spite of rounding.
    least = 4.0 * torch.finfo(K.dtype).eps * diagonal.amax(-1, keepdim=True) * K.shape[-1] ** 0.5
    sigma = settings.sigma + least
    K = K + torch.diag_embed(sigma.expand_as(diagonal))
    root, failed = torch.linalg.cholesky_ex(K)
    root = torch.where((failed > 0)[..., None, None], torch.nan, root)
    return Factor(torch.cholesky_inverse(root) if root.shape[-1] <= _SMALL else root, rho, sigma)


def step(qp: BoxQP, factor: Factor, now: Iterate, settings: Settings) -> Iterate:
    """One step."""
    x, z, y = now
    rho, alpha = factor.rho, settings.momentum
    guess = factor.solve(factor.sigma * x - qp.c + product(qp.A.mT, rho * z - y))
    relaxed = z + alpha * (product(qp.A, guess) - z)
    new_z = clip(relaxed + y / rho, qp.l, qp.u)
    return Iterate(x + alpha * (guess - x), new_z, y + rho * (relaxed - new_z))


def better_rho(qp: BoxQP, now: Iterate, rho_bar: Tensor, settings: Settings) -> Tensor:
    """The weight that would balance the primal and the dual residual, each relative to its terms."""
    x, z, y = now
    Ax, Qx, Aty = product(qp.A, x), product(qp.Q, x), product(qp.A.mT, y)
    tiny = torch.finfo(x.dtype).tiny ** 0.5
    primal = _size(Ax - z) / (torch.maximum(_size(Ax), _size(z)) + tiny)
    dual = _size(Qx + qp.c + Aty) / (torch.maximum(torch.maximum(_size(Qx), _size(Aty)), _size(qp.c)) + tiny)
    ratio = ((primal + tiny) / (dual + tiny)).sqrt()
    return (rho_bar * ratio).clamp(settings.rho_min, settings.rho_max)


def with_certificates(
    qp: BoxQP, now: tuple[Tensor, Tensor], change: tuple[Tensor, Tensor], status: Any, settings: Settings
) -> Tensor:
    """The status, where a run that goes on has a proof that it cannot end well.

    ``now`` and ``change`` are the variables and the multipliers, and by how much the last step changed them.
    """
    (x, y), (dx, dy) = now, change
    infeasible = _is_infeasible(qp, x, dy, settings.primal_infeasible_tol)
    unbounded = _is_unbounded(qp, x, y, dx, settings.dual_infeasible_tol)
    proof = torch.where(unbounded, int(Status.UNBOUNDED), int(Status.RUNNING))
    proof = torch.where(infeasible, int(Status.INFEASIBLE), proof)
    return torch.where(torch.as_tensor(status, device=x.device) == int(Status.RUNNING), proof, status)


def _is_infeasible(qp: BoxQP, x: Tensor, dy: Tensor, tolerance: float) -> Tensor:
    r"""Whether the change of the multipliers proves that no point near is feasible.

    For every feasible :math:`x`, :math:`\langle \delta, A x \rangle \le s` with
    :math:`s = \langle u, \delta^+ \rangle + \langle l, \delta^- \rangle`.  If :math:`s < 0`, then
    :math:`\|x\|_1 \ge -s / \|A^\top \delta\|_\infty`.  So there is no feasible point whose norm is below this bound;
    it must be ``1 / tolerance`` times that of the current point, and at least ``1 / tolerance``.
    """
    up, down = torch.relu(dy), -torch.relu(-dy)
    # A change against a bound that does not exist is rounding, unless it is as large as the others.
    noise = 1e-10 * _size(dy).unsqueeze(-1)
    impossible = ((up > noise) & qp.u.isposinf()) | ((down < -noise) & qp.l.isneginf())
    support = torch.where(qp.u.isposinf(), 0.0, qp.u * up) + torch.where(qp.l.isneginf(), 0.0, qp.l * down)
    excess = -support.sum(-1)
    rounding = 1e2 * torch.finfo(x.dtype).eps * support.abs().sum(-1)
    radius = x.abs().sum(-1).clamp(min=1.0) / tolerance
    return (excess > rounding) & (excess > radius * _size(_beyond_rounding(qp.A.mT, dy))) & ~impossible.any(-1)


def _is_unbounded(qp: BoxQP, x: Tensor, y: Tensor, dx: Tensor, tolerance: float) -> Tensor:
    r"""Whether the change of the variables is a direction of descent without end.

    For multipliers :math:`y` and a point :math:`x` with :math:`Q x + c + A^\top y = 0`,
    :math:`-\langle c, \delta \rangle = \langle x, Q \delta \rangle + \langle y, A \delta \rangle`, where the last term
    is at most :math:`\|y\|_1` times the distance of :math:`A \delta` from the directions that stay within the bounds.
    So these are beyond a bound, which must be ``1 / tolerance`` times their current norm.
    """
    along = _beyond_rounding(qp.A, dx)
    leaves = torch.where(qp.u.isposinf(), 0.0, torch.relu(along))
    leaves = leaves + torch.where(qp.l.isneginf(), 0.0, torch.relu(-along))
    descent = -(qp.c * dx).sum(-1)
    rounding = 1e2 * torch.finfo(x.dtype).eps * (qp.c * dx).abs().sum(-1)
    bent = _size(_beyond_rounding(qp.Q, dx))
    radius = torch.maximum(x.abs().sum(-1), y.abs().sum(-1)).clamp(min=1.0) / tolerance
    return (descent > rounding) & (descent > radius * torch.maximum(bent, _size(leaves)))


def _beyond_rounding(M: Tensor, v: Tensor) -> Tensor:
    """A product with a matrix, less what may be rounding of the matrix, the vector and the sums."""
    found = product(M, v)
    noise = 2.0 * v.shape[-1] ** 0.5 * torch.finfo(v.dtype).eps * product(M.abs(), v.abs())
    return found - torch.minimum(torch.maximum(found, -noise), noise)


def _size(v: Tensor) -> Tensor:
    return v.abs().amax(-1)
