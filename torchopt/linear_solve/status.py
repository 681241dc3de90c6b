# SPDX-License-Identifier: Apache-2.0
"""The status of a solve: numbers that stay on the device, and the text of a warning."""

from __future__ import annotations

import contextlib
import contextvars
import enum
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from torchopt import checks, tree

logger = logging.getLogger(__name__)


class LinearSolveWarning(UserWarning):
    """The result of a linear solver does not meet the required tolerance."""


class Outcome(enum.IntEnum):
    """Why a solver stopped."""

    CONVERGED = 0
    """The residual is within the tolerance, or the method is a direct one."""
    MAXITER = 1
    """The maximum number of iterations was reached before the tolerance."""
    BREAKDOWN = 2
    """The recurrence divided by zero: the matrix is singular, or not of the kind that the method requires."""
    DIVERGED = 3
    """The iterates are not finite, the dtype cannot represent the solution, or the series does not converge."""
    STAGNATED = 4
    """The recursive residual meets the tolerance, but the true residual is larger and no longer decreases: the matrix
    is singular, or too ill-conditioned for the tolerance in this precision."""

    INCONSISTENT = 5
    """In an implicit derivative: the normal equations are solved, but the system itself is not: its matrix is singular,
    or too ill-conditioned for normal equations."""


_EXPLANATIONS = {
    Outcome.MAXITER: 'reached maxiter before the tolerance. Raise maxiter or tol, precondition with M, regularize with '
    'ridge, or use a direct solver (solve_lu); for a singular matrix the iterations need not converge.',
    Outcome.BREAKDOWN: 'broke down: the matrix is singular, or not of the kind that the method requires (solve_cg: '
    'symmetric and positive definite). Use solve_normal_cg or solve_gmres, or regularize with ridge.',
    Outcome.DIVERGED: 'diverged: the matrix is singular, or not of the kind that the method requires, or the dtype '
    'cannot represent the solution. Use another solver, or regularize with ridge.',
    Outcome.STAGNATED: 'stagnated: rounding keeps the residual above the tolerance, since the matrix is singular or '
    'ill-conditioned, or the tolerance is too small for the dtype. Use solve_normal_cg or float64, precondition '
    'with M, regularize with ridge, or raise tol.',
    Outcome.INCONSISTENT: 'found only the least-squares solution of the system of an implicit derivative: the Jacobian '
    'of the optimality function is singular, so that the derivative need not exist, or too ill-conditioned for normal '
    'equations. Pass another linear solver (solve_lu; solve_cg if the Jacobian is symmetric and positive definite), or '
    'regularize with ridge.',
}
_OF_BATCH = (  # for a single system these are errors
    'diverged: the right-hand side (in a derivative: the incoming gradient) or the matrix has values that are not '
    'finite, '
)
_OF_SERIES = ' The series converges if the spectral radius of I - alpha A is below one: try a smaller alpha.'


@tree.safe_to_load
class SolveStatus(NamedTuple):
    """The second result with ``return_status=True``; under ``vmap`` each field has the batch dimensions.

    Attributes:
        iterations: The number of iterations, an int64 tensor.
        residual: The norm of the residual: the true residual if the solver converged or stagnated, the recursive one
            if it stopped earlier.  (For :func:`solve_normal_cg`, the residual of the normal equations.)
        outcome: An :class:`Outcome` as an int64 tensor; zero is success.
    """

    iterations: torch.Tensor
    residual: torch.Tensor
    outcome: torch.Tensor

    @property
    def converged(self) -> torch.Tensor:
        """Whether the solver succeeded."""
        return self.outcome == Outcome.CONVERGED


def warn_unless_solved(
    name: str, outcome: int | torch.Tensor, status: Callable[[], SolveStatus], *, truncates: bool
) -> None:
    """Warn if a solver failed; for a batch of systems, about the worst outcome.

    The message is always the same, so Python shows it once for each calling line.  The numbers go to
    the log; if the number of iterations was limited on purpose, everything goes to the log only.
    """
    outcomes = torch.as_tensor(outcome)
    systems, worst = outcomes.numel(), int(outcomes.max())
    if not worst:
        return
    if logger.isEnabledFor(logging.DEBUG):
        iterations, residual, outcomes = status()  # of each system
        logger.debug(
            '%s: %s in %d of %d systems, after %d iterations, with a residual norm of %.3g.',
            name,
            Outcome(worst).name,
            int((outcomes != 0).sum()),
            systems,
            int(iterations.max()),
            float(residual.max()),
        )
    if _is_rough.get() or (truncates and worst == Outcome.MAXITER):
        return
    explanation = _EXPLANATIONS[Outcome(worst)]
    of_batch = ', in some of the systems of a batch,' if systems > 1 else ''
    if worst == Outcome.DIVERGED:
        explanation = explanation.replace('diverged: ', _OF_BATCH) if of_batch else explanation
        explanation += _OF_SERIES if name.endswith('(ns=True)') else ''
    checks.warn(
        f'{name}{of_batch} {explanation} Pass return_status=True for the numbers, instead of this warning.',
        LinearSolveWarning,
    )


_is_rough: contextvars.ContextVar[bool] = contextvars.ContextVar('is_rough', default=False)


@contextlib.contextmanager
def roughly() -> Iterator[None]:
    """Solve without warnings, since later steps correct the result."""
    token = _is_rough.set(True)
    try:
        yield
    finally:
        _is_rough.reset(token)
