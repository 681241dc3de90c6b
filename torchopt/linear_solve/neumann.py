# SPDX-License-Identifier: Apache-2.0
"""The Neumann series: an approximation of the inverse by a few matrix-vector products."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchopt.linear_solve.problem import Problem, Result
from torchopt.linear_solve.status import Outcome

__all__ = ['NeumannSeries']


@dataclass(frozen=True)
class NeumannSeries:
    r"""The first terms of :math:`A^{-1} = \alpha \sum_{k \ge 0} (I - \alpha A)^k`.

    The series converges if the spectral radius of :math:`I - \alpha A` is below one.  The residual of a partial
    sum is the next term, so the last term shows how much is missing.

    Attributes:
        maxiter: The number of terms after the first, ten if None.
        alpha: The scale, one if None.
    """

    maxiter: int | None = None
    alpha: float | None = None
    name: str = 'solve_inv(ns=True)'
    symmetric: bool = False

    power = 1

    @property
    def truncates(self) -> bool:
        """Whether the number of terms was chosen."""
        return self.maxiter is not None

    def run(self, problem: Problem) -> Result:
        """Sum the terms."""
        alpha = 1.0 if self.alpha is None else self.alpha
        terms = 10 if self.maxiter is None else self.maxiter
        term = total = problem.rhs
        for _ in range(terms):
            term = term - alpha * problem.matvec(term)
            total = total + term
        first, last = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (problem.rhs, term))
        outcome = torch.where(last <= 0.5 * first, int(Outcome.CONVERGED), int(Outcome.MAXITER))
        outcome = torch.where(last <= 1.001 * first, outcome, int(Outcome.DIVERGED))
        batch = problem.layout.batch
        return Result(alpha * total, terms, last if batch else last[0], outcome if batch else outcome[0])
