# SPDX-License-Identifier: Apache-2.0
"""Coordinate descent for quadratic programs in a box."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.levels import eager, is_readable
from torchopt.solver import adjoint
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.objective import Vectors
from torchopt.solver.quadratic.kkt import clip, solve_kkt
from torchopt.solver.quadratic.loop import check
from torchopt.solver.quadratic.problem import box_of, common_dtype, objective_of
from torchopt.solver.quadratic.scaling import BoxQP, product
from torchopt.solver.run import check_start, conclude
from torchopt.solver.status import Status


class BoxCDQPState(NamedTuple):
    """The state of :class:`BoxCDQP`.

    Attributes:
        iter_num: The number of passes over the variables.
        error: The sum of the absolute changes in the last pass.
        status: How the run ended, a :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    error: Any
    status: Any


@dataclasses.dataclass(eq=False)
class BoxCDQP(IterativeSolver):
    r"""Coordinate descent for convex quadratic programs in a box.

    .. math:: \min_x \; \tfrac12 x^\top Q x + c^\top x \quad \text{subject to} \quad l \le x \le u

    A step minimizes over each variable in turn.  Along a variable with :math:`Q_{ii} = 0` the objective is linear, and
    the variable goes to the bound that its slope points to.

    Under ``torch.vmap`` each problem ends by itself, and all steps are made for the whole batch at once.

    Args:
        maxiter: The largest number of passes over all variables.
        tol: The run ends when the variables changed by no more than this in a pass, absolute values added.

    Raises:
        TypeError: When run, if data are not floating.
        ValueError: When run, if shapes do not match, :math:`l > u` somewhere, :math:`Q` has a negative eigenvalue, or
            data are NaN.

    Example:
        >>> import torch, torchopt
        >>> Q, c = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([-3.0, 1.0])
        >>> solver = torchopt.BoxCDQP()
        >>> solver.run(torch.zeros(2), params_obj=(Q, c), params_ineq=(0.0, 1.0)).params
        tensor([1., 0.])
    """

    maxiter: int = 500
    tol: float = 1e-4

    def init_state(self, init_params: Any, params_obj: Any = None, params_ineq: Any = None) -> BoxCDQPState:
        """The state before the first step; for the arguments see :meth:`run`."""
        error = torch.tensor(torch.inf)
        if params_obj is not None:
            qp = self._problem(params_obj, params_ineq)[0]
            check(qp)
            error = torch.full_like(qp.c[0], torch.inf)
        return BoxCDQPState(torch.zeros((), dtype=torch.int64), error, 0)

    def update(self, params: Any, state: BoxCDQPState, params_obj: Any, params_ineq: Any) -> OptStep:
        """One pass over all variables; for the arguments see :meth:`run`."""
        qp, vectors = self._problem(params_obj, params_ineq)
        x = vectors.pack(params, 'params').to(qp.c.dtype)
        x, _, error = _Coordinates.of(qp.Q, qp.l, qp.u).sweep(x, qp.Q @ x + qp.c)
        status = torch.where(x.isinf().any(), int(Status.UNBOUNDED), state.status)
        return OptStep(vectors.unpack(x), BoxCDQPState(state.iter_num + 1, error, status))

    @eager
    def run(self, init_params: Any, params_obj: Any = None, params_ineq: Any = None) -> OptStep:
        """Solve a problem.

        Args:
            init_params: Where to start, like ``c``; zeros if None.
            params_obj: ``(Q, c)``, a matrix and a vector, or trees of them.
            params_ineq: The bounds ``(l, u)``, each a number or a tree like ``c``, with infinities where there is none.

        Returns:
            The solution, differentiable in all data with ``implicit_diff``, and the state.
        """
        qp, vectors = self._problem(params_obj, params_ineq)
        x = torch.zeros_like(qp.c)
        if init_params is not None:
            check_start(init_params)
            x = vectors.pack(init_params, 'init_params').to(qp.c.dtype)
        if self.verbose or self.callback is not None or not self.implicit_diff:
            return super().run(vectors.unpack(x), params_obj, params_ineq)

        def solved(x: Tensor, *data: Tensor) -> tuple[Tensor, BoxCDQPState]:
            tol = float(self.tol)
            x, count, error = _descend(*data, x, tol, self.maxiter)
            return x, BoxCDQPState(count, error, torch.where(x.isinf().any(), int(Status.UNBOUNDED), 0))

        solve = solve_kkt if self.implicit_diff_solve is None else self.implicit_diff_solve
        x, state = adjoint.implicit(solved, _residual, _residual, solve, (x, qp.Q, qp.c, qp.l, qp.u), {})
        return conclude(OptStep(vectors.unpack(x), state), self.tol)

    def optimality_fun(self, sol: Any, params_obj: Any, params_ineq: Any) -> Any:
        r"""The residual :math:`\operatorname{clip}(x - Q x - c,\, l,\, u) - x`, zero at the solution.

        For the arguments see :meth:`run`.
        """
        qp, vectors = self._problem(params_obj, params_ineq)
        x = vectors.pack(sol, 'sol').to(qp.c.dtype)
        return vectors.unpack(_residual(x, qp.Q, qp.c, qp.l, qp.u))

    @staticmethod
    def _problem(params_obj: Any, params_ineq: Any) -> tuple[BoxQP, Vectors]:
        Q, c, x = objective_of(params_obj, None, None)
        l, u = box_of(params_ineq, x)
        Q, c, l, u = common_dtype(Q, c, l, u)
        return BoxQP(Q, c, torch.zeros_like(Q[..., :0, :]), l, u), x


