# SPDX-License-Identifier: Apache-2.0
r"""Descent: a direction from the gradients, and a search along it.

.. math:: w_{k+1} = w_k + \eta_k d_k, \qquad \langle d_k, \nabla f(w_k) \rangle < 0

The methods differ in the direction only: L-BFGS, BFGS and nonlinear conjugate gradients are this loop with another
memory.  A run works on vectors; trees are flattened once.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from torchopt import checks
from torchopt.linesearch import Point, choose
from torchopt.scalars import negated, numbers, pick, settled, where
from torchopt.solver.arguments import check_state
from torchopt.solver.base import IterativeSolver, SmoothSolver
from torchopt.solver.linesearch import BacktrackingLineSearch, HagerZhangLineSearch, LineSearch, ZoomLineSearch
from torchopt.solver.memory import Pair
from torchopt.solver.objective import Objective, Vectors
from torchopt.solver.problem import BatchProblem, Problem
from torchopt.solver.run import OptStep, Task, as_tensors, check_start, params_of
from torchopt.solver.status import Status
from torchopt.solver.unbounded import has_no_bound

_Memory = TypeVar('_Memory')


class Work(NamedTuple):
    """The state of a descent while it works: vectors and numbers.

    The fields that begin with ``num_`` count evaluations of the value, of the gradient, and steps of the line search.
    """

    iter_num: Any
    value: Any
    grad: Tensor
    stepsize: Any
    error: Any
    memory: Any
    aux: Any
    failed_linesearch: Any
    num_fun_eval: Any
    num_grad_eval: Any
    num_linesearch_iter: Any
    status: Any


def _linesearch_of(
    linesearch: str | LineSearch, fun: Callable[..., Any], maxiter: int, max_stepsize: Any, of_zoom: Mapping[str, Any]
) -> LineSearch:
    """The line search of a solver by its name; an instance is returned as it is."""
    if isinstance(linesearch, LineSearch):
        return linesearch
    if linesearch == 'zoom':
        return ZoomLineSearch(fun, maxiter=maxiter, max_stepsize=max_stepsize, **of_zoom)
    if linesearch == 'backtracking':
        return BacktrackingLineSearch(fun, maxiter=maxiter, max_stepsize=max_stepsize)
    if linesearch == 'hager-zhang':
        return HagerZhangLineSearch(fun, maxiter=maxiter)
    raise ValueError(
        f"Invalid linesearch: {linesearch!r}; expected 'zoom', 'backtracking', 'hager-zhang', or an instance of a line "
        'search.'
    )


def first_stepsize(strategy: str, stepsize: Any, largest: Any, smallest: Any, factor: Any) -> Any:
    """The step size with which a line search begins, from the last one."""
    if strategy == 'max':
        return largest
    if strategy == 'current':
        return stepsize
    return where(stepsize <= smallest, largest, stepsize * factor)


@dataclasses.dataclass(eq=False, kw_only=True)
class DescentSolver(SmoothSolver, IterativeSolver, abc.ABC, Generic[_Memory]):
    """A descent; a subclass is a dataclass with JAXopt's arguments, and defines the direction."""

    error_name = 'Gradient Norm'
    problem_function = 'fun'
    zoom_options: ClassVar[Mapping[str, Any]] = {}
    """The options of the search named ``'zoom'`` that differ from its defaults."""

    works_on_batches: ClassVar[bool] = False
    """Whether the memory may be one for the columns of :class:`~torchopt.solver.problem.BatchProblem`."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        options: Any = self
        self._objective = Objective(options.fun, options.value_and_grad, options.has_aux)
        if options.linesearch_init not in ('max', 'current', 'increase'):
            raise ValueError(
                f"Invalid linesearch_init: {options.linesearch_init!r}; expected 'increase', 'max' or 'current'."
            )
        for name in ('condition', 'decrease_factor'):
            if getattr(self, name, None) is not None:
                checks.deprecated(f'{name} has no effect; pass an instance of BacktrackingLineSearch as linesearch.')
        self._search: LineSearch = _linesearch_of(
            options.linesearch, options.fun, options.maxls, options.max_stepsize, self.zoom_options
        )
        stepsize = getattr(self, 'stepsize', 0.0)
        self._stepsize = stepsize if checks.is_schedule(stepsize) or stepsize > 0 else None

    def _problem(self, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """The objective as a function of vectors."""
        return Problem(self._objective, params, args, kwargs)

    def _running_problem(self, init_params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """The objective as a run works with it; a method that works on arrays too overrides it."""
        options: Any = self
        plain = not isinstance(init_params, OptStep) and not callable(self._stepsize)
        if plain and self.works_on_batches and not isinstance(options.tol, Tensor) and BatchProblem.fits(init_params):
            return BatchProblem(self._objective, init_params, args, kwargs, self.tol)
        return self._problem(params_of(init_params), args, kwargs)

    @abc.abstractmethod
    def _empty(self, gradient: Tensor) -> Any:
        """The memory at the start."""

    @abc.abstractmethod
    def _direction(self, memory: Any, problem: Problem, x: Tensor, gradient: Tensor) -> Tensor:
        """The direction in which to search."""

    @abc.abstractmethod
    def _remember(self, memory: Any, x: Pair, gradient: Pair, direction: Tensor, moved: Any) -> Any:
        """The memory after a step; ``x`` and ``gradient`` hold two values each.  It is unchanged if nothing moved."""

    @abc.abstractmethod
    def _is_empty(self, memory: Any) -> Any:
        """Whether nothing is known of the scale: the direction is the negative gradient."""

    def _is_steepest(self, memory: Any) -> Any:
        """Whether the direction is a multiple of that of steepest descent."""
        return self._is_empty(memory)

    def _last_stepsize(self, work: Work, slope: Any) -> Any:
        """The last step size, to begin the search along a direction of this slope with."""
        return work.stepsize

    @abc.abstractmethod
    def _forget(self, memory: Any, gradient: Tensor, test: Any) -> Any:
        """The memory at the start once more, if a test holds."""

    @abc.abstractmethod
    def _as_state(self, work: Work, problem: Problem) -> Any:
        """The state as users see it, whose memory is that of the objective itself."""

    @abc.abstractmethod
    def _as_memory(self, state: Any, vectors: Vectors, gradient: Tensor) -> Any:
        """The memory of a state."""

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> Any:
        """The state before the first step; with an :class:`OptStep`, the memory of its state is kept."""
        check_start(init_params)
        problem = self._problem(params_of(init_params), args, kwargs)
        params = params_of(init_params)
        return as_tensors(self._as_state(self._begin(init_params, problem, False)[1], problem), params)

    def update(self, params: Any, state: Any, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        check_state(state)
        params = params_of(params)
        problem = self._problem(params, args, kwargs)
        x, gradient = problem.vectors.pack(params), problem.vectors.pack(state.grad)
        memory = self._as_memory(state, problem.vectors, gradient)
        fields = {name: getattr(state, name) for name in Work._fields if hasattr(state, name)}
        value, stepsize, error = numbers(state.value, state.stepsize, state.error)
        fields = {'failed_linesearch': False, **fields, 'grad': gradient, 'memory': memory}
        fields.update(value=value, stepsize=stepsize, error=error)
        x, work = self._step(problem, OptStep(x, Work(**fields)))
        return OptStep(problem.vectors.unpack(x), as_tensors(self._as_state(work, problem), params))

    def task(self, init_params: Any, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, on vectors."""
        problem = self._running_problem(init_params, args, kwargs)
        with problem.arithmetic():
            start = self._begin(init_params, problem, True)

        def step(last: OptStep) -> OptStep:
            with problem.arithmetic():
                return self._step(problem, last)

        began = self._measures(problem, start)

        def finish(last: OptStep) -> OptStep:
            x, work = last
            with problem.arithmetic():
                endless = has_no_bound(began, self._measures(problem, last), torch.finfo(problem.vectors.dtype).eps)
                status = where(endless & negated(work.error <= self.tol), int(Status.UNBOUNDED), work.status)
                value, grad = problem.original(work.value), problem.original(work.grad)
            numbers_ = Work(*map(problem.number, work._replace(value=value, status=status)))
            work = numbers_._replace(grad=problem.tensor(grad), memory=work.memory, aux=work.aux)
            return OptStep(problem.vectors.unpack(problem.tensor(x)), self._as_state(work, problem))

        return Task(start, step, finish)

    def _measures(self, problem: Problem, at: OptStep) -> tuple[Any, Any, Any]:
        """The objective, the norm of the parameters and the violation of the optimality condition, as numbers."""
        value, length, error = numbers(problem.original(at.state.value), problem.norm(at.params), at.state.error)
        return value, length, error

    def _begin(self, init_params: Any, problem: Problem, is_run: bool) -> OptStep:
        x, value, gradient, aux = problem.begin(params_of(init_params))
        if is_run and not isinstance(init_params, OptStep):
            problem.choose_unit(value, gradient)
            value, gradient = problem.in_unit(value), problem.in_unit(gradient)
        value, error = numbers(value, problem.error(x, gradient))
        memory, iter_num, stepsize = self._empty(gradient), 0, self.max_stepsize  # type: ignore[attr-defined]
        if isinstance(init_params, OptStep):
            state = init_params.state
            memory = self._as_memory(state, problem.vectors, gradient)
            iter_num, stepsize = state.iter_num, state.stepsize
        work = Work(iter_num, value, gradient, stepsize, error, memory, aux, False, 1, 1, 0, problem.first_status)
        return OptStep(x, work)

    def _step(self, problem: Problem, last: OptStep) -> OptStep:
        x, work = last
        value, gradient, running = work.value, work.grad, settled(problem.running(work))
        memory, direction = work.memory, self._direction(work.memory, problem, x, gradient)
        (slope,) = numbers(problem.slope(gradient, direction))
        if self._stepsize is not None:
            size = self._stepsize(work.iter_num) if callable(self._stepsize) else self._stepsize
            new_x = problem.move(x, size, direction)
            new_value, new_gradient, aux = problem(new_x)
            (new_value,) = numbers(new_value)
            failed, searched, point = False, 0, Point(size, new_value, slope, (new_x, new_gradient, aux))
            evaluated, graded, moved, lost = 1, 1, True, False
        else:
            # A direction that does not descend, by rounding or negative curvature, is replaced.
            uphill = settled(negated(slope < 0.0))
            if uphill is not False:
                memory = self._forget(memory, gradient, uphill & running)
                direction = pick(uphill, problem.steepest(x, gradient), direction)
                (slope,) = numbers(problem.slope(gradient, direction))
            options: Any = self
            guess = first_stepsize(
                options.linesearch_init,
                self._last_stepsize(work, slope),
                options.max_stepsize,
                options.min_stepsize,
                options.increase_factor,
            )
            unknown = settled(self._is_empty(memory) & negated(problem.is_boxed))
            if unknown is not False:
                # Nothing is known of the scale of the objective: the first step is at most 1 long.
                (length,) = numbers(problem.norm(direction))
                guess = where(unknown & (length * guess > 1.0), 1.0 / where(length > 1e-30, length, 1.0), guess)

            def ray(stepsize: Any) -> Point:
                # A run that has ended stays where it is.
                length = where(running, stepsize, 0.0) if isinstance(running, np.ndarray) else stepsize
                new_x = problem.move(x, length, direction)
                new_value, new_gradient, aux = problem(new_x)
                new_value, new_slope = numbers(new_value, problem.slope(new_gradient, direction))
                if running is not True:
                    new_value, new_slope = where(running, new_value, -stepsize), where(running, new_slope, 0.0)
                return Point(stepsize, new_value, new_slope, (new_x, new_gradient, aux))

            start = Point(0.0, value, slope, (x, gradient, work.aux))
            if running is not True:
                # For runs that have ended, the search ends with its first evaluation.
                start = start._replace(value=where(running, value, 0.0), slope=where(running, slope, -1.0))
                guess = where(running, guess, 1.0)
            found = self._search.search(ray, start, guess)
            point, failed, searched = found.point, found.failed, found.steps
            evaluated, graded = found.num_fun_eval, found.num_grad_eval
            # Of a search that failed, only a step that descends is taken, by its slope where values are too coarse.
            descends = (point.value < value) | ((point.value <= value) & (abs(point.slope) < abs(slope)))
            lost = settled(failed & negated(descends))
            if lost is not False:
                point = choose(lost, Point(0.0, value, slope, (x, gradient, work.aux)), point)
            moved = negated(lost)
        new_x, new_gradient, aux = point.extra
        if moved is not False:
            memory = self._remember(memory, (x, new_x), (gradient, new_gradient), direction, moved & running)
        status: Any = work.status
        if lost is not False:
            # Next it descends steepest.  Where that has failed too, nothing is left to try.
            stalled = lost & self._is_steepest(memory)
            status = where(stalled, int(Status.STALLED), status)
            memory = self._forget(memory, gradient, lost & running)
        if getattr(self, 'stop_if_linesearch_fails', False):
            status = where(failed, int(Status.STALLED), status)
        (error,) = numbers(problem.error(new_x, new_gradient))
        error = where(abs(point.value) < math.inf, error, math.nan)
        stepsize = where(lost, self.max_stepsize, point.stepsize)  # type: ignore[attr-defined]
        return OptStep(
            new_x,
            Work(
                work.iter_num + 1,
                point.value,
                new_gradient,
                stepsize,
                error,
                memory,
                aux,
                failed,
                work.num_fun_eval + evaluated,
                work.num_grad_eval + graded,
                work.num_linesearch_iter + searched,
                status,
            ),
        )
