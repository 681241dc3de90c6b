# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs whose constraints are two-sided."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchopt import checks
from torchopt.levels import eager, is_readable
from torchopt.scalars import pick
from torchopt.solver import adjoint
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.objective import Vectors
from torchopt.solver.quadratic import admm, loop
from torchopt.solver.quadratic.admm import Iterate, Settings
from torchopt.solver.quadratic.kkt import box_residual, clip, solve_kkt
from torchopt.solver.quadratic.problem import box_of, check_objective, common_dtype, constraints_of, objective_of
from torchopt.solver.quadratic.scaling import BoxQP, Scaled, equilibrate, product
from torchopt.solver.run import KKTSolution, check_kkt, check_start, conclude
from torchopt.solver.status import Status


class BoxOSQPState(NamedTuple):
    r"""The state of :class:`BoxOSQP`.

    Attributes:
        iter_num: The number of steps.
        error: The largest residual, primal or dual, or the gap between the objectives.
        status: How the run ended, a :class:`~torchopt.solver.Status`.
        primal_residuals: :math:`A x - z`.
        dual_residuals: :math:`Q x + c + A^\top y`.
        rho_bar: The weight of the constraints.
        solver_state: The scaled problem and the factor of its matrix, between steps; None after a run.
    """

    iter_num: Any
    error: Any
    status: Any
    primal_residuals: Any
    dual_residuals: Any
    rho_bar: Any
    solver_state: Any


class _Problem(NamedTuple):
    """A problem as matrices, and the structures of its variables and its constraints."""

    qp: BoxQP
    x: Vectors
    z: Vectors

    def start(self, params: Any) -> tuple[Tensor, Tensor, Tensor]:
        """A solution as vectors."""
        (x, z), y = params.primal, params.dual_eq
        dtype = self.qp.c.dtype
        return (
            self.x.pack(x, 'init_params.primal[0]').to(dtype),
            self.z.pack(z, 'init_params.primal[1]').to(dtype),
            self.z.pack(y, 'init_params.dual_eq').to(dtype),
        )

    def solution(self, x: Tensor, z: Tensor, y: Tensor) -> KKTSolution:
        """A solution as a tree, with the multipliers of the upper and the lower bounds."""
        dual = self.z.unpack(y)
        sides = self.z.unpack(torch.relu(y)), self.z.unpack(torch.relu(-y))
        return KKTSolution((self.x.unpack(x), self.z.unpack(z)), dual, sides)


