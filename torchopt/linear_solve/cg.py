# SPDX-License-Identifier: Apache-2.0
r"""Conjugate gradients, and the loop and the stopping rule of all iterative methods.

A method improves a solution by solving for the residual, :math:`x \gets x + d` with :math:`A d \approx b - A x`.  By
rounding, the recursive residual drifts away from the true residual, without bound if the matrix is singular.
So when the recursive residual meets the tolerance, the loop computes the true residual, at the cost of one product.  If
it is too large, the method restarts from the current solution, as long as the residual decreases.

In a batch all systems iterate until the last one stops; systems that are already solved take steps of size zero.

Normal equations can meet the tolerance although the system itself is not solved: the residual is multiplied by the
transpose, which hides its part along small singular values.  Where the system is known to have a solution, the loop
goes on with a smaller tolerance until the residual of the system itself is small, too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks
from torchopt.linear_solve.problem import (
    Problem,
    Result,
    Scalar,
    any_above,
    can_improve,
    divide,
    exponent,
    inner,
    norm,
    step_size,
    times_power,
)
from torchopt.linear_solve.solve import configurable, solve_with
from torchopt.linear_solve.status import Outcome


class Improvement(NamedTuple):
    """The result of one run of a method.

    Attributes:
        d: The correction.
        size: The norm of the recursive residual.
        iterations: The number of iterations.
        units: The number of iterations that count towards ``maxiter``.
    """

    d: Tensor
    size: Scalar
    iterations: int
    units: int


@dataclass(frozen=True)
class IterativeOptions:
    """Stop at a residual norm of at most ``max(tol * norm(b), atol)``, or after ``maxiter`` iterations.

    Attributes:
        tol: The relative tolerance.
        atol: The absolute tolerance.
        maxiter: The maximum number of iterations, ten per unknown if None.
        truncates: Whether ``maxiter`` limits the iterations on purpose, instead of a tolerance.
    """

    tol: float = 1e-5
    atol: float = 0.0
    maxiter: int | None = None
    truncates: bool = False

    power = 1
    gain = 0.5
    """The method runs again if the true residual has decreased at least by this factor."""

    @abstractmethod
    def improve(self, problem: Problem, r: Tensor, size: Scalar, limit: Scalar, steps: int) -> Improvement:
        """Solve for a residual.

        Args:
            problem: The system.
            r: The residual, of order one.
            size: Its norm.
            limit: The norm at which to stop.
            steps: The maximum number of iterations.
        """

    def limit(self, problem: Problem) -> Scalar:
        """The residual norm at which to stop, for each system."""
        relative = self.tol * problem.norm
        if not self.atol:
            return relative
        atol = times_power(self.atol, -problem.residual_scale)
        return torch.clamp(relative, min=atol) if isinstance(relative, Tensor) else max(relative, atol)

    def run(self, problem: Problem) -> Result:
        """Solve."""
        limit = goal = self.limit(problem)
        problem.normalize()
        x, r, size = problem.x0, problem.rhs, problem.norm
        if x is not None:
            r = problem.residual(x)
            size = norm(r)
        steps = 10 * problem.layout.size if self.maxiter is None else self.maxiter
        iterations = units = 0
        claimed: Any = False
        goes_on = steps > 0 and any_above(size, limit)
        while goes_on:
            e = exponent(r, size)
            if isinstance(e, int) and e == 0:
                done = self.improve(problem, r, size, goal, steps - units)
            else:
                of_r, of_goal = times_power(size, -e), times_power(goal, -e)
                done = self.improve(problem, times_power(r, -e), of_r, of_goal, steps - units)
                done = done._replace(d=times_power(done.d, e), size=times_power(done.size, e))
            x = done.d.clone() if x is None else x + done.d  # a function may return the same buffer each time
            iterations, units = iterations + done.iterations, units + done.units
            claimed = done.size <= goal
            if units >= steps and not (bool(claimed.any()) if isinstance(claimed, Tensor) else claimed):
                size = done.size
                break
            before = size
            r, size, goal = problem.check(x, goal, self.tol)
            goes_on = units < steps and can_improve(size, 1.01 * goal, size < self.gain * before)
        outcome = self._outcome(problem, size, limit, claimed, stuck=units < steps)
        return Result(torch.zeros_like(r) if x is None else x, iterations, size, problem.judged(outcome, self.tol))

    def _outcome(self, problem: Problem, size: Scalar, limit: Scalar, claimed: Any, *, stuck: bool) -> Any:
        """The outcome for each system: an unsolved one broke down unless it reached the maximum of iterations."""
        other = Outcome.BREAKDOWN if stuck else Outcome.MAXITER
        if not isinstance(size, Tensor):
            if size <= max(limit * problem.drift if claimed else limit, problem.floor):
                return Outcome.CONVERGED
            return Outcome.DIVERGED if not math.isfinite(size) else Outcome.STAGNATED if claimed else other
        solved = (size <= torch.where(torch.as_tensor(claimed), limit * problem.drift, limit)) | (size <= problem.floor)
        unsolved = torch.where(torch.as_tensor(claimed), int(Outcome.STAGNATED), int(other))
        outcome = torch.where(solved, int(Outcome.CONVERGED), unsolved)
        return torch.where(torch.isfinite(size), outcome, int(Outcome.DIVERGED))


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


def stopping_rule(
    tol: float | None, rtol: float | None, atol: float | None, maxiter: int | None
) -> tuple[float, float, int | None, bool]:
    """The relative tolerance (JAXopt's ``tol``, TorchOpt's ``rtol``), the absolute tolerance, and the iteration limit.

    The last result says whether the iterations are truncated on purpose: a limit is given, and all given tolerances are
    zero.
    """
    if tol is not None and rtol is not None:
        raise TypeError('tol and rtol are two names of the relative tolerance; pass only one of them.')
    given = [rtol if tol is None else tol, atol]
    for name, value in zip(('tol', 'atol'), given):
        if value is not None:
            checks.at_least(name, value)
    relative = 1e-5 if given[0] is None else float(given[0])
    absolute = 0.0 if atol is None else float(atol)
    if maxiter is not None:
        checks.integer('maxiter', maxiter, 0)
    return relative, absolute, maxiter, maxiter is not None and 0 in given and not any(given)


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
