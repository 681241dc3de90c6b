# SPDX-License-Identifier: Apache-2.0
"""The conjugate gradient method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchopt.linear_solve.problem import Problem
from torchopt.linear_solve.solve import configurable, solve_with, stopping_rule
from torchopt.linear_solve.stopping import Improvement, IterativeOptions
from torchopt.linear_solve.vectors import Scalar, can_improve, divide, inner, norm, step_size

__all__ = ['ConjugateGradient', 'solve_cg', 'solve_normal_cg']


@dataclass(frozen=True)
class ConjugateGradient(IterativeOptions):
    r"""Conjugate gradients for a symmetric positive definite matrix (Hestenes and Stiefel, 1952).

    With the residual :math:`r = b - Ax`, the preconditioned residual :math:`z = M r` and the direction :math:`p`, one
    iteration is

    .. math::

        \alpha = \frac{r^\top z}{p^\top A p}, \quad x \gets x + \alpha p, \quad r \gets r - \alpha A p, \quad
        \beta = \frac{r_\text{new}^\top z_\text{new}}{r^\top z}, \quad p \gets z_\text{new} + \beta p.
    """

    name: str = 'solve_cg'
    symmetric: bool = True

    def improve(self, problem: Problem, r: Tensor, size: Scalar, limit: Scalar, steps: int) -> Improvement:
        """Iterate with conjugate directions, starting from the residual.

        The first one is a copy, since a preconditioner may return the same buffer each time.
        """
        if isinstance(size, Tensor):
            return self._improve_batch(problem, r, size, limit, steps)
        is_preconditioned = problem.is_preconditioned
        x, p = torch.zeros_like(r), problem.precondition(r).clone() if is_preconditioned else r
        rz = torch.dot(r, p).item() if is_preconditioned else size * size
        apply, Ap = problem.apply, problem.matvec(p)
        for k in range(1, steps + 1):
            pAp = torch.dot(p, Ap).item()
            alpha = rz / pAp if pAp else 0.0
            x.add_(p, alpha=alpha)
            r = torch.add(r, Ap, alpha=-alpha)
            z = problem.precondition(r) if is_preconditioned else r
            before, rz = rz, torch.dot(r, z).item()
            size = norm(r) if is_preconditioned else rz**0.5
            if k == steps or not (alpha and limit < size < math.inf):
                break
            p = torch.add(z, p, alpha=rz / before)
            (Ap,) = apply([p])
        return Improvement(x, size, k, k)

    def _improve_batch(self, problem: Problem, r: Tensor, size: Tensor, limit: Scalar, steps: int) -> Improvement:
        """The same for a batch, until no system can improve; those that are solved take steps of size zero."""
        is_preconditioned = problem.is_preconditioned
        x, p = torch.zeros_like(r), problem.precondition(r).clone()
        rz = inner(r, p) if is_preconditioned else size * size
        k = 0
        while k < steps:
            Ap = problem.matvec(p)
            alpha = step_size(rz, inner(p, Ap), size, limit)
            x, r = torch.addcmul(x, p, alpha), torch.addcmul(r, Ap, -alpha)
            z = problem.precondition(r)
            before, rz = rz, inner(r, z)
            size = norm(r) if is_preconditioned else rz**0.5
            k += 1
            if not can_improve(size, limit, alpha):
                break
            p = torch.addcmul(z, p, divide(rz, before))
        return Improvement(x, size, k, k)


@configurable
def solve_cg(
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
    r"""Solve :math:`(A + \lambda I)\, x = b` by conjugate gradients, for a symmetric positive definite :math:`A`.

    Each of at most ``maxiter`` iterations takes one matrix-vector product with :math:`A`.  The solution is
    differentiable; see :mod:`torchopt.linear_solve`.

    Args:
        matvec: The linear function :math:`x \mapsto A x`, of trees like ``b``.  Without ``matvec`` and ``b``, the
            call returns the solver with the other arguments bound: ``solve_cg(maxiter=20)`` is a function of
            ``(matvec, b)``.
        b: The right-hand side, a tree of floating or complex tensors.  Other leaves are passed through.
        ridge: :math:`\lambda \ge 0`, a number or a 0-d tensor.
        init: The initial guess, zero if None.
        tol: The tolerance for the residual norm, relative to the norm of ``b``; 1e-5 if None.
        rtol: Another name of ``tol``.
        atol: The absolute tolerance for the residual norm; 0 if None.
        maxiter: The maximum number of iterations; ten per real unknown if None.  Together with ``tol=0`` or ``atol=0``,
            and without a positive tolerance, this is the intended number of iterations, and reaching it causes no
            warning.
        M: A preconditioner: a symmetric positive definite linear function close to :math:`A^{-1}`.
        return_status: Whether to also return a :class:`SolveStatus`, instead of a warning if the tolerance is not
            reached.

    Returns:
        A tree like ``b``, or the pair of it and the status.

    Raises:
        ValueError: If ``b`` is not finite (in a batch: of all systems), or trees do not match;
            if ``tol``, ``atol`` or ``maxiter`` is negative.
        TypeError: If ``tol`` and ``rtol`` are both given, or only one of ``matvec`` and ``b``.

    Warns:
        LinearSolveWarning: If the tolerance is not reached.  The solver checks the true residual when the recursive
            one meets the tolerance; rounding may keep it up to ten times above the tolerance.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_cg
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], requires_grad=True)
        >>> x = solve_cg(A.matmul, torch.tensor([1.0, 2.0]))
        >>> x.detach()
        tensor([0.0909, 0.6364])
        >>> torch.autograd.grad(x.sum(), A)[0]
        tensor([[-0.0165, -0.1157],
                [-0.0248, -0.1736]])

    References:
        Hestenes and Stiefel, *Methods of Conjugate Gradients for Solving Linear Systems*, 1952.
    """
    method = ConjugateGradient(*stopping_rule(tol, rtol, atol, maxiter))
    return solve_with(method, matvec, b, ridge=ridge, init=init, M=M, return_status=return_status)


@configurable
def solve_normal_cg(
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
    r"""Solve :math:`(A^\mathsf{H} A + \lambda I)\, x = A^\mathsf{H} b` by conjugate gradients, for any :math:`A`.

    This solves :math:`A x = b` for a nonsingular :math:`A`, and the least-squares problem otherwise; with an initial
    guess of zero it computes the solution of least norm.  An iteration takes one product with :math:`A` and one with
    its transpose, which is derived from ``matvec``.  The condition number is squared.

    The derivatives are those of :math:`A^+ b` with the pseudo-inverse, for matrices of any shape and rank, if the
    rank does not change.  A gradient takes one solve if :math:`A` is nonsingular, as for other solvers, up to three
    otherwise.  Forward mode, higher derivatives and ``torch.func`` also take up to three, since they cannot test this.

    Args:
        matvec: The linear function :math:`x \mapsto A x` of trees; without it the configured solver is returned.
        b: The right-hand side, a tree of floating or complex tensors.
        ridge: :math:`\lambda \ge 0`, a number or a 0-d tensor.
        init: The initial guess, zero if None.  Required if :math:`A` is not square, since it defines the structure of
            the solution.
        tol: See :func:`solve_cg`; relative to :math:`A^\mathsf{H} b`.
        rtol: Another name of ``tol``.
        atol: See :func:`solve_cg`.
        maxiter: See :func:`solve_cg`.
        M: A preconditioner, close to :math:`(A^\mathsf{H} A)^{-1}`.  It requires that :math:`A` has linearly
            independent columns.
        return_status: See :func:`solve_cg`.

    Returns:
        A tree like ``init``, or like ``b`` if ``init`` is None; with ``return_status`` the pair of it and the status.

    Raises:
        ValueError: See :func:`solve_cg`.
        TypeError: See :func:`solve_cg`.

    Warns:
        LinearSolveWarning: If the tolerance is not reached.  Rounding may keep the true residual up to a hundred times
            above it.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_normal_cg
        >>> A = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> solve_normal_cg(A.matmul, torch.tensor([1.0, 3.0, 5.0]), init=torch.zeros(2)).round(decimals=4)
        tensor([1., 2.])
    """
    method = ConjugateGradient(*stopping_rule(tol, rtol, atol, maxiter), 'solve_normal_cg')
    return solve_with(method, matvec, b, ridge=ridge, init=init, M=M, normal=True, return_status=return_status)
