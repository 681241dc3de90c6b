# SPDX-License-Identifier: Apache-2.0
"""L-BFGS: a descent whose direction comes from the last few steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.solver.descent import DescentSolver, Work
from torchopt.solver.linesearch import LineSearch
from torchopt.solver.memory import Memory, Pair, Rows, Window
from torchopt.solver.objective import Vectors
from torchopt.solver.problem import HostProblem, Problem
from torchopt.solver.run import params_of


@tree.safe_to_load
class LbfgsState(NamedTuple):
    """State of :class:`LBFGS`.

    Attributes:
        iter_num: The number of steps.
        value: The objective.
        grad: The gradient.
        stepsize: The last step size.  The first step of a run goes along the negative gradient; if products of the
            gradient would leave the range of its dtype, along a multiple of it, of which this is the factor.
        error: The Euclidean norm of the gradient.
        s_history: The last differences of parameters, stacked in a new first dimension: the row of step ``k`` is
            ``k % history_size``.
        y_history: The last differences of gradients, likewise.
        rho_history: One over the inner product of each pair; zero where there is none.
        gamma: The scale of the inverse Hessian.
        aux: The auxiliary output of the objective.
        failed_linesearch: Whether the last line search failed.
        num_fun_eval: The number of evaluations of the objective.
        num_grad_eval: The number of evaluations of the gradient.
        num_linesearch_iter: The number of steps of the line searches.
        status: How the run ended; see :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    value: Any
    grad: Any
    stepsize: Any
    error: Any
    s_history: Any
    y_history: Any
    rho_history: Any
    gamma: Any
    aux: Any = None
    failed_linesearch: Any = False
    num_fun_eval: Any = 0
    num_grad_eval: Any = 0
    num_linesearch_iter: Any = 0
    status: Any = 0


def as_rings(rows: Rows, count: Any, vectors: Vectors) -> tuple[Any, Any, Tensor]:
    """The pairs as trees, and the weights, each row at the place of its step."""
    size = len(rows.weights)
    order = (torch.arange(size, device=rows.s.device) - count) % max(size, 1)
    s, y, weights = (x.index_select(0, order) for x in rows[:3])
    return vectors.unpack(s), vectors.unpack(y), weights


def from_rings(s: Any, y: Any, weights: Tensor, count: Any, vectors: Vectors, gamma: Any, scaled: bool) -> Rows:
    """The pairs of a state from the oldest to the newest."""
    size = len(weights)
    order = (torch.arange(size, device=weights.device) + count) % max(size, 1)
    s, y, weights = (x.index_select(0, order) for x in (vectors.pack_rows(s), vectors.pack_rows(y), weights))
    return Rows(s, y, weights, gamma, scaled)


@dataclasses.dataclass(eq=False)
class LBFGS(DescentSolver[Memory]):
    r"""Minimize a smooth function by the limited-memory BFGS method.

    .. math:: w_{k+1} = w_k - \eta_k H_k \nabla f(w_k)

    The inverse Hessian :math:`H_k` comes from the differences of parameters and gradients of the last steps; see
    :mod:`torchopt.quasi_newton`.  A pair without positive curvature is skipped; then the oldest pair is dropped too,
    and the scale grows.  Where a line search fails, the memory is cleared; the run ends with ``Status.STALLED`` if the
    steepest descent fails too.

    Args:
        fun: The objective, ``fun(params, *args, **kwargs)``.
        value_and_grad: Whether ``fun`` returns the value and the gradient; or a function that does.
        has_aux: Whether ``fun`` returns ``(value, aux)``; the last auxiliary output is ``state.aux``.
        maxiter: The largest number of steps.
        tol: The run ends when the Euclidean norm of the gradient is at most this.
        stepsize: A constant step size, or a function of the number of the step; if it is at most 0, there is a line
            search.
        linesearch: ``'zoom'``, ``'backtracking'``, ``'hager-zhang'``, or an instance of a line search.
        linesearch_init: The step size with which a search begins: ``'increase'`` takes the last one times
            ``increase_factor``, ``'current'`` the last one, ``'max'`` always ``max_stepsize``.  The first is at most
            one over the norm of the gradient.
        stop_if_linesearch_fails: Whether the run ends with the first search that fails.
        condition: Deprecated, without effect.
        maxls: The largest number of steps of a search.
        decrease_factor: Deprecated, without effect.
        increase_factor: The factor of ``'increase'``.
        max_stepsize: The largest step size.
        min_stepsize: A step size that is not larger is followed by ``max_stepsize``.
        history_size: The number of pairs, at least 0.
        use_gamma: Whether the newest pair scales the inverse Hessian.

    Example:
        >>> import torch, torchopt
        >>> def rosenbrock(x):
        ...     return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()
        >>> solver = torchopt.LBFGS(rosenbrock, tol=1e-6)
        >>> params, state = solver.run(torch.zeros(4, dtype=torch.float64))
        >>> params, torchopt.solver.Status(int(state.status)).name
        (tensor([1.0000, 1.0000, 1.0000, 1.0000], dtype=torch.float64), 'CONVERGED')

    References:
        Liu and Nocedal, `On the limited memory BFGS method for large scale optimization
        <https://doi.org/10.1007/BF01589116>`_, 1989.
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    maxiter: int = 500
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
    history_size: int = 10
    use_gamma: bool = True

    continues_from: ClassVar[tuple[type, ...]] = (LbfgsState,)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        checks.integer('history_size', self.history_size, 0)

    works_on_batches = True

    def _running_problem(self, init_params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """On arrays where that is possible."""
        params = params_of(init_params)
        if HostProblem.fits(params):
            return HostProblem(self._objective, params, args, kwargs)
        return super()._running_problem(init_params, args, kwargs)

    def _empty(self, gradient: Any) -> Memory:
        if isinstance(gradient, np.ndarray):
            return Window(gradient, self.history_size, self.use_gamma)
        return Rows.empty(gradient, self.history_size, self.use_gamma)

    def _direction(self, memory: Memory, problem: Problem, x: Tensor, gradient: Tensor) -> Tensor:
        return -memory.product(gradient)

    def _remember(self, memory: Memory, x: Pair, gradient: Pair, direction: Tensor, moved: Any) -> Memory:
        return memory.remember(x, gradient, moved)

    def _is_empty(self, memory: Memory) -> Any:
        return memory.is_empty

    def _is_steepest(self, memory: Memory) -> Any:
        return memory.has_no_pairs

    def _forget(self, memory: Memory, gradient: Tensor, test: Any) -> Memory:
        return memory.cleared(test)

    def _as_state(self, work: Work, problem: Problem) -> LbfgsState:
        vectors, rows = problem.vectors, work.memory.rows().of_multiple(problem.number(problem.unit))
        rings = as_rings(rows, work.iter_num, vectors)
        gradient = vectors.unpack(work.grad)
        begin = (work.iter_num, work.value, gradient, work.stepsize, work.error)
        return LbfgsState(*begin, *rings, rows.gamma, *work[6:])

    def _as_memory(self, state: LbfgsState, vectors: Vectors, gradient: Tensor) -> Memory:
        rows = from_rings(
            state.s_history, state.y_history, state.rho_history, state.iter_num, vectors, state.gamma, self.use_gamma
        )
        return Window.of(rows, gradient) if isinstance(gradient, np.ndarray) else rows
