# SPDX-License-Identifier: Apache-2.0
r"""The stopping rule of iterative methods: one loop for all of them.

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
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.linear_solve.problem import Problem, Result
from torchopt.linear_solve.status import Outcome
from torchopt.linear_solve.vectors import Scalar, any_above, can_improve, exponent, norm, times_power

__all__ = ['Improvement', 'IterativeOptions']


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
        if x is None:
            x = torch.zeros_like(r)
        else:
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
            x, iterations, units = x + done.d, iterations + done.iterations, units + done.units
            claimed = done.size <= goal
            if units >= steps and not (bool(claimed.any()) if isinstance(claimed, Tensor) else claimed):
                size = done.size
                break
            before = size
            r, size, goal = problem.check(x, goal, self.tol)
            goes_on = units < steps and can_improve(size, 1.01 * goal, size < self.gain * before)
        outcome = self._outcome(problem, size, limit, claimed, stuck=units < steps)
        return Result(x, iterations, size, problem.judged(outcome, self.tol))

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
