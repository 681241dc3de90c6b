# SPDX-License-Identifier: Apache-2.0
"""Krylov methods for matrices that need not be symmetric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchopt.linear_solve.cg import Improvement, IterativeOptions, stopping_rule
from torchopt.linear_solve.problem import Problem, Scalar, can_improve, divide, inner, norm, step_size
from torchopt.linear_solve.solve import configurable, solve_with


@dataclass(frozen=True)
class BiCGStab(IterativeOptions):
    r"""The stabilized biconjugate gradient method (van der Vorst, 1992), preconditioned from the right.

    An iteration takes a step of biconjugate gradients, :math:`s = r - \alpha A M p`, and one that minimizes the
    residual along :math:`M s`: :math:`r \gets s - \omega A M s`.
    """

    name: str = 'solve_bicgstab'
    symmetric: bool = False

    def improve(self, problem: Problem, r: Tensor, size: Scalar, limit: Scalar, steps: int) -> Improvement:
        """Alternate both steps, starting from the residual."""
        shadow = p = r
        x, rho, k = torch.zeros_like(r), size * size, 0
        while k < steps:
            along_p = problem.precondition(p)
            v = problem.matvec(along_p).clone()  # a function may return the same buffer each time
            alpha = step_size(rho, inner(shadow, v), size, limit)
            x, s = _add_scaled(x, along_p, alpha), _add_scaled(r, v, -alpha)
            along_s = problem.precondition(s)
            t = problem.matvec(along_s)
            omega = step_size(inner(t, s), inner(t, t), size, limit)
            x, r = _add_scaled(x, along_s, omega), _add_scaled(s, t, -omega)
            size = norm(r)
            k += 1
            if not can_improve(size, limit, alpha, omega):
                break
            before, rho = rho, inner(shadow, r)
            beta = divide(rho, before) * divide(alpha, omega)
            p = _add_scaled(r, _add_scaled(p, v, -omega), beta)
        return Improvement(x, size, k, k)


def _add_scaled(x: Tensor, y: Tensor, by: Scalar) -> Tensor:
    """``x + by * y``."""
    return torch.addcmul(x, y, by) if isinstance(by, Tensor) else torch.add(x, y, alpha=by)


@dataclass(frozen=True)
class GMRES(IterativeOptions):
    r"""The generalized minimal residual method, restarted (Saad and Schultz, 1986), preconditioned from the right.

    Arnoldi's method builds an orthonormal basis :math:`V` of the Krylov space with :math:`A M V_k = V_{k+1} H_k`.
    :math:`x + M V_k y` has the least residual for the :math:`y` that minimizes :math:`\|\beta e_1 - H_k y\|`.  Plane
    rotations find this :math:`y`, and give the residual norm after every vector without further cost.

    Attributes:
        restart: The number of basis vectors after which the method starts a new basis.
        maxiter: The maximum number of bases.
    """

    restart: int = 20
    name: str = 'solve_gmres'
    symmetric: bool = False

    gain = 1.0

    def improve(self, problem: Problem, r: Tensor, size: Scalar, limit: Scalar, steps: int) -> Improvement:
        """Build a new basis and return the combination that minimizes the residual."""
        m = min(self.restart, problem.layout.size)
        batch = r.shape[:-1]
        basis = r.new_zeros(*batch, m + 1, r.shape[-1])
        beta = size if isinstance(size, Tensor) else r.new_full((1,), size)
        basis[..., 0, :] = divide(r, beta.expand_as(r))
        fit = _Rotations(m, _on_host(beta)[..., 0])
        target = _on_host(limit[..., 0] if isinstance(limit, Tensor) else limit)
        k = 0
        while k < m and not (fit.residual <= target).all():
            if k == 0:
                w = divide(problem.matvec(problem.precondition(r)), beta.expand_as(r))
            else:
                w = problem.matvec(problem.precondition(basis[..., k, :]))
            known = basis[..., : k + 1, :]
            h = w.new_zeros(*batch, k + 1)
            for _ in range(2):  # a single pass of Gram-Schmidt would lose orthogonality
                overlap = (known @ w.unsqueeze(-1)).squeeze(-1)
                w = w - (overlap.unsqueeze(-2) @ known).squeeze(-2)
                h = h + overlap
            length = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
            # If the vector lies in the space, only rounding errors are left, and the basis is complete.
            rounding = 10 * torch.finfo(w.dtype).eps * torch.linalg.vector_norm(h, dim=-1, keepdim=True)
            length = torch.where(length <= rounding, 0.0, length)
            basis[..., k + 1, :] = divide(w, length.expand_as(w))
            fit.append(_on_host(torch.cat([h, length], dim=-1)))
            k += 1
        y = torch.from_numpy(np.ascontiguousarray(fit.solution(k))).to(r)
        d = problem.precondition((y.unsqueeze(-2) @ basis[..., :k, :]).squeeze(-2))
        least = torch.from_numpy(fit.residual).to(r).unsqueeze(-1) if batch else float(fit.residual)
        return Improvement(d, least, k, 1)


class _Rotations:
    """The least-squares problem of GMRES, kept triangular by plane rotations; on the host, in double precision."""

    def __init__(self, m: int, beta: np.ndarray) -> None:
        self.R = np.zeros((*beta.shape, m, m))
        self.g = np.zeros((*beta.shape, m + 1))
        self.g[..., 0] = beta
        self.rotations: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def residual(self) -> np.ndarray:
        """The least residual norm so far."""
        return np.abs(self.g[..., len(self.rotations)])

    def append(self, h: np.ndarray) -> None:
        """Append the next column of the Hessenberg matrix."""
        j = len(self.rotations)
        h = h.copy()
        for i, (c, s) in enumerate(self.rotations):
            h[..., i], h[..., i + 1] = c * h[..., i] + s * h[..., i + 1], c * h[..., i + 1] - s * h[..., i]
        length = np.hypot(h[..., j], h[..., j + 1])
        safe = np.where(length == 0, 1.0, length)
        c, s = np.where(length == 0, 1.0, h[..., j] / safe), h[..., j + 1] / safe
        self.R[..., : j + 1, j] = h[..., : j + 1]
        self.R[..., j, j] = length
        self.g[..., j], self.g[..., j + 1] = c * self.g[..., j], -s * self.g[..., j]
        self.rotations.append((c, s))

    def solution(self, size: int) -> np.ndarray:
        """The minimizer, by back substitution; zero for columns with a negligible diagonal element."""
        y = np.zeros((*self.g.shape[:-1], size))
        for i in reversed(range(size)):
            rest = self.g[..., i] - (self.R[..., i, i + 1 : size] * y[..., i + 1 :]).sum(-1)
            pivot = self.R[..., i, i]
            reached = np.abs(pivot) > np.finfo(float).eps * np.abs(self.R[..., : i + 1, i]).max(-1)
            y[..., i] = np.where(reached, rest / np.where(reached, pivot, 1.0), 0.0)
        return y


def _on_host(x: Tensor | float) -> np.ndarray:
    return x.detach().to('cpu', torch.float64).numpy() if isinstance(x, Tensor) else np.asarray(x)


@configurable
def solve_bicgstab(
    matvec: Callable[[Any], Any] | None = None,
    b: Any = None,
    ridge: Any = None,
    init: Any = None,
    *,
    tol: float | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    maxiter: int | None = None,
    M: Callable[[Any], Any] | None = None,
    return_status: bool = False,
) -> Any:
    r"""Solve :math:`(A + \lambda I)\, x = b` by stabilized biconjugate gradients, for a nonsingular :math:`A`.

    An iteration takes two products with :math:`A`, and memory does not grow.  The method may break down; the status or
    the warning then reports it.

    Args:
        matvec: The linear function :math:`x \mapsto A x` of trees; without it the configured solver is returned.
        b: The right-hand side, a tree of floating or complex tensors.
        ridge: :math:`\lambda`, a number or a 0-d tensor.
        init: The initial guess, zero if None.
        tol: See :func:`solve_cg`.
        rtol: Another name of ``tol``.
        atol: See :func:`solve_cg`.
        maxiter: See :func:`solve_cg`.
        M: A preconditioner: any linear function close to :math:`A^{-1}`.
        return_status: See :func:`solve_cg`.

    Returns:
        A tree like ``b``; with ``return_status`` the pair of it and the status.

    Raises:
        ValueError: See :func:`solve_cg`.
        TypeError: See :func:`solve_cg`.

    Warns:
        LinearSolveWarning: If the tolerance is not reached.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_bicgstab
        >>> A = torch.tensor([[2.0, 1.0], [0.0, 4.0]])
        >>> solve_bicgstab(A.matmul, torch.tensor([4.0, 8.0])).round(decimals=4)
        tensor([1., 2.])

    References:
        Van der Vorst, *Bi-CGSTAB: A Fast and Smoothly Converging Variant of Bi-CG for the Solution of Nonsymmetric
        Linear Systems*, 1992.
    """
    method = BiCGStab(*stopping_rule(tol, rtol, atol, maxiter))
    return solve_with(method, matvec, b, ridge=ridge, init=init, M=M, return_status=return_status)


@configurable
def solve_gmres(
    matvec: Callable[[Any], Any] | None = None,
    b: Any = None,
    ridge: Any = None,
    init: Any = None,
    tol: float | None = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    restart: int = 20,
    maxiter: int | None = None,
    M: Callable[[Any], Any] | None = None,
    return_status: bool = False,
) -> Any:
    r"""Solve :math:`(A + \lambda I)\, x = b` by restarted GMRES (minimal residuals), for a nonsingular :math:`A`.

    An iteration takes one product with :math:`A`, and keeps one vector until the next restart.

    Args:
        matvec: The linear function :math:`x \mapsto A x` of trees; without it the configured solver is returned.
        b: The right-hand side, a tree of floating or complex tensors.
        ridge: :math:`\lambda`, a number or a 0-d tensor.
        init: The initial guess, zero if None.
        tol: See :func:`solve_cg`.
        rtol: Another name of ``tol``.
        atol: See :func:`solve_cg`.
        restart: The maximum number of stored vectors, at least 1.
        maxiter: The maximum number of restarts; ten per real unknown if None.
        M: A preconditioner: any linear function close to :math:`A^{-1}`.
        return_status: See :func:`solve_cg`; the number of iterations is that of the products, over all restarts.

    Returns:
        A tree like ``b``; with ``return_status`` the pair of it and the status.

    Raises:
        ValueError: See :func:`solve_cg`; also if ``restart`` is less than 1.
        TypeError: See :func:`solve_cg`.

    Warns:
        LinearSolveWarning: If the tolerance is not reached.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_gmres
        >>> A = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> solve_gmres(A.matmul, torch.tensor([1.0, 2.0])).round(decimals=4)
        tensor([-2.,  1.])

    References:
        Saad and Schultz, *GMRES: A Generalized Minimal Residual Algorithm for Solving Nonsymmetric Linear Systems*,
        1986.
    """
    if not isinstance(restart, int) or restart < 1:
        raise ValueError(f'Invalid restart: {restart!r}; expected an int >= 1.')
    method = GMRES(*stopping_rule(tol, rtol, atol, maxiter), restart)
    return solve_with(method, matvec, b, ridge=ridge, init=init, M=M, return_status=return_status)
