# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs with equations and one-sided inequalities."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from torchopt import tree
from torchopt.levels import eager
from torchopt.solver.base import OptStep, Solver
from torchopt.solver.quadratic.box_osqp import BoxOSQP
from torchopt.solver.quadratic.problem import OneSided, check_objective, objective_of
from torchopt.solver.run import KKTSolution, check_kkt


@dataclasses.dataclass(eq=False, init=False)
class OSQP(Solver):
    r"""Operator splitting for convex quadratic programs.

    .. math:: \min_x \; \tfrac12 x^\top Q x + c^\top x \quad \text{subject to} \quad A x = b, \; G x \le h

    This is :class:`BoxOSQP` for another form of the constraints; all of its options can be given by name.
    :meth:`run` returns ``KKTSolution(x, y, lambda)`` with the multipliers of the equations and the inequalities, None
    where there are none.

    Args:
        matvec_Q: ``matvec_Q(params_Q, x)``, the product of a tree with :math:`Q`; by default ``params_Q`` is a matrix.
        matvec_A: ``matvec_A(params_A, x)`` likewise.
        matvec_G: ``matvec_G(params_G, x)`` likewise.
        fun: ``fun(x, params_obj)``, a convex quadratic function, instead of ``matvec_Q``.
        **kwargs: The options of :class:`BoxOSQP`.

    Example:
        >>> import torch, torchopt
        >>> Q, c = 2.0 * torch.eye(2), torch.tensor([-2.0, -6.0])
        >>> G, h = torch.tensor([[1.0, 1.0]]), torch.tensor([2.0])
        >>> sol, state = torchopt.OSQP().run(params_obj=(Q, c), params_ineq=(G, h))
        >>> sol.primal.round(decimals=3) + 0.0, sol.dual_ineq.round(decimals=3)
        (tensor([0., 2.]), tensor([2.]))
    """

    matvec_Q: Callable[[Any, Any], Any] | None
    matvec_A: Callable[[Any, Any], Any] | None
    matvec_G: Callable[[Any, Any], Any] | None
    fun: Callable[[Any, Any], Any] | None

    def __init__(
        self,
        *,
        matvec_Q: Callable[[Any, Any], Any] | None = None,
        matvec_A: Callable[[Any, Any], Any] | None = None,
        matvec_G: Callable[[Any, Any], Any] | None = None,
        fun: Callable[[Any, Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.matvec_Q, self.matvec_A, self.matvec_G, self.fun = matvec_Q, matvec_A, matvec_G, fun
        check_objective(fun, matvec_Q)
        self._box = BoxOSQP(**kwargs)
        self.maxiter, self.tol = self._box.maxiter, self._box.tol

    def attribute_names(self) -> tuple[str, ...]:
        """The names of the constructor's arguments."""
        own = tuple(field.name for field in dataclasses.fields(self))
        return own + tuple(name for name in self._box.attribute_names() if name not in own)

    def attribute_values(self) -> tuple[Any, ...]:
        """The values of the constructor's arguments, in the order of :meth:`attribute_names`."""
        return tuple(getattr(self if name in vars(self) else self._box, name) for name in self.attribute_names())

    def init_params(
        self, init_x: Any = None, params_obj: Any = None, params_eq: Any = None, params_ineq: Any = None
    ) -> KKTSolution:
        """Where a run starts: the variables ``init_x``, zeros if None, and multipliers of zero."""
        problem = self._problem(init_x, params_obj, params_eq, params_ineq)
        x = tree.map(torch.zeros_like, problem.x.unpack(problem.c)) if init_x is None else init_x
        dual_eq, dual_ineq = (None if b is None else z.unpack(torch.zeros_like(b)) for b, z in problem.duals)
        return KKTSolution(x, dual_eq, dual_ineq)

    @eager
    def run(
        self, init_params: Any = None, params_obj: Any = None, params_eq: Any = None, params_ineq: Any = None
    ) -> OptStep:
        """Solve a problem.

        Args:
            init_params: Where to start, a ``KKTSolution`` like the result; zeros if None, which needs
                ``params_obj = (Q, c)``.
            params_obj: As in :meth:`BoxOSQP.run`.
            params_eq: ``(A, b)``, a matrix and a vector, or trees of them; ``(params_A, b)`` with ``matvec_A``; None
                for no equations.
            params_ineq: ``(G, h)`` likewise.

        Returns:
            The solution, ``KKTSolution(x, y, lambda)``, and the state of :class:`BoxOSQP`.  Inside transforms of
            ``torch.func``, which return tensors only, ``()`` stands for None.  With ``implicit_diff`` the solution is
            differentiable in all data; the state is not.

        Raises:
            TypeError: If data are not floating.
            ValueError: If there are no constraints, shapes do not match, or :math:`Q` has a negative eigenvalue.
        """
        if params_eq is None and params_ineq is None:
            raise ValueError(
                'params_eq and params_ineq are None; expected constraints. Without them, solve Q x = -c with '
                'torchopt.linear_solve.solve_cholesky.'
            )
        check_kkt(init_params)
        problem = self._problem(None if init_params is None else init_params.primal, params_obj, params_eq, params_ineq)
        start = None if init_params is None else problem.start(init_params)
        found, state = self._box.run(start, (problem.Q, problem.c), problem.rows, problem.bounds)
        state = state._replace(dual_residuals=problem.x.unpack(state.dual_residuals))
        return OptStep(problem.solution(found), state)

    def optimality_fun(
        self, params: KKTSolution, params_obj: Any, params_eq: Any = None, params_ineq: Any = None
    ) -> KKTSolution:
        """The residuals of the optimality conditions, a tree like ``params``; zero at the solution.

        For the arguments see :meth:`run`.
        """
        return self._problem(params.primal, params_obj, params_eq, params_ineq).residual(params)

    def _problem(self, init_x: Any, params_obj: Any, params_eq: Any, params_ineq: Any) -> OneSided:
        return OneSided.of(
            objective_of(params_obj, self.matvec_Q, self.fun, init_x),
            (params_eq, self.matvec_A),
            (params_ineq, self.matvec_G),
        )