@dataclasses.dataclass(eq=False)
class BoxOSQP(IterativeSolver):
    r"""Operator splitting for convex quadratic programs with two-sided constraints.

    .. math:: \min_{x, z} \; \tfrac12 x^\top Q x + c^\top x \quad \text{subject to} \quad A x = z, \; l \le z \le u

    The Lagrangian has a multiplier :math:`y` for :math:`A x = z`, and :math:`\mu, \phi \ge 0` for the upper and the
    lower bounds; :math:`y = \mu - \phi`.  :meth:`run` returns ``KKTSolution((x, z), y, (mu, phi))``.

    The method is that of OSQP: the problem is equilibrated, steps of the alternating direction method of multipliers
    are over-relaxed, and the weight of the constraints follows the residuals.  From time to time, and at the end,
    Newton's method finishes the solution (polishing), if it can.  The run ends when the residuals of the problem as it
    was given, and the gap between its objectives, are at most ``tol``; or when there is a proof that no point near is
    feasible (``Status.INFEASIBLE``), or that the objective decreases without bound (``Status.UNBOUNDED``).

    Under ``torch.vmap`` each problem ends by itself, and all steps are made for the whole batch at once.

    Args:
        matvec_Q: ``matvec_Q(params_Q, x)``, the product of a tree with :math:`Q`; by default ``params_Q`` is a matrix,
            or a tree of matrices like ``x``, one block for each leaf.
        matvec_A: ``matvec_A(params_A, x)`` likewise.
        fun: ``fun(x, params_obj)``, a convex quadratic function, instead of ``matvec_Q``.
        check_primal_dual_infeasability: Whether to look for proofs of infeasibility; ``'auto'`` means True.
        sigma: The weight that keeps the linear systems regular.
        momentum: The relaxation, between 0 and 2.
        eq_qp_solve: ``'cg'``, ``'cg+jacobi'`` or ``'lu'``.  All are solved by a factorization of the matrix, which
            functions are expanded to.
        rho_start: The first weight of the constraints.
        rho_min: Its least value.
        rho_max: Its largest value.
        stepsize_updates_frequency: The weight may change after every so many steps.
        primal_infeasible_tol: The problem counts as infeasible if no point is feasible whose 1-norm is at most the
            larger of 1 and that of the iterate, divided by this.
        dual_infeasible_tol: The same for the multipliers, which prove that the objective is bounded.
        maxiter: The largest number of steps.
        tol: The tolerance, absolute.
        termination_check_frequency: The error is computed after every so many steps.

    Raises:
        TypeError: When run, if data are not floating.
        ValueError: If an option is out of its range.  When run, if shapes do not match, :math:`l > u` somewhere,
            :math:`Q` has a negative eigenvalue, or data are NaN.

    Example:
        >>> import torch, torchopt
        >>> Q, c = 2.0 * torch.eye(2), torch.tensor([-2.0, -6.0])
        >>> A, l, u = torch.tensor([[1.0, 1.0]]), torch.tensor([0.0]), torch.tensor([2.0])
        >>> params, state = torchopt.BoxOSQP().run(params_obj=(Q, c), params_eq=A, params_ineq=(l, u))
        >>> x, z = params.primal
        >>> x.round(decimals=3) + 0.0, params.dual_eq.round(decimals=3)
        (tensor([0., 2.]), tensor([2.]))

    References:
        Stellato et al., `OSQP: an operator splitting solver for quadratic programs
        <https://doi.org/10.1007/s12532-020-00179-2>`_, 2020.
    """

    matvec_Q: Callable[[Any, Any], Any] | None = None
    matvec_A: Callable[[Any, Any], Any] | None = None
    fun: Callable[[Any, Any], Any] | None = None
    check_primal_dual_infeasability: bool | str = 'auto'
    sigma: float = 1e-6
    momentum: float = 1.6
    eq_qp_solve: str = 'cg'
    rho_start: float = 0.1
    rho_min: float = 1e-6
    rho_max: float = 1e6
    stepsize_updates_frequency: int = 10
    primal_infeasible_tol: float = 1e-3
    dual_infeasible_tol: float = 1e-3
    maxiter: int = 4000
    tol: float = 1e-3
    termination_check_frequency: int = 5

    UNSOLVED: ClassVar[int] = int(Status.RUNNING)
    SOLVED: ClassVar[int] = int(Status.CONVERGED)
    DUAL_INFEASIBLE: ClassVar[int] = int(Status.UNBOUNDED)
    PRIMAL_INFEASIBLE: ClassVar[int] = int(Status.INFEASIBLE)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_objective(self.fun, self.matvec_Q)
        if not isinstance(self.eq_qp_solve, str) or self.eq_qp_solve.lower() not in ('cg', 'cg+jacobi', 'lu'):
            raise ValueError(f"Invalid eq_qp_solve: {self.eq_qp_solve!r}; expected 'cg', 'cg+jacobi' or 'lu'.")
        if not 0.0 < self.momentum < 2.0:
            raise ValueError(f'Invalid momentum: {self.momentum!r}; expected a number between 0 and 2.')
        for name in ('sigma', 'rho_start', 'rho_min', 'rho_max', 'primal_infeasible_tol', 'dual_infeasible_tol'):
            checks.positive(name, getattr(self, name))
        for name in ('stepsize_updates_frequency', 'termination_check_frequency'):
            checks.integer(name, getattr(self, name), 1)
        if self.check_primal_dual_infeasability not in (True, False, 'auto'):
            raise ValueError(
                f'Invalid check_primal_dual_infeasability: {self.check_primal_dual_infeasability!r}; expected True, '
                f"False or 'auto'."
            )

    def init_params(
        self, init_x: Any = None, params_obj: Any = None, params_eq: Any = None, params_ineq: Any = None
    ) -> KKTSolution:
        """Where a run starts; the variables are zeros if ``init_x`` is None, which needs ``params_obj = (Q, c)``."""
        problem = self._problem(init_x, params_obj, params_eq, params_ineq)
        return problem.solution(*self._first(problem, init_x))

    def init_state(self, init_params: KKTSolution, params_obj: Any, params_eq: Any, params_ineq: Any) -> BoxOSQPState:
        """The state before the first step; for the arguments see :meth:`run`."""
        problem = self._problem(init_params.primal[0], params_obj, params_eq, params_ineq)
        loop.check(problem.qp)
        # The scaling is a constant of the method, not a part of what it computes.
        constant = equilibrate(BoxQP(*(v.detach() for v in problem.qp)))
        scaled = constant.of(problem.qp)
        rho = torch.full_like(problem.qp.c[0], self.rho_start)
        primal, dual = problem.qp.residuals(*problem.start(init_params))
        solver_state = (constant[1:], admm.factorize(scaled.qp, rho, self._settings))
        return BoxOSQPState(
            torch.zeros((), dtype=torch.int64, device=rho.device),
            torch.full_like(rho, torch.inf),
            int(Status.RUNNING),
            problem.z.unpack(primal),
            problem.x.unpack(dual),
            rho,
            solver_state,
        )

    def update(
        self, params: KKTSolution, state: BoxOSQPState, params_obj: Any, params_eq: Any, params_ineq: Any
    ) -> OptStep:
        """One step; for the arguments see :meth:`run`."""
        problem, settings = self._problem(params.primal[0], params_obj, params_eq, params_ineq), self._settings
        scales, state_factor = state.solver_state
        scaled = Scaled(problem.qp, *scales).of(problem.qp)
        start = problem.start(params)
        now = admm.step(scaled.qp, state_factor, Iterate(*scaled.scaled(*start)), settings)
        x, z, y = scaled.original(*now)
        error, count = problem.qp.error(x, z, y), state.iter_num + 1

        def adapted() -> tuple[Tensor, admm.Factor]:
            rho = admm.better_rho(scaled.qp, now, state.rho_bar, settings).detach()
            return rho, admm.factorize(scaled.qp, rho, settings)

        is_due = count % settings.rho_every == 0
        rho, factor = state.rho_bar, state_factor
        if not is_readable(is_due) or is_due:
            rho, factor = pick(is_due, adapted(), (rho, factor))
        status = state.status
        if settings.check_infeasible:
            dx, _, dy = (a - b for a, b in zip((x, z, y), start))
            status = admm.with_certificates(problem.qp, (x, y), (dx, dy), status, settings)
            status = torch.where(error <= settings.tol, state.status, status)
        primal, dual = problem.qp.residuals(x, z, y)
        residuals = problem.z.unpack(primal), problem.x.unpack(dual)
        new = BoxOSQPState(count, error, status, *residuals, rho, (scales, factor))
        return OptStep(problem.solution(x, z, y), new)

    @eager
    def run(
        self, init_params: Any = None, params_obj: Any = None, params_eq: Any = None, params_ineq: Any = None
    ) -> OptStep:
        """Solve a problem.

        Args:
            init_params: Where to start, a ``KKTSolution`` like the result; zeros if None, which needs
                ``params_obj = (Q, c)``.
            params_obj: ``(Q, c)``, a matrix and a vector, or trees of them; ``(params_Q, c)`` with ``matvec_Q``;
                anything with ``fun``.  A ``Q`` that is not symmetric counts as its symmetric part.
            params_eq: The matrix ``A``, or a tree of matrices like ``c``; what ``matvec_A`` takes.  The identity if
                None, so that the bounds are those of the variables.
            params_ineq: The bounds ``(l, u)``, each a number or a tree like ``A x``, with infinities where there is no
                bound; None for none.

        Returns:
            The solution, ``KKTSolution((x, z), y, (mu, phi))``, and the state.  With ``implicit_diff`` the solution is
            differentiable in all data; the state is not.
        """
        check_kkt(init_params)
        x = None if init_params is None else init_params.primal[0]
        problem = self._problem(x, params_obj, params_eq, params_ineq)
        if init_params is None:
            start = self._first(problem, None)
        else:
            check_start(init_params)
            start = problem.start(init_params)
        if self.verbose or self.callback is not None or not self.implicit_diff:
            return super().run(problem.solution(*start), params_obj, params_eq, params_ineq)
        return self._run(problem, start)

    def _run(self, problem: _Problem, start: tuple[Tensor, Tensor, Tensor]) -> OptStep:
        """The run as one operator on matrices, and its derivative."""
        qp = problem.qp

        def solved(point: Any, *data: Tensor) -> tuple[Any, Any]:
            end = loop.solve(BoxQP(*data), point, self._settings)
            return (end.x, end.y), end

        (x, y), end = adjoint.implicit(
            solved,
            box_residual,
            box_residual,
            solve_kkt if self.implicit_diff_solve is None else self.implicit_diff_solve,
            ((start[0], start[2]), *qp),
            {},
        )
        Ax = product(qp.A, x)
        # Within the bounds, with the derivative of A x.
        z = end.z.detach() + (Ax - Ax.detach())
        primal, dual = BoxQP(*(v.detach() for v in qp)).residuals(end.x, end.z, end.y)
        residuals = problem.z.unpack(primal), problem.x.unpack(dual)
        state = BoxOSQPState(end.iter_num, end.error, end.status, *residuals, end.rho_bar, None)
        return conclude(OptStep(problem.solution(x, z, y), state), self.tol)

    def optimality_fun(self, params: KKTSolution, params_obj: Any, params_eq: Any, params_ineq: Any) -> KKTSolution:
        """The residuals of the optimality conditions, a tree like ``params``; zero at the solution.

        For the arguments see :meth:`run`.
        """
        problem = self._problem(params.primal[0], params_obj, params_eq, params_ineq)
        x, z, y = problem.start(params)
        stationarity, feasibility = box_residual((x, y), *problem.qp)
        sides = (problem.z.pack(side, 'params.dual_ineq') for side in params.dual_ineq)
        upper, lower = (side - torch.relu(sign * y) for side, sign in zip(sides, (1.0, -1.0)))
        z_residual = product(problem.qp.A, x) - z
        return KKTSolution(
            (problem.x.unpack(stationarity), problem.z.unpack(z_residual)),
            problem.z.unpack(feasibility),
            (problem.z.unpack(upper), problem.z.unpack(lower)),
        )

    @property
    def _settings(self) -> Settings:
        return Settings(
            self.sigma,
            self.momentum,
            self.rho_start,
            self.rho_min,
            self.rho_max,
            self.primal_infeasible_tol,
            self.dual_infeasible_tol,
            float(self.tol),
            self.maxiter,
            self.stepsize_updates_frequency,
            self.termination_check_frequency,
            self.check_primal_dual_infeasability in (True, 'auto'),
        )

    def _problem(self, init_x: Any, params_obj: Any, params_eq: Any, params_ineq: Any) -> _Problem:
        Q, c, x = objective_of(params_obj, self.matvec_Q, self.fun, init_x)
        A, z = constraints_of(params_eq, self.matvec_A, x, 'params_eq')
        return _Problem(BoxQP(*common_dtype(Q, c, A, *box_of(params_ineq, z))), x, z)

    @staticmethod
    def _first(problem: _Problem, init_x: Any) -> tuple[Tensor, Tensor, Tensor]:
        qp = problem.qp
        x = torch.zeros_like(qp.c) if init_x is None else problem.x.pack(init_x, 'init_x').to(qp.c.dtype)
        z = clip(product(qp.A, x), qp.l, qp.u)
        return x, z, torch.zeros_like(z)
