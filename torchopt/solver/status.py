# SPDX-License-Identifier: Apache-2.0
"""How a run ended."""

from __future__ import annotations

import enum
import math
from typing import Any

from torchopt.scalars import where


class Status(enum.IntEnum):
    """How a run ended: the value of ``state.status``, an integer tensor with one element for each problem of a batch.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.solver import Status
        >>> params, state = torchopt.GradientDescent(lambda x: x**2, maxiter=3, stepsize=0.1).run(torch.tensor(1.0))
        >>> status = Status(int(state.status))
        >>> status.name, status.message
        ('MAXITER', 'The limit of iterations was reached first. Increase maxiter or tol, or scale the problem.')
        >>> bool((state.status == Status.CONVERGED).all())  # of a batch too
        False
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
