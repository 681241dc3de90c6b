# SPDX-License-Identifier: Apache-2.0
"""Iterative refinement: an approximate solver becomes exact by solving again for the residual."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchopt import checks
from torchopt.linear_solve.cg import Improvement, IterativeOptions
from torchopt.linear_solve.krylov import solve_gmres
from torchopt.linear_solve.problem import Problem, Scalar, norm, times_power
from torchopt.linear_solve.solve import configurable, solve_with
from torchopt.linear_solve.status import roughly


@dataclass(frozen=True)
class Refinement(IterativeOptions):
    r"""Iterate :math:`x \gets x + S(b - A x)` with an approximate solver :math:`S` (Wilkinson, 1963).

    Attributes:
        solve: ``solve(matvec, b)``.
    """

    solve: Callable[..., Any] = solve_gmres
    name: str = 'solve_iterative_refinement'
    symmetric: bool = False

    gain = 1.0
    # The preconditioner of the problem is here an approximation of the matrix, with which the solver works.
    power = -1

    def improve(self, problem: Problem, r: Tensor, size: Scalar, limit: Scalar, steps: int) -> Improvement:
        """One approximate solve."""
        matvec = problem.precondition if problem.is_preconditioned else problem.matvec
        if not problem.layout.batch:
            with roughly():
                d = self.solve(matvec, r)
        else:  # one system of them all, to which those that are not finite do not belong
            given = torch.isfinite(r).all(-1, keepdim=True)
            with roughly():
                d = torch.where(given, self.solve(matvec, torch.where(given, r, 0.0)), math.nan)
        return Improvement(d, norm(r - problem.matvec(d)), 1, 1)

    def limit(self, problem: Problem) -> Scalar:
        """The tolerance: of the residual itself, or relative to a right-hand side that is smaller than one."""
        tol = times_power(self.tol, -problem.residual_scale)
        relative = self.tol * problem.norm
        return torch.clamp(relative, max=tol) if isinstance(relative, Tensor) else min(relative, tol)


@configurable
def solve_iterative_refinement(
    matvec: Callable[[Any], Any] | None = None,
    b: Any = None,
    init: Any = None,
    maxiter: int = 10,
    tol: float = 1e-7,
    solve: Callable[..., Any] = solve_gmres,
    *,
    matvec_A_bar: Callable[[Any], Any] | None = None,
    return_status: bool = False,
) -> Any:
    r"""Solve :math:`A x = b` by repeated approximate solves for the residual.

    .. math:: x \gets x + \bar A^{-1} (b - A x)

    Args:
        matvec: The linear function :math:`x \mapsto A x` of trees; without it the configured solver is returned.
        b: The right-hand side, a tree of floating or complex tensors.
        init: The initial guess, zero if None.
        maxiter: The maximum number of corrections.
        tol: The tolerance for the norm of the residual: absolute, as in JAXopt, and relative to the norm of ``b`` if
            this norm is less than one.  So the relative accuracy for a small ``b``, such as the incoming gradient of a
            derivative, is the same.  For a large ``b`` the limit is rounding: about ten times the precision of the
            dtype, times the norm of ``b``.
        solve: The approximate solver: ``solve(matvec, b)``, called with flat vectors.
        matvec_A_bar: :math:`\bar A`, an approximation of :math:`A` that is easier to solve with, as a linear function
            of trees; :math:`A` itself if None.
        return_status: Whether to also return a :class:`SolveStatus`, instead of a warning if the tolerance is not
            reached.

    Returns:
        A tree like ``b``; with ``return_status`` the pair of it and the status.

    Raises:
        ValueError: If ``b`` is not finite (in a batch: of all systems), or trees do not match.

    Warns:
        LinearSolveWarning: If the tolerance is not reached.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_cg, solve_iterative_refinement
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> rough = solve_cg(tol=0.1)
        >>> solve_iterative_refinement(A.matmul, torch.tensor([9.0, 5.0], dtype=torch.float64), solve=rough).round(
        ...     decimals=4
        ... )
        tensor([2., 1.], dtype=torch.float64)

    References:
        Wilkinson, *Rounding Errors in Algebraic Processes*, 1963.
    """
    checks.at_least('tol', tol)
    checks.integer('maxiter', maxiter, 0, optional=True)
    method = Refinement(tol, maxiter=10 if maxiter is None else maxiter, truncates=tol == 0, solve=solve)
    return solve_with(method, matvec, b, init=init, M=matvec_A_bar, return_status=return_status)
