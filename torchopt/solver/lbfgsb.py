# SPDX-License-Identifier: Apache-2.0
"""L-BFGS-B: L-BFGS with a lower and an upper bound for each parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.dtypes import widened
from torchopt.levels import is_readable
from torchopt.numerics import as_scalar_like
from torchopt.scalars import where
from torchopt.solver.bounds import bounds_like
from torchopt.solver.cauchy import Model, box_step, finite_slopes
from torchopt.solver.descent import DescentSolver, Work
from torchopt.solver.lbfgs import as_rings, from_rings
from torchopt.solver.linesearch import LineSearch
from torchopt.solver.memory import Pair, Rows
from torchopt.solver.objective import Objective, Vectors
from torchopt.solver.problem import Problem
from torchopt.solver.run import params_of
from torchopt.solver.status import Status


@tree.safe_to_load
class LbfgsbState(NamedTuple):
    """State of :class:`LBFGSB`; the other fields are those of :class:`~torchopt.solver.lbfgs.LbfgsState`.

    Attributes:
        error: The largest element of :math:`|P(w - g) - w|`.
        s_history: The last differences of parameters, stacked in a new first dimension: the row of pair ``k`` is
            ``k % history_size``.
        y_history: The last differences of gradients, likewise.
        theta: The scale of the Hessian.
        num_updates: The number of pairs so far.
    """

    iter_num: Any
    value: Any
    grad: Any
    stepsize: Any
    error: Any
    s_history: Any
    y_history: Any
    theta: Any
    num_updates: Any
    aux: Any = None
    failed_linesearch: Any = False
    num_fun_eval: Any = 0
    num_grad_eval: Any = 0
    num_linesearch_iter: Any = 0
    status: Any = 0


class _Pairs(NamedTuple):
    """The pairs, and how many there were so far."""

    rows: Rows
    count: Any


class _BoxProblem(Problem):
    """An objective within bounds, which hold exactly at every evaluation."""

    def __init__(
        self, objective: Objective, params: Any, bounds: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        super().__init__(objective, params, args, kwargs)
        self.lower, self.upper = (self.vectors.pack(x, 'a bound') for x in bounds_like(bounds, params))
        self.is_boxed = (torch.isfinite(self.lower) & torch.isfinite(self.upper)).all()
        crossing = (self.lower > self.upper).any()  # bounds of a batch, or an error was raised
        if not is_readable(crossing):
            self.first_status = where(crossing, int(Status.INFEASIBLE), int(Status.RUNNING))

    def move(self, x: Tensor, stepsize: Any, direction: Tensor) -> Tensor:
        """The point at a step size along a direction, within the bounds."""
        return torch.clamp(x + as_scalar_like(stepsize, direction) * direction, self.lower, self.upper)

    def steepest(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The way to the projection of a step along the negative gradient."""
        # Not P(x - g) - x, where rounding hides a gradient that is small beside the parameters.
        return torch.clamp(-gradient, self.lower - x, self.upper - x)

    def slope(self, gradient: Tensor, direction: Tensor) -> Any:
        """The slope of the objective along a direction."""
        return finite_slopes(gradient) @ direction

    def error(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The largest element of this way."""
        way = self.steepest(x, self.original(gradient))
        return torch.linalg.vector_norm(way, ord=torch.inf) if len(way) else way.sum()

    def start(self, params: Any) -> Tensor:
        """The projection of the first parameters."""
        return torch.clamp(super().start(params), self.lower, self.upper)


@dataclasses.dataclass(eq=False)
class LBFGSB(DescentSolver[_Pairs]):
    r"""Minimize a smooth function within bounds by the L-BFGS-B method.

    .. math:: \min_w f(w) \quad \text{subject to} \quad l \le w \le u

    ``run(init_params, bounds, *args)`` takes the bounds ``(lower, upper)`` after the parameters: trees like the
    parameters, whose leaves may be numbers; or single numbers; None where there are none.  They hold exactly at every
    evaluation of ``fun``; a start outside is projected first.  Each step goes toward the minimum of a quadratic model
    within the bounds; see :mod:`torchopt.solver.cauchy`.

    The arguments are those of :class:`LBFGS`, and:

    Args:
        theta: The scale of the first Hessian; with ``use_gamma`` the pairs scale the following ones.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.LBFGSB(lambda x: ((x - 3.0) ** 2).sum())
        >>> lower, upper = torch.zeros(3), torch.tensor([1.0, 2.0, 9.0])
        >>> solver.run(torch.zeros(3), (lower, upper)).params
        tensor([1., 2., 3.])

    References:
        Byrd, Lu, Nocedal and Zhu, `A limited memory algorithm for bound constrained optimization
        <https://doi.org/10.1137/0916069>`_, 1995.  Morales and Nocedal, `Remark on Algorithm 778
        <https://doi.org/10.1145/2049662.2049669>`_, 2011.
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    maxiter: int = 50
    tol: float = 1e-3
    stepsize: float | Callable[[Any], Any] = 0.0
    linesearch: str | LineSearch = 'zoom'
    linesearch_init: str = 'max'
    stop_if_linesearch_fails: bool = False
    condition: Any = None
    maxls: int = 30
    decrease_factor: Any = None
    increase_factor: float = 1.5
    max_stepsize: float = 1.0
    min_stepsize: float = 1e-6
    theta: float = 1.0
    history_size: int = 10
    use_gamma: bool = True

    error_name = 'Projected Gradient Norm'
    second_argument = 'bounds'

    continues_from: ClassVar[tuple[type, ...]] = (LbfgsbState,)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        checks.positive('theta', self.theta)
        checks.integer('history_size', self.history_size, 1)

    def optimality_fun(self, sol: Any, bounds: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The way from a point to the projection of a step along the negative gradient, :math:`P(w - g) - w`."""
        sol = params_of(sol)
        problem = self._problem(sol, (bounds, *args), kwargs)
        x = problem.vectors.pack(sol)
        return problem.vectors.unpack(problem.steepest(x, problem(x)[1]))

    def _problem(self, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        kwargs = dict(kwargs)
        bounds, *args = (kwargs.pop('bounds'), *args) if 'bounds' in kwargs else args or (None,)  # type: ignore[assignment]
        return _BoxProblem(self._objective, params, bounds, tuple(args), kwargs)

    def _empty(self, gradient: Tensor) -> _Pairs:
        return _Pairs(Rows.empty(gradient, self.history_size, self.use_gamma), 0)

    def _direction(self, memory: _Pairs, problem: Problem, x: Tensor, gradient: Tensor) -> Tensor:
        assert isinstance(problem, _BoxProblem)
        # In float32 at least: matrices of half precision have no inverse.
        lower, upper = widened(problem.lower), widened(problem.upper)
        rows, start = Rows(*map(widened, memory.rows)), widened(x)
        target = box_step(start, widened(gradient), lower, upper, Model.of(rows, self.theta / rows.gamma))
        return (target - start).to(x.dtype)

    def _remember(self, memory: _Pairs, x: Pair, gradient: Pair, direction: Tensor, moved: Any) -> _Pairs:
        rows = memory.rows.remember(x, (finite_slopes(gradient[0]), finite_slopes(gradient[1])), moved)
        changed = (rows.weights[-1] != memory.rows.weights[-1]) | (rows.s[-1] != memory.rows.s[-1]).any()
        grew = (rows.weights[-1] != 0) & changed
        return _Pairs(rows, memory.count + where(grew, 1, 0))

    def _is_empty(self, memory: _Pairs) -> Any:
        return memory.rows.is_empty

    def _is_steepest(self, memory: _Pairs) -> Any:
        return memory.rows.has_no_pairs

    def _forget(self, memory: _Pairs, gradient: Tensor, test: Any) -> _Pairs:
        return _Pairs(memory.rows.cleared(test), memory.count)

    def _as_state(self, work: Work, problem: Problem) -> LbfgsbState:
        vectors, count = problem.vectors, work.memory.count
        rows = work.memory.rows.of_multiple(problem.unit)
        s, y, _ = as_rings(rows, count, vectors)
        begin = (work.iter_num, work.value, vectors.unpack(work.grad), work.stepsize, work.error)
        return LbfgsbState(*begin, s, y, self.theta / rows.gamma, count, *work[6:])

    def _as_memory(self, state: LbfgsbState, vectors: Vectors, gradient: Tensor) -> _Pairs:
        s, y = vectors.pack_rows(state.s_history), vectors.pack_rows(state.y_history)
        product = (s * y).sum(-1)
        weights = torch.where(product > 0, 1.0 / torch.where(product > 0, product, 1.0), 0.0)
        count, gamma = state.num_updates, self.theta / state.theta
        rows = from_rings(state.s_history, state.y_history, weights, count, vectors, gamma, self.use_gamma)
        return _Pairs(rows, count)
