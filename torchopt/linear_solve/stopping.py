# SPDX-License-Identifier: Apache-2.0
"""When an iterative method stops, and what it calls the end.

Squared residual norms are compared.  In a batch the systems go on until the last one stops; one that is solved already
is held still, by a step size of zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchopt.linear_solve.derivative import Problem
from torchopt.linear_solve.status import Outcome
from torchopt.linear_solve.vectors import inner

__all__ = ['IterativeOptions', 'can_improve', 'masked', 'outcome_of']


@dataclass(frozen=True)
class IterativeOptions:
    """Stop at a residual norm of at most ``max(tol * norm(b), atol)``, or after ``maxiter`` iterations.

    Attributes:
        tol: The relative tolerance.
        atol: The absolute tolerance.
        maxiter: The number of iterations that are allowed, ten per unknown if None.
    """

    tol: float = 1e-5
    atol: float = 0.0
    maxiter: int | None = None

    def steps(self, problem: Problem) -> int:
        """The number of iterations that are allowed."""
        return 10 * problem.layout.size if self.maxiter is None else self.maxiter

    def limit(self, b: Tensor) -> Any:
        """The square of the residual norm at which to stop, for each system."""
        relative = self.tol**2 * inner(b, b)
        return relative.clamp(min=self.atol**2) if isinstance(relative, Tensor) else max(relative, self.atol**2)


def masked(value: Any, rr: Any, limit: Any) -> Any:
    """The value, zero for systems in a batch that are solved."""
    return torch.where(rr <= limit, 0.0, value) if isinstance(value, Tensor) else value


def can_improve(rr: Any, limit: Any, *steps: Any) -> bool:
    """Whether some system is not solved yet, is finite, and moved in at least one of the last steps."""
    if not isinstance(rr, Tensor):
        return rr > limit and math.isfinite(rr) and any(step != 0 for step in steps)
    moved = torch.stack([step != 0 for step in steps]).any(dim=0)
    return bool(((rr > limit) & torch.isfinite(rr) & moved).any())


def outcome_of(rr: Any, limit: Any, *, stuck: bool) -> Any:
    """How it ended, for each system: unsolved ones broke down if none of them could improve."""
    unsolved = Outcome.BREAKDOWN if stuck else Outcome.MAXITER
    if not isinstance(rr, Tensor):
        return Outcome.CONVERGED if rr <= limit else unsolved if math.isfinite(rr) else Outcome.DIVERGED
    outcome = torch.where(rr <= limit, int(Outcome.CONVERGED), int(unsolved))
    return torch.where(torch.isfinite(rr), outcome, int(Outcome.DIVERGED))
