# SPDX-License-Identifier: Apache-2.0
r"""Descent: a direction from the gradients, and a search along it.

.. math:: w_{k+1} = w_k + \eta_k d_k, \qquad \langle d_k, \nabla f(w_k) \rangle < 0

The methods differ in the direction only: L-BFGS, BFGS and nonlinear conjugate gradients are this loop with another
memory.  A run works on vectors; trees are flattened once.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import checks, tree
from torchopt.dtypes import is_inexact
from torchopt.levels import is_readable, runs_directly, without_wrappers
from torchopt.linesearch import Point, choose
from torchopt.norms import norm_in_double, two_norm
from torchopt.numerics import as_scalar_like
from torchopt.scalars import is_symbolic, negated, numbers, pick, settled, where
from torchopt.solver.arguments import check_state
from torchopt.solver.base import IterativeSolver
from torchopt.solver.compact import Pair
from torchopt.solver.linesearch import LineSearch, linesearch_of
from torchopt.solver.objective import Objective, Vectors
from torchopt.solver.run import OptStep, Task, as_tensors, params_of
from torchopt.solver.status import Status, has_no_bound

__all__ = ['DescentSolver', 'Problem', 'Work', 'first_stepsize']

_Memory = TypeVar('_Memory')

_SMALLEST_SQUARE = 1e-290
"""A smaller sum of squares has lost digits by underflow."""


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


class Problem:
    """The objective of a run as a function of a vector.

    Args:
        objective: The objective.
        params: Where to start, a tree.
        args: Data.
        kwargs: Data by name.
    """

    is_boxed: Any = False
    """Whether bounds tell the scale of all parameters."""

    def __init__(self, objective: Objective, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.vectors = Vectors(params)
        self.objective, self.args, self.kwargs = objective, args, kwargs

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Any]:
        """The value, the gradient and the auxiliary output at a vector."""
        value, gradient, aux = self.objective(self.vectors.unpack(x), *self.args, **self.kwargs)
        return value, self.vectors.pack(gradient), aux

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Where a run computes with vectors."""
        return contextlib.nullcontext()

    def tensor(self, x: Any) -> Tensor:
        """A vector of the run as a tensor."""
        return x

    def move(self, x: Tensor, stepsize: Any, direction: Tensor) -> Tensor:
        """The point at a step size along a direction."""
        if isinstance(stepsize, float):
            return torch.add(x, direction, alpha=stepsize)
        return x + as_scalar_like(stepsize, direction) * direction

    def steepest(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The direction of steepest descent."""
        return -gradient

    def slope(self, gradient: Tensor, direction: Tensor) -> Any:
        """The slope of the objective along a direction."""
        return gradient @ direction

    def norm(self, x: Tensor) -> Any:
        """The Euclidean norm."""
        found = norm_in_double(x)
        if x.dtype != torch.float64:
            return found
        inexact = settled((found < _SMALLEST_SQUARE**0.5) | (found == math.inf))
        return found if inexact is False else where(inexact, two_norm([x]), found)

    def error(self, x: Tensor, gradient: Tensor) -> Any:
        """By how much the optimality condition is violated."""
        return self.norm(gradient)

    def start(self, params: Any) -> Tensor:
        """The vector at which a run starts."""
        return self.vectors.pack(params, 'init_params')

    def begin(self, params: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """The vector of the start, and value, gradient and auxiliary output there.

        Raises:
            ValueError: If value or gradient is NaN or infinite, where they can be read.
        """
        x = self.start(params)
        value, gradient, aux = self(x)
        (value,) = numbers(value)
        slopes = self.tensor(gradient)
        if is_readable(value) and is_readable(slopes):  # within torch.func.grad too
            known = value if isinstance(value, float) else without_wrappers(value.detach()).item()
            if not (math.isfinite(known) and bool(torch.isfinite(without_wrappers(slopes.detach())).all())):
                raise ValueError(
                    f'The objective is {known} at init_params, or its gradient is not finite there. Start where both '
                    f'are finite.'
                )
        return x, value, gradient, aux


class HostProblem(Problem):
    """The objective of a run on arrays: on short vectors, operations of NumPy take a third of the time of torch's."""

    def __init__(self, objective: Objective, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(objective, params, args, kwargs)
        self._reports = np.geterr()

    @staticmethod
    def fits(params: Any) -> bool:
        """Whether a run from these parameters may work on arrays: nothing batches, differentiates or compiles it."""
        return _leaves_no_graph() and runs_directly() and all(map(_has_array, tree.leaves(params)))

    def __call__(self, x: Any) -> tuple[Any, Any, Any]:
        """The value, the gradient and the auxiliary output at a vector."""
        with np.errstate(**self._reports):  # those of the caller, for the user's function
            value, gradient, aux = super().__call__(torch.from_numpy(x))
        return value.item(), gradient.numpy(force=True), aux

    def slope(self, gradient: Any, direction: Any) -> float:
        """The slope of the objective along a direction."""
        return float(gradient.dot(direction))

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Overflow gives infinity without a warning, as in torch."""
        return np.errstate(all='ignore')

    def tensor(self, x: Any) -> Tensor:
        """A vector of the run as a tensor."""
        return torch.from_numpy(x)

    def move(self, x: Any, stepsize: Any, direction: Any) -> Any:
        """The point at a step size along a direction."""
        return x + stepsize * direction

    def norm(self, x: Any) -> Any:
        """The Euclidean norm."""
        x = x.astype(np.float64, copy=False)
        square = float(np.dot(x, x))
        if _SMALLEST_SQUARE < square < math.inf or not x.size:
            return math.sqrt(square)
        largest = float(np.abs(x).max())  # squares overflow, or lose digits
        if not 0.0 < largest < math.inf:
            return largest
        x = x / largest
        return largest * math.sqrt(np.dot(x, x))

    def start(self, params: Any) -> Any:
        """The vector at which a run starts."""
        return super().start(params).numpy(force=True)


def _has_array(x: Any) -> bool:
    """Whether a leaf of the parameters has no part in a run, or an array can share its memory and its precision."""
    if not is_inexact(x):
        return True
    return type(x) in (Tensor, torch.nn.Parameter) and x.is_cpu and x.dtype in (torch.float32, torch.float64)


def _leaves_no_graph() -> bool:
    return not torch.is_grad_enabled() and forward_ad._current_level < 0


def may_write(x: Any) -> bool:
    """Whether a run on such a vector may write in place: nothing batches or differentiates it."""
    return not isinstance(x, Tensor) or (not is_symbolic(x) and _leaves_no_graph())


def first_stepsize(strategy: str, stepsize: Any, largest: Any, smallest: Any, factor: Any) -> Any:
    """The step size with which a line search begins, from the last one."""
    if strategy == 'max':
        return largest
    if strategy == 'current':
        return stepsize
    return where(stepsize <= smallest, largest, stepsize * factor)


@dataclasses.dataclass(eq=False, kw_only=True)
class DescentSolver(IterativeSolver, abc.ABC, Generic[_Memory]):
    """A descent; a subclass is a dataclass with JAXopt's arguments, and defines the direction."""

    error_name = 'Gradient Norm'

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
        self._search: LineSearch = linesearch_of(options.linesearch, options.fun, options.maxls, options.max_stepsize)
        stepsize = getattr(self, 'stepsize', 0.0)
        self._stepsize = stepsize if checks.is_schedule(stepsize) or stepsize > 0 else None

    @property
    def reference_signature(self) -> Callable[..., Any] | inspect.Signature:
        """The objective, whose arguments :meth:`optimality_fun` has too."""
        fun: Callable[..., Any] = self.fun  # type: ignore[attr-defined]
        return fun

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The gradient of the objective."""
        return self._objective.gradient(params_of(params), *args, **kwargs)

    def _problem(self, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """The objective as a function of vectors."""
        return Problem(self._objective, params, args, kwargs)

    def _running_problem(self, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Problem:
        """The objective as a run works with it; a method that works on arrays too overrides it."""
        return self._problem(params, args, kwargs)

    @abc.abstractmethod
    def _empty(self, gradient: Tensor, in_place: bool) -> Any:
        """The memory at the start."""

    @abc.abstractmethod
    def _direction(self, memory: Any, problem: Problem, x: Tensor, gradient: Tensor) -> Tensor:
        """The direction in which to search."""

    @abc.abstractmethod
    def _remember(self, memory: Any, x: Pair, gradient: Pair, direction: Tensor) -> Any:
        """The memory after a step along the direction, from the parameters and gradients before and after it."""

    @abc.abstractmethod
    def _is_empty(self, memory: Any) -> Any:
        """Whether nothing is known of the scale: the direction is the negative gradient."""

    def _is_steepest(self, memory: Any) -> Any:
        """Whether the direction is a multiple of that of steepest descent."""
        return self._is_empty(memory)

    @abc.abstractmethod
    def _forget(self, memory: Any, gradient: Tensor) -> Any:
        """The memory at the start once more."""

    @abc.abstractmethod
    def _as_state(self, work: Work, vectors: Vectors) -> Any:
        """The state as users see it."""

    @abc.abstractmethod
    def _as_memory(self, state: Any, vectors: Vectors, gradient: Tensor, in_place: bool) -> Any:
        """The memory of a state."""

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> Any:
        """The state before the first step; with an :class:`OptStep`, the memory of its state is kept."""
        problem = self._problem(params_of(init_params), args, kwargs)
        params = params_of(init_params)
        return as_tensors(self._as_state(self._begin(init_params, problem, False)[1], problem.vectors), params)

    def update(self, params: Any, state: Any, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        check_state(state)
        params = params_of(params)
        problem = self._problem(params, args, kwargs)
        x, gradient = problem.vectors.pack(params), problem.vectors.pack(state.grad)
        memory = self._as_memory(state, problem.vectors, gradient, False)
        fields = {name: getattr(state, name) for name in Work._fields if hasattr(state, name)}
        value, stepsize, error = numbers(state.value, state.stepsize, state.error)
        fields = {'failed_linesearch': False, **fields, 'grad': gradient, 'memory': memory}
        fields.update(value=value, stepsize=stepsize, error=error)
        x, work = self._step(problem, OptStep(x, Work(**fields)))
        return OptStep(problem.vectors.unpack(x), as_tensors(self._as_state(work, problem.vectors), params))

    def task(self, init_params: Any, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, on vectors."""
        problem = self._running_problem(params_of(init_params), args, kwargs)
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
            work = work._replace(grad=problem.tensor(work.grad), status=status)
            return OptStep(problem.vectors.unpack(problem.tensor(x)), self._as_state(work, problem.vectors))

        return Task(start, step, finish)

    def _measures(self, problem: Problem, at: OptStep) -> tuple[Any, Any, Any]:
        """The objective, the norm of the parameters and the violation of the optimality condition, as numbers."""
        value, length, error = numbers(at.state.value, problem.norm(at.params), at.state.error)
        return value, length, error

    def _begin(self, init_params: Any, problem: Problem, in_place: bool) -> OptStep:
        x, value, gradient, aux = problem.begin(params_of(init_params))
        in_place = in_place and may_write(gradient)
        value, error = numbers(value, problem.error(x, gradient))
        memory, iter_num, stepsize = self._empty(gradient, in_place), 0, self.max_stepsize  # type: ignore[attr-defined]
        if isinstance(init_params, OptStep):
            state = init_params.state
            memory = self._as_memory(state, problem.vectors, gradient, in_place)
            iter_num, stepsize = state.iter_num, state.stepsize
        return OptStep(x, Work(iter_num, value, gradient, stepsize, error, memory, aux, False, 1, 1, 0, 0))

    def _step(self, problem: Problem, last: OptStep) -> OptStep:
        x, work = last
        value, gradient = work.value, work.grad
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
                direction = pick(uphill, problem.steepest(x, gradient), direction)
                memory = pick(uphill, self._forget(memory, gradient), memory)
                (slope,) = numbers(problem.slope(gradient, direction))
            options: Any = self
            guess = first_stepsize(
                options.linesearch_init,
                work.stepsize,
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
                new_x = problem.move(x, stepsize, direction)
                new_value, new_gradient, aux = problem(new_x)
                new_value, new_slope = numbers(new_value, problem.slope(new_gradient, direction))
                return Point(stepsize, new_value, new_slope, (new_x, new_gradient, aux))

            found = self._search.search(ray, Point(0.0, value, slope, (x, gradient, work.aux)), guess)
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
            kept = self._remember(memory, (x, new_x), (gradient, new_gradient), direction)
            memory = pick(moved, kept, memory)
        status: Any = work.status
        if lost is not False:
            # Next it descends steepest.  Where that has failed too, nothing is left to try.
            stalled = lost & self._is_steepest(memory)
            status = where(stalled, int(Status.STALLED), status)
            memory = pick(lost, self._forget(memory, gradient), memory)
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
