# SPDX-License-Identifier: Apache-2.0
"""Line searches as solvers with JAXopt's interface: the unknown is the step size along a given direction."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import tree
from torchopt.linesearch import Point, Ray, choose, inner_product, move_along
from torchopt.linesearch.hager_zhang import HagerZhangOptions, HagerZhangSearch, hager_zhang_begin, hager_zhang_step
from torchopt.linesearch.zoom import ZoomOptions, ZoomSearch, zoom_begin, zoom_end, zoom_search, zoom_step
from torchopt.loop import while_loop
from torchopt.loop.while_loops import repeat
from torchopt.scalars import larger, negated, numbers, pick, smaller, violation, where
from torchopt.solver.base import IterativeSolver
from torchopt.solver.objective import Objective
from torchopt.solver.run import OptStep, conclude
from torchopt.solver.status import Status

__all__ = [
    'BacktrackingLineSearch',
    'HagerZhangLineSearch',
    'LineSearch',
    'LineSearchStep',
    'ZoomLineSearch',
    'linesearch_of',
]


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
        counted = _Counted(ray)
        search = self._begin(counted, start, guess)
        if self._goes_on(search) is not False:
            search = self._advance(counted, search)
        if self._goes_on(search) is not False:
            search = repeat(self._goes_on, lambda s: self._advance(counted, s), search, self.maxiter, check=False)
        point, _, steps, failed = self._end(search)
        return Found(point, steps, failed, counted.count, counted.count)

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
        """The state before the first step.

        Args:
            init_stepsize: The first step size.
            params: Where the ray begins, a tree.
            value: The objective there; computed if None.
            grad: The gradient there; computed if None.
            descent_direction: The direction, a tree like ``params``; the negative gradient if None.
            fun_args: Data of the objective.
            fun_kwargs: Data by name.
        """
        ray, start, evaluated = self._start(params, value, grad, descent_direction, fun_args, fun_kwargs)
        counted = _Counted(ray)
        search = self._begin(counted, start, init_stepsize)
        count = evaluated + counted.count
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
        """One step.

        Args:
            stepsize: The step size that the last step returned; the search remembers it.
            state: The state that :meth:`init_state` or the last step returned.
            params: Where the ray begins.
            value: Accepted as in JAXopt; the search remembers it.
            grad: The gradient at ``params``; needed if there is no direction.
            descent_direction: The direction; the negative gradient at ``params`` if None.
            fun_args: Data of the objective.
            fun_kwargs: Data by name.
        """
        if descent_direction is None:
            if grad is None:
                grad = self._objective.gradient(params, *fun_args, **(fun_kwargs or {}))
            descent_direction = tree.scale(-1.0, grad)
        counted = _Counted(self._ray(params, descent_direction, fun_args, fun_kwargs))
        search = state.search
        going = self._goes_on(search)
        if going is not False:
            search = pick(going, self._advance(counted, search), search)
        count = state.num_fun_eval + counted.count
        return self._as_step(search, count)

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
        counted = _Counted(ray)
        search = self._begin(counted, start, init_stepsize)
        search = while_loop(self._goes_on, lambda s: self._advance(counted, s), search, self.maxiter)
        stepsize, state = self._as_step(search, evaluated + counted.count)
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


class BacktrackingSearch(NamedTuple):
    """The state of :class:`BacktrackingLineSearch` along a ray."""

    start: Point
    last: Point
    safe: Point
    next: Any
    error: Any
    steps: Any
    done: Any
    failed: Any


@dataclasses.dataclass(eq=False)
class BacktrackingLineSearch(LineSearch):
    r"""Shorter and shorter steps, until one meets a condition.

    All require Armijo's decrease, :math:`\varphi(\eta) \le \varphi(0) + c_1 \eta\, \varphi'(0)`; Wolfe's condition also
    :math:`\varphi'(\eta) \ge c_2 \varphi'(0)`, the strong one :math:`|\varphi'(\eta)| \le c_2 |\varphi'(0)|`, and
    Goldstein's :math:`\varphi(\eta) \ge \varphi(0) + (1 - c_1) \eta\, \varphi'(0)`.

    Args:
        fun: The objective, ``fun(params, *args, **kwargs)``.
        value_and_grad: Whether ``fun`` returns the value and the gradient, or a function that does.
        has_aux: Whether ``fun`` returns auxiliary output too.
        maxiter: The largest number of steps.
        tol: By how much the condition may be violated.
        condition: ``'armijo'``, ``'goldstein'``, ``'wolfe'`` or ``'strong-wolfe'``.
        c1: :math:`c_1`.
        c2: :math:`c_2`.
        decrease_factor: The factor by which steps are shortened.
        max_stepsize: The largest step size.

    Example:
        >>> import torch, torchopt
        >>> search = torchopt.BacktrackingLineSearch(lambda w: (w - 3.0) ** 2, decrease_factor=0.5)
        >>> stepsize, state = search.run(1.0, torch.tensor(0.0))
        >>> stepsize, state.params
        (tensor(0.5000), tensor(3.))
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    maxiter: int = 30
    tol: float = 0.0
    condition: str = 'strong-wolfe'
    c1: float = 1e-4
    c2: float = 0.9
    decrease_factor: float = 0.8
    max_stepsize: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.condition not in ('armijo', 'goldstein', 'wolfe', 'strong-wolfe'):
            raise ValueError(
                f"Invalid condition: {self.condition!r}; expected 'armijo', 'goldstein', 'wolfe' or 'strong-wolfe'."
            )

    def _begin(self, ray: Ray, start: Point, guess: Any) -> BacktrackingSearch:
        (guess,) = numbers(guess)
        stepsize, value, slope = numbers(*start[:3])
        start = Point(stepsize, value, slope, start.extra)
        return BacktrackingSearch(start, start, start, smaller(guess, self.max_stepsize), math.inf, 0, False, False)

    def _advance(self, ray: Ray, search: BacktrackingSearch) -> BacktrackingSearch:
        new, start = ray(search.next), search.start
        gain = new.value - start.value
        # Close to a minimum values are too coarse, and slopes stand in for them, as in the search of Hager and Zhang.
        by_slope = larger(new.slope - (2.0 * self.c1 - 1.0) * start.slope, gain - 1e-6 * abs(start.value))
        error = violation(smaller(by_slope, gain - self.c1 * new.stepsize * start.slope))
        # The longest step that decreases enough, for a condition of curvature that no shorter step can meet.
        safe = choose((error <= self.tol) & (search.safe.stepsize == 0.0), new, search.safe)
        other: Any = 0.0
        if self.condition == 'wolfe':
            other = violation(self.c2 * start.slope - new.slope)
        elif self.condition == 'strong-wolfe':
            other = violation(abs(new.slope) - self.c2 * abs(start.slope))
        elif self.condition == 'goldstein':
            other = violation(start.value + (1.0 - self.c1) * new.stepsize * start.slope - new.value)
        error = where(other > error, other, error)
        done = error <= self.tol
        failed = negated(done) & (search.steps + 1 >= self.maxiter)
        return BacktrackingSearch(
            start, new, safe, new.stepsize * self.decrease_factor, error, search.steps + 1, done, failed
        )

    def _goes_on(self, search: BacktrackingSearch) -> Any:
        return negated(search.done | search.failed)

    def _end(self, search: BacktrackingSearch) -> tuple[Point, Any, Any, Any]:
        point = choose(search.failed & (search.safe.stepsize > 0.0), search.safe, search.last)
        return point, search.error, search.steps, search.failed


