# SPDX-License-Identifier: Apache-2.0
"""Iterative refinement: a rough solver made exact by solving again for the residual."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torchopt import checks
from torchopt.linear_solve.derivative import Problem, Result
from torchopt.linear_solve.door import configurable, iteration_limit, solve_with
from torchopt.linear_solve.krylov import solve_gmres
from torchopt.linear_solve.status import LinearSolveWarning
from torchopt.linear_solve.stopping import can_improve, masked, outcome_of
from torchopt.linear_solve.vectors import any_above, inner

__all__ = ['Refinement', 'solve_iterative_refinement']


@dataclass(frozen=True)
class Refinement:
    r"""Repeat :math:`x \gets x + S(b - A x)`, where :math:`S` solves approximately (Wilkinson, 1963).

    Attributes:
        solve: ``solve(matvec, b)``.
        maxiter: The number of corrections that are allowed.
        tol: The norm of the residual at which to stop.
    """

    solve: Callable[..., Any]
    maxiter: int = 10
    tol: float = 1e-7
    name: str = 'solve_iterative_refinement'
    symmetric: bool = False

    def run(self, problem: Problem) -> Result:
        """Solve."""
        b = problem.b
        x, r = (torch.zeros_like(b), b) if problem.x0 is None else (problem.x0, b - problem.matvec(problem.x0))
        # What stands in for the preconditioner is the approximation of the matrix itself, for the solver to work with.
        approximation = problem.precondition if problem.is_preconditioned else problem.matvec
        rr = inner(r, r)
        limit = torch.full_like(rr, self.tol**2) if isinstance(rr, torch.Tensor) else self.tol**2
        k, goes_on = 0, any_above(rr, limit)
        while goes_on and k < self.maxiter:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', LinearSolveWarning)  # it is rough by intention
                x = x + self.solve(approximation, r)
            r = b - problem.matvec(x)
            rr, before = inner(r, r), rr
            k, goes_on = k + 1, can_improve(rr, limit, masked(before - rr, rr, limit))
        return Result(x, k, rr**0.5, outcome_of(rr, limit, stuck=not goes_on))


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
    r"""Solve :math:`A x = b` by solving roughly, again and again, for what is left of the residual.

    .. math:: x \gets x + \bar A^{-1} (b - A x)

    Args:
        matvec: The linear function :math:`x \mapsto A x` of trees; without it the configured solver is returned.
        b: The right-hand side, a tree of floating or complex tensors.
        init: Where to start, zero if None.
        maxiter: The number of corrections that are allowed.
        tol: The norm of the residual to reach; it is absolute.
        solve: What solves roughly: ``solve(matvec, b)``, given flat vectors.
        matvec_A_bar: :math:`\bar A`, an approximation of :math:`A` that is easier to solve with, as a linear function
            of trees; :math:`A` itself if None.
        return_status: Whether to return a :class:`SolveStatus` too, instead of warning where the tolerance is not
            reached.

    Returns:
        A tree like ``b``; with ``return_status`` the pair of it and the status.

    Raises:
        ValueError: If ``b`` is not finite, or trees do not match.

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
    limit = iteration_limit(maxiter)
    method = Refinement(solve, 10 if limit is None else limit, tol)
    return solve_with(method, matvec, b, init=init, M=matvec_A_bar, return_status=return_status)