def _residual(x: Tensor, Q: Tensor, c: Tensor, l: Tensor, u: Tensor) -> Tensor:
    return clip(x - product(Q, x) - c, l, u) - x


class _Coordinates(NamedTuple):
    """A problem with its coordinates in front and its batch behind, so that those of a batch are neighbours."""

    Q: Tensor
    l: Tensor
    u: Tensor
    factor: Tensor
    linear: Tensor | None

    @classmethod
    def of(cls, Q: Tensor, l: Tensor, u: Tensor) -> _Coordinates:
        curvature = Q.diagonal(dim1=0, dim2=1).movedim(-1, 0)
        linear = curvature <= 0
        factor = torch.where(linear, 1.0, curvature).reciprocal()
        return cls(Q, l, u, factor, linear if not is_readable(linear) or bool(linear.any()) else None)

    def part(self, rows: Tensor) -> _Coordinates:
        """Some of the problems of a batch."""
        linear = None if self.linear is None else self.linear[..., rows]
        Q, l, u, factor = (v[..., rows] for v in (self.Q, self.l, self.u, self.factor))
        return _Coordinates(Q, l, u, factor, linear)

    def sweep(self, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Minimize over each variable in turn; the new variables, their slopes, and the sum of their changes."""
        new, changes = [], []
        for i, start in enumerate(x.unbind(0)):
            goal = start - slope[i] * self.factor[i]
            if self.linear is not None:
                downhill = torch.where(slope[i] > 0, self.l[i], torch.where(slope[i] < 0, self.u[i], start))
                goal = torch.where(self.linear[i], downhill, goal)
            new.append(clip(goal, self.l[i], self.u[i]))
            changes.append(new[i] - start)
            slope = torch.addcmul(slope, self.Q[i], changes[i])
        return torch.stack(new), slope, torch.stack(changes).abs().sum(0)


@torch.library.custom_op(
    'torchopt::box_coordinate_descent',
    mutates_args=(),
    schema='(Tensor Q, Tensor c, Tensor l, Tensor u, Tensor x, float tol, int maxiter) -> (Tensor, Tensor, Tensor)',
)
def _descend(
    Q: Tensor, c: Tensor, l: Tensor, u: Tensor, x: Tensor, tol: float, maxiter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Many problems at once, each to its own end."""
    check(BoxQP(Q, c, Q[..., :0, :], l, u))
    batch = c.shape[:-1]
    Q, c, l, u, x = (v.reshape((-1, *v.shape[len(batch) :])) for v in (Q, c, l, u, x))
    x = clip(x, l, u)
    slope = (product(Q, x) + c).mT.contiguous()
    end, counts = x.clone(), torch.full(x.shape[:1], maxiter, device=x.device)
    errors = torch.full_like(counts, torch.inf, dtype=x.dtype)
    problems = _Coordinates.of(Q.movedim(0, -1).contiguous(), l.mT.contiguous(), u.mT.contiguous())
    x, alive = x.mT.contiguous(), torch.arange(len(x), device=x.device)
    running = torch.ones_like(alive, dtype=torch.bool)
    with torch.no_grad():
        for count in range(1, maxiter + 1):
            x, slope, error = problems.sweep(x, slope)
            done = running & (~((error > tol) & error.isfinite()) | (count == maxiter))
            if not bool(done.any()):
                continue
            rows = alive[done]
            end[rows], errors[rows], counts[rows] = x[:, done].mT, error[done], count
            running = running & ~done
            left = int(running.sum())
            if left == 0:
                break
            # The batch is made smaller where that pays for the copies.
            if 2 * left < len(running):
                problems = problems.part(running)
                x, slope, alive, running = x[:, running], slope[:, running], alive[running], running[running]
    return end.reshape((*batch, -1)), counts.reshape(batch), errors.reshape(batch)


@_descend.register_fake
def _(Q: Tensor, c: Tensor, l: Tensor, u: Tensor, x: Tensor, tol: float, maxiter: int) -> tuple[Tensor, Tensor, Tensor]:
    one = c.new_empty(c.shape[:-1])
    return torch.empty_like(x), one.to(torch.int64), one


@_descend.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    *tensors, tol, maxiter = args
    size = info.batch_size
    moved = [v.expand(size, *v.shape) if d is None else v.movedim(d, 0) for v, d in zip(tensors, in_dims)]
    return _descend(*moved, tol, maxiter), (0, 0, 0)
