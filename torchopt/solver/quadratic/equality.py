# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs with equations only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import checks
from torchopt.levels import eager, runs_directly
from torchopt.linear_solve import LinearSolveWarning, solve_gmres, solve_iterative_refinement
from torchopt.solver.base import OptStep, Solver
from torchopt.solver.quadratic.problem import OneSided, check_objective, objective_of
from torchopt.solver.quadratic.scaling import product
from torchopt.solver.run import KKTSolution, absent, check_kkt


@dataclasses.dataclass(eq=False)
class EqualityConstrainedQP(Solver):
    r"""Quadratic programs with equations, as one linear system.

    .. math::
        \min_x \; \tfrac12 x^\top Q x + c^\top x \quad \text{subject to} \quad A x = b
        \qquad\Longleftrightarrow\qquad
        \begin{pmatrix} Q & A^\top \\ A & 0 \end{pmatrix} \begin{pmatrix} x \\ y \end{pmatrix}
        = \begin{pmatrix} -c \\ b \end{pmatrix}

    Args:
        matvec_Q: ``matvec_Q(params_Q, x)``, the product of a tree with :math:`Q`; by default ``params_Q`` is a matrix,
            or a tree of matrices.
        matvec_A: ``matvec_A(params_A, x)`` likewise.
        fun: ``fun(x, params_obj)``, a convex quadratic function, instead of ``matvec_Q``.
        solve: The linear solver, ``solve(matvec, b, init=, tol=, maxiter=)``.
        refine_regularization: If positive, the solver sees the matrix with this on its diagonal, negative for the
            multipliers, so that repeated equations do no harm; refinement removes its effect.
        refine_maxiter: The largest number of refinements.
        maxiter: The largest number of iterations of ``solve``.
        tol: Its tolerance.
        implicit_diff_solve: Accepted for code written for JAXopt: the derivative of a linear system is a system of the
            same kind, and ``solve`` solves it.
        jit: Accepted likewise; nothing is compiled.

    Example:
        >>> import torch, torchopt
        >>> Q, c = 2.0 * torch.eye(2), torch.tensor([-2.0, -6.0])
        >>> A, b = torch.tensor([[1.0, 1.0]]), torch.tensor([2.0])
        >>> sol = torchopt.EqualityConstrainedQP().run(params_obj=(Q, c), params_eq=(A, b)).params
        >>> sol.primal.round(decimals=3) + 0.0, sol.dual_eq.round(decimals=3)
        (tensor([0., 2.]), tensor([2.]))
    """

    matvec_Q: Callable[[Any, Any], Any] | None = None
    matvec_A: Callable[[Any, Any], Any] | None = None
    fun: Callable[[Any, Any], Any] | None = None
    solve: Callable[..., Any] = solve_gmres
    refine_regularization: float = 0.0
    refine_maxiter: int = 10
    maxiter: int = 1000
    tol: float = 1e-5
    implicit_diff_solve: Callable[..., Any] | None = None
    jit: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        check_objective(self.fun, self.matvec_Q)
        checks.linear_solver('solve', self.solve)

    @eager
    def run(self, init_params: Any = None, params_obj: Any = None, params_eq: Any = None) -> OptStep:
        """Solve a problem.

        Args:
            init_params: Where the linear solver starts, a ``KKTSolution``; zeros if None, which needs
                ``params_obj = (Q, c)``.
            params_obj: ``(Q, c)``, a matrix and a vector, or trees of them; ``(params_Q, c)`` with ``matvec_Q``;
                anything with ``fun``.
            params_eq: ``(A, b)`` or ``(params_A, b)`` likewise.

        Returns:
            ``KKTSolution(x, y, None)``, differentiable in all data, and None.  Inside transforms of ``torch.func``,
            which return tensors only, ``()`` stands for None.

        Raises:
            TypeError: If data are not floating.
            ValueError: If shapes do not match.

        Warns:
            LinearSolveWarning: If the tolerance was missed, or the equations contradict each other.
        """
        check_kkt(init_params)
        problem = self._problem(init_params, params_obj, params_eq)
        A, (b, z) = problem.parts[0], problem.duals[0]
        assert A is not None

        def matvec(point: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, y = point
            return product(problem.Q, x) + product(A.mT, y), product(A, x)

        def regular(point: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            above, below = matvec(point)
            return above + self.refine_regularization * point[0], below - self.refine_regularization * point[1]

        init = None
        if init_params is not None:
            start = problem.start(init_params)
            init = (start.primal[0], start.dual_eq)
        right = (-problem.c, b)
        if self.refine_regularization == 0.0:
            x, y = self.solve(matvec, right, init=init, tol=self.tol, maxiter=self.maxiter)
        else:

            def rough(matvec: Any, b: Any) -> Any:
                return self.solve(matvec, b, tol=self.tol, maxiter=self.maxiter)

            x, y = solve_iterative_refinement(
                matvec, right, init, self.refine_maxiter, self.tol, rough, matvec_A_bar=regular
            )
        _warn_of_contradictions(A, b, x)
        return OptStep(KKTSolution(problem.x.unpack(x), z.unpack(y), absent()), absent())

    def optimality_fun(self, params: KKTSolution, params_obj: Any, params_eq: Any) -> KKTSolution:
        """The residuals of the linear system, a tree like ``params``; zero at the solution.

        For the arguments see :meth:`run`.
        """
        return self._problem(params, params_obj, params_eq).residual(params)

    def _problem(self, params: Any, params_obj: Any, params_eq: Any) -> OneSided:
        if params_eq is None:
            raise ValueError('params_eq is None; expected a pair (A, b).')
        init_x = None if params is None else params.primal
        objective = objective_of(params_obj, self.matvec_Q, self.fun, init_x)
        return OneSided.of(objective, (params_eq, self.matvec_A), (None, None))


def _warn_of_contradictions(A: Tensor, b: Tensor, x: Tensor) -> None:
    """Warn if no point satisfies the equations to the precision of their dtype, as far as that can be read."""
    if not runs_directly():
        return
    eps = torch.finfo(b.dtype).eps
    A, b, x = (v.detach().double().cpu() for v in (A, b, x))
    missed = torch.linalg.vector_norm(A @ x - b)
    if bool(missed <= eps**0.5 * torch.linalg.vector_norm(b)):
        return
    nearest = torch.linalg.lstsq(A, b.unsqueeze(-1), rcond=eps * max(A.shape), driver='gelsd').solution.squeeze(-1)
    size = torch.linalg.matrix_norm(A) * torch.linalg.vector_norm(nearest) + torch.linalg.vector_norm(b)
    if bool(torch.linalg.vector_norm(A @ nearest - b) > eps**0.5 * size):
        checks.warn(
            f'EqualityConstrainedQP: the equations of params_eq contradict each other: every point misses one of them, '
            f'the result by {missed.item():.3g} in all. Check A and b, or remove equations.',
            LinearSolveWarning,
        )
