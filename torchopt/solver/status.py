# SPDX-License-Identifier: Apache-2.0
"""How a run ended."""

from __future__ import annotations

import enum
import math
from typing import Any

from torchopt.scalars import larger, where

__all__ = ['Status', 'has_no_bound', 'with_status']


class Status(enum.IntEnum):
    """How a run ended: the value of ``state.status``, an integer tensor with one element for each problem of a batch.

    Example:
        >>> import torch
        >>> from torchopt.solver import Status
        >>> status = torch.tensor(2)
        >>> Status(int(status)).name
        'MAXITER'
        >>> print(Status.MAXITER.message)
        The limit of iterations was reached first. Increase maxiter or tol, or scale the problem.
    """

    RUNNING = 0
    CONVERGED = 1
    MAXITER = 2
    NONFINITE = 3
    STALLED = 4
    INFEASIBLE = 5
    UNBOUNDED = 6

    @property
    def message(self) -> str:
        """What happened, and what can be done about it."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.RUNNING: 'The run has not ended. Call run, or update again.',
    Status.CONVERGED: 'The error is at most tol.',
    Status.MAXITER: 'The limit of iterations was reached first. Increase maxiter or tol, or scale the problem.',
    Status.NONFINITE: (
        'A value was NaN or infinite, and the run stopped. Start closer to the solution, take smaller steps, or '
        'compute in float64.'
    ),
    Status.STALLED: (
        'No step along the last direction improves the objective at the precision of its dtype. The result may be as '
        'good as the dtype allows: increase tol, or compute in float64. Otherwise check the gradient.'
    ),
    Status.INFEASIBLE: 'No point satisfies all constraints. Check the constraints and their bounds.',
    Status.UNBOUNDED: 'The objective decreases without bound. Check its sign, or add constraints or regularization.',
}


def with_status(state: Any, tol: Any) -> Any:
    """The state of a run that has ended, with its status: what the solver found, else by its error."""
    error = state.error
    # Before the first step, an error that is not known is infinite.
    finite = (abs(error) < math.inf) | ((error == math.inf) & (getattr(state, 'iter_num', 1) == 0))
    ended = where(error <= tol, int(Status.CONVERGED), where(finite, int(Status.MAXITER), int(Status.NONFINITE)))
    status = where(state.status == int(Status.RUNNING), ended, state.status)
    return state._replace(status=status)


def has_no_bound(start: tuple[Any, Any, Any], end: tuple[Any, Any, Any], precision: float) -> Any:
    """Whether a descent shows that an objective has no lower bound, as far as numbers can show it.

    The objective is minus infinity; or the parameters and the decrease are so large that those of the start are hardly
    more than rounding, and the gradient is as steep as there.

    Args:
        start: The objective, the norm of the parameters and that of the gradient where the run started.
        end: The same where it ended.
        precision: The precision of the dtype.

    Example:
        >>> from torchopt.solver.status import has_no_bound
        >>> (
        ...     has_no_bound((0.0, 1.0, 2.0), (-1e20, 1e10, 2e10), 1e-16),
        ...     has_no_bound((0.0, 1.0, 2.0), (-9.0, 3.0, 6.0), 1e-16),
        ... )
        (True, False)
    """
    (before, began, slope), (after, ended, last_slope) = start, end
    least = precision**-0.5
    far = (ended > least * larger(began, 1.0)) & (after < -least * larger(abs(before), 1.0))
    return (after == -math.inf) | (far & (last_slope >= 0.5 * slope))
