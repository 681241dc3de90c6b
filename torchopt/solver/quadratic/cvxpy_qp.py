# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs solved by CVXPY."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchopt.levels import eager, without_wrappers
from torchopt.solver import adjoint
from torchopt.solver.base import OptStep, Solver
from torchopt.solver.quadratic.kkt import solve_kkt
from torchopt.solver.quadratic.problem import OneSided, objective_of, one_sided_residual
from torchopt.solver.run import KKTSolution


@dataclasses.dataclass(eq=False)
class CvxpyQP(Solver):
    r"""Convex quadratic programs by a solver of CVXPY, on the host.

    .. math:: \min_x \; \tfrac12 x^\top Q x + c^\top x \quad \text{subject to} \quad A x = b, \; G x \le h

    It needs the package ``cvxpy`` (``pip install torchopt[cvxpy]``).  The solution is differentiable in all data, but
    ``torch.vmap`` cannot run it: for batches use :class:`OSQP`.

    Args:
        solver: The name of the solver: ``'OSQP'``, ``'CLARABEL'``, ``'SCS'``, or another that CVXPY has installed.
        implicit_diff_solve: The linear solver for derivatives, ``solve(matvec, b)``; a factorization if None.

    Example:
        >>> import torch, torchopt
        >>> Q, c = 2.0 * torch.eye(2).double(), torch.tensor([-2.0, -6.0]).double()
        >>> G, h = torch.tensor([[1.0, 1.0]]).double(), torch.tensor([2.0]).double()
        >>> sol = torchopt.CvxpyQP().run(None, params_obj=(Q, c), params_ineq=(G, h)).params
        >>> sol.primal.round(decimals=3) + 0.0
        tensor([0., 2.], dtype=torch.float64)
    """

    solver: str = 'OSQP'
    implicit_diff_solve: Callable[..., Any] | None = None

    @eager
    def run(self, init_params: Any, params_obj: Any, params_eq: Any = None, params_ineq: Any = None) -> OptStep:
        """Solve a problem.

        Args:
            init_params: Ignored.
            params_obj: ``(Q, c)``, a matrix and a vector.
            params_eq: ``(A, b)``, or None for no equations.
            params_ineq: ``(G, h)``, or None for no inequalities.

        Returns:
            ``KKTSolution(x, y, lambda)``, and None.

        Raises:
            ImportError: If CVXPY is not installed.
            ValueError: If shapes do not match; if the problem is infeasible, unbounded, or was not solved.
        """
        problem = self._problem(params_obj, params_eq, params_ineq)
        start = torch.zeros_like(problem.c), torch.zeros_like(problem.bounds[1])

        def residual(point: tuple[Tensor, Tensor], *data: Tensor) -> tuple[Tensor, Tensor]:
            x, y = point
            named = dict(zip(problem.data, data))
            stationarity, *parts = one_sided_residual(x, *torch.split(y, problem.sizes), **named)
            return stationarity, torch.cat([y[:0], *(part for part in parts if part is not None)])

        def solved(point: Any, *data: Tensor) -> tuple[Any, None]:
            return self._solve(dict(zip(problem.data, data))), None

        solve = solve_kkt if self.implicit_diff_solve is None else self.implicit_diff_solve
        (x, y), _ = adjoint.implicit(solved, residual, residual, solve, (start, *problem.data.values()), {})
        found = KKTSolution((x, None), y)
        return OptStep(problem.solution(found), None)

    def optimality_fun(
        self, params: KKTSolution, params_obj: Any, params_eq: Any = None, params_ineq: Any = None
    ) -> KKTSolution:
        """The residuals of the optimality conditions, a tree like ``params``; zero at the solution.

        For the arguments see :meth:`run`.
        """
        return self._problem(params_obj, params_eq, params_ineq).residual(params)

    @staticmethod
    def _problem(params_obj: Any, params_eq: Any, params_ineq: Any) -> OneSided:
        objective = objective_of(params_obj, None, None)
        return OneSided.of(objective, (params_eq, None), (params_ineq, None))

    def _solve(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        try:
            cvxpy: Any = importlib.import_module('cvxpy')
        except ImportError:
            raise ImportError('CvxpyQP needs cvxpy: `pip install torchopt[cvxpy]`, or use OSQP.') from None
        given = {
            name: np.array(without_wrappers(value, unless_batch=_NO_BATCH).tolist()).reshape(value.shape)
            for name, value in data.items()
        }
        x = cvxpy.Variable(len(given['c']))
        objective = 0.5 * cvxpy.quad_form(x, given['Q'], assume_PSD=True) + given['c'] @ x
        constraints = []
        if 'A' in given:
            constraints.append(given['A'] @ x == given['b'])
        if 'G' in given:
            constraints.append(given['G'] @ x <= given['h'])
        problem = cvxpy.Problem(cvxpy.Minimize(objective), constraints)
        problem.solve(solver=self.solver)
        if problem.status not in ('optimal', 'optimal_inaccurate'):
            raise ValueError(f'{self.solver} found that the problem is {problem.status}. Check its constraints.')
        like = data['c']
        y = [
            torch.tensor(np.reshape(constraint.dual_value, -1), dtype=like.dtype, device=like.device)
            for constraint in constraints
        ]
        return torch.tensor(x.value, dtype=like.dtype, device=like.device), torch.cat(y) if y else torch.zeros_like(
            like[:0]
        )


_NO_BATCH = 'CvxpyQP solves one problem at a time and cannot be mapped by torch.vmap. Use OSQP for batches.'