@dataclasses.dataclass(eq=False)
class ZoomLineSearch(LineSearch):
    """The line search of Nocedal and Wright for the strong Wolfe conditions; see :func:`torchopt.linesearch.zoom`.

    Args:
        fun: The objective, ``fun(params, *args, **kwargs)``.
        value_and_grad: Whether ``fun`` returns the value and the gradient, or a function that does.
        has_aux: Whether ``fun`` returns auxiliary output too.
        c1: The constant of the condition of decrease.
        c2: The constant of the condition of curvature.
        c3: How close values must be for slopes to stand in for them.
        rel_tol_cubic: How far from the ends of the interval the minimum of the cubic must be, relative to its length.
        rel_tol_quad: The same for the parabola.
        interval_threshold: The length of the interval at which a step that decreases enough is taken.
        increase_factor: The factor by which steps grow at first.
        tol: By how much the conditions may be violated.
        maxiter: The largest number of evaluations.
        max_stepsize: The largest step size; none if None.

    Example:
        >>> import torch, torchopt
        >>> search = torchopt.ZoomLineSearch(lambda w: (w - 3.0) ** 2)
        >>> stepsize, state = search.run(4.0, torch.tensor(0.0))
        >>> stepsize, state.params
        (tensor(0.5000), tensor(3.))
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    c1: float = 1e-4
    c2: float = 0.9
    c3: float | None = 1e-6
    rel_tol_cubic: float = 0.2
    rel_tol_quad: float = 0.1
    interval_threshold: float = 1e-6
    increase_factor: float = 2.0
    tol: float = 0.0
    maxiter: int = 30
    max_stepsize: float | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._options = ZoomOptions(
            self.max_stepsize,
            self.tol,
            self.increase_factor,
            self.c1,
            self.c2,
            self.c3,
            self.interval_threshold,
            self.rel_tol_cubic,
            self.rel_tol_quad,
        )

    def search(self, ray: Ray, start: Point, guess: Any) -> Found:
        """Search along a ray."""
        found = zoom_search(ray, start, guess, self._options, self.maxiter)
        return Found(found.point, found.steps, found.failed, found.steps, found.steps)

    def _begin(self, ray: Ray, start: Point, guess: Any) -> ZoomSearch:
        return zoom_begin(start, guess)

    def _advance(self, ray: Ray, search: ZoomSearch) -> ZoomSearch:
        return zoom_step(ray, search, self._options, self.maxiter)

    def _goes_on(self, search: ZoomSearch) -> Any:
        return search.running

    def _end(self, search: ZoomSearch) -> tuple[Point, Any, Any, Any]:
        found = zoom_end(search)
        error = where(found.decrease_error > found.curvature_error, found.decrease_error, found.curvature_error)
        return found.point, error, found.steps, found.failed

    def failure_diagnostic(self, stepsize: Any, state: LineSearchState) -> str:
        """Why a search failed, and what to do about it."""
        text = Status.STALLED.message
        print(f'INFO: torchopt.ZoomLineSearch: stepsize {float(stepsize)}: {text}')
        return text


@dataclasses.dataclass(eq=False)
class HagerZhangLineSearch(LineSearch):
    """The line search of Hager and Zhang for the Wolfe conditions, by secant steps.

    Unlike JAXopt's, it begins with ``init_stepsize``, and shortens a step whose value is NaN.

    Args:
        fun: The objective, ``fun(params, *args, **kwargs)``.
        value_and_grad: Whether ``fun`` returns the value and the gradient, or a function that does.
        has_aux: Whether ``fun`` returns auxiliary output too.
        maxiter: The largest number of steps.
        tol: By how much the conditions may be violated.
        c1: The constant of the condition of decrease.
        c2: The constant of the condition of curvature.
        expansion_factor: The factor by which the first interval grows.
        shrinkage_factor: An interval that did not shrink by this factor is bisected.
        max_stepsize: Accepted as in JAXopt, and not used.

    Example:
        >>> import torch, torchopt
        >>> search = torchopt.HagerZhangLineSearch(lambda w: (w - 3.0) ** 2)
        >>> stepsize, state = search.run(4.0, torch.tensor(0.0))
        >>> stepsize, state.params
        (tensor(0.5000), tensor(3.))

    References:
        Hager and Zhang, `Algorithm 851: CG_DESCENT <https://doi.org/10.1145/1132973.1132979>`_, 2006.
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    maxiter: int = 30
    tol: float = 0.0
    c1: float = 0.1
    c2: float = 0.9
    expansion_factor: float = 5.0
    shrinkage_factor: float = 0.66
    max_stepsize: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._options = HagerZhangOptions(
            self.maxiter, self.tol, self.c1, self.c2, self.expansion_factor, self.shrinkage_factor
        )

    def _begin(self, ray: Ray, start: Point, guess: Any) -> HagerZhangSearch:
        return hager_zhang_begin(ray, start, guess, self._options)

    def _advance(self, ray: Ray, search: HagerZhangSearch) -> HagerZhangSearch:
        return hager_zhang_step(ray, search, self._options)

    def _goes_on(self, search: HagerZhangSearch) -> Any:
        return negated(search.done | search.failed)

    def _end(self, search: HagerZhangSearch) -> tuple[Point, Any, Any, Any]:
        return search.best, search.error, search.steps, search.failed


def linesearch_of(linesearch: str | LineSearch, fun: Callable[..., Any], maxiter: int, max_stepsize: Any) -> LineSearch:
    """The line search of a solver by its name; an instance is returned as it is."""
    if isinstance(linesearch, LineSearch):
        return linesearch
    if linesearch == 'zoom':
        return ZoomLineSearch(fun, maxiter=maxiter, max_stepsize=max_stepsize)
    if linesearch == 'backtracking':
        return BacktrackingLineSearch(fun, maxiter=maxiter, max_stepsize=max_stepsize)
    if linesearch == 'hager-zhang':
        return HagerZhangLineSearch(fun, maxiter=maxiter)
    raise ValueError(
        f"Invalid linesearch: {linesearch!r}; expected 'zoom', 'backtracking', 'hager-zhang', or an instance of a line "
        'search.'
    )
