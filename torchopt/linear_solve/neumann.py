# SPDX-License-Identifier: Apache-2.0
"""The Neumann series: an approximation of the inverse by a few products."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchopt.linear_solve.derivative import Problem, Result
from torchopt.linear_solve.status import Outcome

__all__ = ['NeumannSeries']


@dataclass(frozen=True)
class NeumannSeries:
    r"""The first terms of :math:`A^{-1} = \alpha \sum_{k \ge 0} (I - \alpha A)^k`.

    The series converges if the spectral radius of :math:`I - \alpha A` is below one.  What is cut off is not measured;
    but terms that grow are a sign that it diverges, and are reported.

    Attributes:
        maxiter: The number of terms beyond the first.
        alpha: The scale, one if None.
    """

    maxiter: int = 10
    alpha: float | None = None
    name: str = 'solve_inv(ns=True)'
    symmetric: bool = False

    def run(self, problem: Problem) -> Result:
        """Sum the terms."""
        alpha = 1.0 if self.alpha is None else self.alpha
        term = total = problem.b
        for _ in range(self.maxiter):
            term = term - alpha * problem.matvec(term)
            total = total + term
        first, last = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (problem.b, term))
        outcome = torch.where(last <= 1.001 * first, int(Outcome.CONVERGED), int(Outcome.DIVERGED))
        return Result(alpha * total, self.maxiter, float('nan'), outcome if problem.layout.batch else outcome[0])
