# SPDX-License-Identifier: Apache-2.0
"""What the line searches have in common: JAXopt's interface, where the unknown is the step size along a direction."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import tree
from torchopt.linesearch import Point, Ray, inner_product, move_along
from torchopt.loop import while_loop
from torchopt.loop.while_loops import repeat
from torchopt.scalars import negated, numbers, pick, where
from torchopt.solver.base import IterativeSolver
from torchopt.solver.objective import Objective
from torchopt.solver.run import OptStep, conclude
from torchopt.solver.status import Status


class LineSearchStep(NamedTuple):
    """The result of a line search.

    Attributes:
        stepsize: The step size, a 0-d tensor.
        state: The state of the search; ``state.params`` are the parameters there.

    Example:
        >>> import torch, torchopt
        >>> search = torchopt.BacktrackingLineSearch(lambda w: (w - 3.0) ** 2)
        >>> stepsize, state = search.run(1.0, torch.tensor(0.0))
        >>> float(stepsize) < 1.0, state.params < 6.0
        (True, tensor(True))
    """

    stepsize: Any
    state: Any


class Found(NamedTuple):
    """What a search along a ray found."""

    point: Point
    steps: Any
    failed: Any
    num_fun_eval: Any
    num_grad_eval: Any


class LineSearchState(NamedTuple):
    """The state of a line search.

    Attributes:
        iter_num: The number of steps.
        params: The parameters at the step size that is returned.
        value: The objective there.
        grad: The gradient there.
        aux: The auxiliary output there.
        error: By how much the conditions are violated there.
        done: Whether they hold.
        failed: Whether the search has ended and they do not hold.
        num_fun_eval: The number of evaluations of the objective.
        num_grad_eval: The number of evaluations of the gradient.
        status: How it ended; see :class:`~torchopt.solver.Status`.
        search: What the search remembers.
    """

    iter_num: Any
    params: Any
    value: Any
    grad: Any
    aux: Any
    error: Any
    done: Any
    failed: Any
    num_fun_eval: Any
    num_grad_eval: Any
    status: Any
    search: Any

    def __getattr__(self, name: str) -> Any:
        """A quantity of the search itself, by the names of JAXopt: ``low``, ``value_low``, ``decrease_error``..."""
        if name.startswith('__'):
            raise AttributeError(name)
        end = {'low': 'low', 'high': 'high', 'cubic_ref': 'third'}
        for prefix, field in (('', 'stepsize'), ('value_', 'value'), ('slope_', 'slope')):
            of = end.get(name.removeprefix(prefix))
            if of is not None and name.startswith(prefix) and hasattr(self.search, of):
                return getattr(getattr(self.search, of), field)
        if name in ('decrease_error', 'curvature_error') and hasattr(self.search, name):
            return getattr(self.search, name)
        raise AttributeError(f'The state of this line search has no field {name!r}.')


@dataclasses.dataclass(eq=False, kw_only=True)
class LineSearch(IterativeSolver):
    """A line search.

    A subclass defines how a search begins and steps along a ray; it may be given to LBFGS and other solvers as
    ``linesearch``.
    """

    implicit_diff: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        options: Any = self
        self._objective = Objective(options.fun, options.value_and_grad, options.has_aux)

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """A line search has none.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError('A line search has no optimality condition. Use that of the solver that searches.')

    @abc.abstractmethod
    def _begin(self, ray: Ray, start: Point, guess: Any) -> Any:
        """The state of the search before its first step."""

    @abc.abstractmethod
    def _advance(self, ray: Ray, search: Any) -> Any:
        """One step of the search."""

    @abc.abstractmethod
    def _goes_on(self, search: Any) -> Any:
        """Whether the search has not ended."""

    @abc.abstractmethod
    def _end(self, search: Any) -> tuple[Point, Any, Any, Any]:
        """The point, the error there, the number of steps, and whether it failed."""

    def search(self, ray: Ray, start: Point, guess: Any) -> Found:
        """Search along a ray.

        Args:
            ray: ``ray(stepsize)`` returns a :class:`~torchopt.linesearch.Point`.
            start: The point at step size 0.
            guess: The first step size.
        """
        step = functools.partial(self._counted_step, ray)
        state = self._counted_begin(ray, start, guess)
        if self._goes_on(state[0]) is not False:
            state = step(state)
        if self._goes_on(state[0]) is not False:
            state = repeat(lambda state: self._goes_on(state[0]), step, state, self.maxiter, check=False)
        search, count = state
        point, _, steps, failed = self._end(search)
        return Found(point, steps, failed, count, count)

    def _counted_begin(self, ray: Ray, start: Point, guess: Any) -> tuple[Any, Any]:
        """The state of the search before its first step, and the number of evaluations."""
        counted = _Counted(ray)
        return self._begin(counted, start, guess), counted.count

    def _counted_step(self, ray: Ray, state: tuple[Any, Any]) -> tuple[Any, Any]:
        """One step; in a batch, the evaluations are those of the steps that a sample makes."""
        search, count = state
        counted = _Counted(ray)
        return self._advance(counted, search), count + counted.count

    def _ray(self, params: Any, direction: Any, fun_args: Sequence[Any], fun_kwargs: Any) -> Ray:
        def ray(stepsize: Any) -> Point:
            moved = move_along(params, stepsize, direction)
            value, gradient, aux = self._objective(moved, *fun_args, **(fun_kwargs or {}))
            value, slope = numbers(value, inner_product(gradient, direction))
            return Point(stepsize, value, slope, (moved, gradient, aux))

        return ray

    def _start(
        self, params: Any, value: Any, grad: Any, direction: Any, fun_args: Any, fun_kwargs: Any
    ) -> tuple[Ray, Point, int]:
        evaluated, aux = 0, None
        if value is None or grad is None or self._objective.has_aux:
            value, grad, aux = self._objective(params, *fun_args, **(fun_kwargs or {}))
            evaluated = 1
        if direction is None:
            direction = tree.scale(-1.0, grad)
        value, slope = numbers(value, inner_product(grad, direction))
        start = Point(0.0, value, slope, (params, grad, aux))
        return self._ray(params, direction, fun_args, fun_kwargs), start, evaluated

    def init_state(
        self,
        init_stepsize: Any,
        params: Any,
        value: Any = None,
        grad: Any = None,
        descent_direction: Any = None,
        fun_args: Sequence[Any] = (),
        fun_kwargs: Any = None,
    ) -> LineSearchState:
        """The state before the first step; for the arguments see :meth:`run`."""
        ray, start, evaluated = self._start(params, value, grad, descent_direction, fun_args, fun_kwargs)
        search, count = self._counted_begin(ray, start, init_stepsize)
        count += evaluated
        params, gradient, aux = start.extra
        return LineSearchState(
            0, params, start.value, gradient, aux, math.inf, False, False, count, count, int(Status.RUNNING), search
        )

    def update(  # type: ignore[override]
        self,
        stepsize: Any,
        state: LineSearchState,
        params: Any,
        value: Any = None,
        grad: Any = None,
        descent_direction: Any = None,
        fun_args: Sequence[Any] = (),
        fun_kwargs: Any = None,
    ) -> LineSearchStep:
        """One step; for the other arguments see :meth:`run`.

        Args:
            stepsize: The step size that the last step returned; the search remembers it.
            state: The state that :meth:`init_state` or the last step returned.
            params: Where the ray begins.
            value: Accepted as in JAXopt; the search remembers it.
            grad: The gradient at ``params``; computed if it is None and there is no direction.
            descent_direction: As in :meth:`run`.
            fun_args: Likewise.
            fun_kwargs: Likewise.
        """
        if descent_direction is None:
            if grad is None:
                grad = self._objective.gradient(params, *fun_args, **(fun_kwargs or {}))
            descent_direction = tree.scale(-1.0, grad)
        ray = self._ray(params, descent_direction, fun_args, fun_kwargs)
        before = state.search, state.num_fun_eval
        going = self._goes_on(state.search)
        return self._as_step(*(before if going is False else pick(going, self._counted_step(ray, before), before)))

    def _as_step(self, search: Any, count: Any) -> LineSearchStep:
        point, error, steps, failed = self._end(search)
        params, gradient, aux = point.extra
        done = negated(self._goes_on(search)) & negated(failed)
        status = where(done, int(Status.CONVERGED), where(failed, int(Status.STALLED), int(Status.RUNNING)))
        state = LineSearchState(
            steps, params, point.value, gradient, aux, error, done, failed, count, count, status, search
        )
        return LineSearchStep(point.stepsize, state)

    def run(  # type: ignore[override]
        self,
        init_stepsize: Any,
        params: Any,
        value: Any = None,
        grad: Any = None,
        descent_direction: Any = None,
        fun_args: Sequence[Any] = (),
        fun_kwargs: Any = None,
    ) -> LineSearchStep:
        """Search until the conditions hold, or ``maxiter`` steps were made.

        Args:
            init_stepsize: The first step size, positive.
            params: Where the ray begins, a tree.
            value: The objective there; computed if None.
            grad: The gradient there; computed if None.
            descent_direction: The direction, a tree like ``params``; the negative gradient if None.
            fun_args: Data of the objective.
            fun_kwargs: Data by name.

        Returns:
            The step size, and the state: ``state.params``, ``value`` and ``grad`` are those at the step size.
        """
        ray, start, evaluated = self._start(params, value, grad, descent_direction, fun_args, fun_kwargs)
        step = functools.partial(self._counted_step, ray)
        begin = self._counted_begin(ray, start, init_stepsize)
        search, count = while_loop(lambda state: self._goes_on(state[0]), step, begin, self.maxiter)
        stepsize, state = self._as_step(search, evaluated + count)
        if self.verbose:
            self.log_info(state, additional_info={'Stepsize': stepsize, 'Objective Value': state.value})
        found = conclude(OptStep((params, stepsize), state._replace(search=None)), math.inf)
        like = next(iter(tree.leaves(params)))
        if not isinstance(stepsize, Tensor):
            stepsize = torch.as_tensor(stepsize, dtype=torch.promote_types(like.dtype, torch.float32).to_real())
        return LineSearchStep(stepsize, found.state)


class _Counted:
    """A ray that counts its evaluations."""

    def __init__(self, ray: Ray) -> None:
        self.ray, self.count = ray, 0

    def __call__(self, stepsize: Any) -> Point:
        self.count += 1
        return self.ray(stepsize)
