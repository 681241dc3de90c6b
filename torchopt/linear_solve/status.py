# SPDX-License-Identifier: Apache-2.0
"""How a solve ended, in numbers that stay on the device and in words for a warning."""

from __future__ import annotations

import enum
import warnings
from typing import NamedTuple

import torch

from torchopt import tree

__all__ = ['LinearSolveWarning', 'Outcome', 'SolveStatus', 'warn_unless_solved']


class LinearSolveWarning(UserWarning):
    """A linear solver returned something that is not a solution to the tolerance that was asked for."""


class Outcome(enum.IntEnum):
    """Why a solver stopped."""

    CONVERGED = 0
    """The residual is within the tolerance, or the method is a direct one."""
    MAXITER = 1
    """The number of iterations was exhausted first."""
    BREAKDOWN = 2
    """The recurrence divided by zero: the system is singular, or not of the kind that the method needs."""
    DIVERGED = 3
    """The iterates are not finite, or the series does not converge."""


_EXPLANATIONS = {
    Outcome.MAXITER: 'reached maxiter before the tolerance. Raise maxiter or tol, precondition with M, regularize with '
    'ridge, or use a direct solver (solve_lu); a singular system never gets there.',
    Outcome.BREAKDOWN: 'broke down: the matrix is singular, or not of the kind that the method needs (solve_cg: '
    'symmetric and positive definite). Use solve_normal_cg or solve_gmres, or regularize with ridge.',
    Outcome.DIVERGED: 'diverged: the matrix is singular, or not of the kind that the method needs (a Neumann series: '
    'the spectral radius of I - alpha A is below one). Use another solver, a smaller alpha, or regularize with ridge.',
}


@tree.safe_to_load
class SolveStatus(NamedTuple):
    """What ``return_status=True`` returns beside the solution; under ``vmap`` each field has the batch dimensions.

    Attributes:
        iterations: How many iterations were done, an int64 tensor.
        residual: The norm of the residual that the solver's own recurrence gives; NaN for direct solvers and series,
            which know none.
        outcome: An :class:`Outcome` as an int64 tensor; zero is success.
    """

    iterations: torch.Tensor
    residual: torch.Tensor
    outcome: torch.Tensor

    @property
    def converged(self) -> torch.Tensor:
        """Whether the solver succeeded."""
        return self.outcome == Outcome.CONVERGED


def warn_unless_solved(name: str, status: SolveStatus) -> None:
    """Warn of what a solver could not do; with a batch of systems, of the worst outcome among them."""
    if status.outcome.numel() == 0 or not (worst := int(status.outcome.max())):
        return
    failed = int((status.outcome != 0).sum())
    of_batch = f' in {failed} of {status.outcome.numel()} systems' if status.outcome.numel() > 1 else ''
    residual = float(status.residual.max())
    numbers = f'after {int(status.iterations.max())} iterations'
    numbers += '' if residual != residual else f' with a residual norm of {residual:.3g}'
    warnings.warn(
        f'{name}{of_batch} {_EXPLANATIONS[Outcome(worst)]} Stopped {numbers}. Pass return_status=True to be told '
        'instead.',
        LinearSolveWarning,
        stacklevel=3,
    )
