# SPDX-License-Identifier: Apache-2.0
r"""The linear least-squares problems in the steps of the nonlinear ones.

A damped step is :math:`y = -(J^\top J + \mu I)^{-1} J^\top z`, which is also the solution of

.. math::
    \min_y \left\| \begin{pmatrix} J \\ \sqrt\mu I \end{pmatrix} y + \begin{pmatrix} z \\ 0 \end{pmatrix} \right\|.

The second form does not square the condition number; QR solves it.  A system that cannot be solved gives NaN, and the
step is rejected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt.dtypes import widened

Solve = Callable[[Tensor], Tensor]


Factor = Callable[[Tensor, Any, Any], Solve]


def _in_single(factor: Factor) -> Factor:
    """Factor half precision in float32, for torch has no factorization of it."""

    def wide(jac: Tensor, jtj: Any, mu: Any) -> Solve:
        solve = factor(widened(jac), jtj, mu)
        return lambda z: solve(widened(z)).to(z.dtype)

    return wide


def by_qr(jac: Tensor, jtj: Any, mu: Any) -> Solve:
    """Solve by a QR factorization of the Jacobian over the root of the damping factor."""
    rows, n = jac.shape
    eye = torch.eye(n, dtype=jac.dtype, device=jac.device)
    root = torch.as_tensor(mu, dtype=jac.dtype, device=jac.device).sqrt()
    Q, R = torch.linalg.qr(torch.cat([jac, root * eye]))
    return lambda z: torch.linalg.solve_triangular(R, -(Q[:rows].mT @ z)[:, None], upper=True)[:, 0]


def squared(jac: Tensor) -> Tensor:
    r""":math:`J^\top J`, at least in single precision."""
    jac = widened(jac)
    return jac.mT @ jac


def _damped(jtj: Tensor, mu: Any) -> Tensor:
    return jtj + mu * torch.eye(len(jtj), dtype=jtj.dtype, device=jtj.device)


def by_cholesky(jac: Tensor, jtj: Tensor, mu: Any) -> Solve:
    """Solve the normal equations by a Cholesky factorization."""
    factor, info = torch.linalg.cholesky_ex(_damped(jtj, mu))
    factor = torch.where(info == 0, factor, torch.nan)
    return lambda z: torch.cholesky_solve(-(jac.mT @ z)[:, None], factor)[:, 0]


def by_lu(jac: Tensor, jtj: Tensor, mu: Any) -> Solve:
    """Solve the normal equations by an LU factorization."""
    matrix = _damped(jtj, mu)

    def solve(z: Tensor) -> Tensor:
        y, info = torch.linalg.solve_ex(matrix, -(jac.mT @ z))
        return torch.where(info == 0, y, torch.nan)

    return solve


def by_inverse(jac: Tensor, jtj: Tensor, mu: Any) -> Solve:
    """Solve the normal equations by the inverse of the matrix."""
    inverse, info = torch.linalg.inv_ex(_damped(jtj, mu))
    inverse = torch.where(info == 0, inverse, torch.nan)
    return lambda z: -(inverse @ (jac.mT @ z))


FACTORIZATIONS: dict[str, Factor] = {
    'cholesky': _in_single(by_cholesky),
    'lu': _in_single(by_lu),
    'qr': _in_single(by_qr),
    'inv': _in_single(by_inverse),
}
"""``FACTORIZATIONS[name](jac, jtj, mu)`` factors once, and returns a function from ``z`` to ``y``.

``jtj`` is :func:`squared` of ``jac``; QR does not need it.
"""


def least_norm(jac: Tensor, z: Tensor) -> Tensor:
    r"""The shortest solution of :math:`\min_y \|J y - z\|`; singular values at the level of rounding count as zero."""
    if jac.numel() == 0:
        return jac.new_zeros(jac.shape[1])
    dtype, jac, z = jac.dtype, widened(jac), widened(z)
    # A decomposition of values that are not finite would raise; the result is NaN all the same.
    finite = torch.isfinite(jac).all()
    U, S, Vh = torch.linalg.svd(torch.where(finite, jac, 0.0), full_matrices=False)
    kept = S / S[0] > max(jac.shape) * torch.finfo(jac.dtype).eps
    weights = torch.where(kept, (U.mT @ z) / torch.where(kept, S, 1.0), 0.0)
    return torch.where(finite, Vh.mT @ weights, torch.nan).to(dtype)
