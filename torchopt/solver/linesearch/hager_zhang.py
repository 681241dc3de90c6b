# SPDX-License-Identifier: Apache-2.0
"""The line search of Hager and Zhang: secant steps at both ends of an interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt.linesearch import Point, Ray, choose
from torchopt.loop import while_loop
from torchopt.scalars import larger, negated, numbers, smaller, violation, where
from torchopt.solver.linesearch.base import LineSearch

_VALUE_RTOL = 1e-6
"""A value that is larger by this part counts as no larger, since rounding errors are of this size."""


class HagerZhangSearch(NamedTuple):
    """The state of the search: the initial point, the ends of the interval, and the best point.

    At ``low`` the slope is negative and the value is no larger than the initial one; at ``high`` the slope is positive.
    """

    start: Point
    low: Point
    high: Point
    best: Point
    error: Any
    steps: Any
    done: Any
    failed: Any


class _Interval(NamedTuple):
    low: Point
    high: Point
    steps: Any
    going: Any


@dataclasses.dataclass(eq=False)
class HagerZhangLineSearch(LineSearch):
    """The line search of Hager and Zhang for the Wolfe conditions, by secant steps.

    Unlike JAXopt's, it begins with ``init_stepsize``, and shortens a step whose value is NaN.

    In a batch under ``vmap``, the samples in the same step are evaluated together, and ``num_fun_eval`` counts for each
    as many evaluations as the one with the most needs.

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

    def _begin(self, ray: Ray, start: Point, guess: Any) -> HagerZhangSearch:
        """Find an interval: expand until the slope is positive or the value too large; NaN is treated as too large."""
        stepsize, value, slope, guess = numbers(*start[:3], guess)
        start = Point(stepsize, value, slope, start.extra)
        ceiling = _ceiling(start)

        def expand(last: _Interval) -> _Interval:
            new = ray(self.expansion_factor * last.high.stepsize)
            return _Interval(last.high, new, last.steps + 1, _falls(new, ceiling))

        first = ray(guess)
        # The first point may already satisfy the conditions.
        error = self._error(first, start, ceiling)
        accepted = error <= self.tol
        interval = _Interval(start, first, 0, _falls(first, ceiling) & negated(accepted))
        interval = while_loop(lambda x: x.going, expand, interval, self.maxiter)
        too_large = negated(interval.high.slope >= 0.0) & negated(accepted)
        low, high = self._bisect_if(too_large, ray, choose(too_large, start, interval.low), interval.high, ceiling)
        return self._judge(HagerZhangSearch(start, low, high, first, error, 0, accepted, False), ceiling)

    def _advance(self, ray: Ray, search: HagerZhangSearch) -> HagerZhangSearch:
        """Two secant steps, and a bisection if they have not shrunk the interval enough."""
        start, low, high = search[:3]
        ceiling = _ceiling(start)
        at = _secant(low, high)
        new_low, new_high = self._update(ray, low, high, at, ceiling)
        # A second secant step, from the end that changed.
        second = where(
            at == new_high.stepsize,
            _secant(high, new_high),
            where(at == new_low.stepsize, _secant(low, new_low), math.nan),
        )
        new_low, new_high = self._update(ray, new_low, new_high, second, ceiling)
        slow = new_high.stepsize - new_low.stepsize > self.shrinkage_factor * (high.stepsize - low.stepsize)
        middle = where(slow, (new_low.stepsize + new_high.stepsize) / 2.0, math.nan)
        new_low, new_high = self._update(ray, new_low, new_high, middle, ceiling)
        return self._judge(search._replace(low=new_low, high=new_high, steps=search.steps + 1), ceiling)

    def _goes_on(self, search: HagerZhangSearch) -> Any:
        return negated(search.done | search.failed)

    def _end(self, search: HagerZhangSearch) -> tuple[Point, Any, Any, Any]:
        return search.best, search.error, search.steps, search.failed

    def _judge(self, search: HagerZhangSearch, ceiling: Any) -> HagerZhangSearch:
        """Choose the better end, and check whether it satisfies the conditions."""
        lower = search.low.value < search.high.value
        lower = lower | (search.high.value != search.high.value)
        best = choose(search.done, search.best, choose(lower, search.low, search.high))
        error = where(search.done, search.error, self._error(best, search.start, ceiling))
        done = search.done | (error <= self.tol)
        width = search.high.stepsize - search.low.stepsize
        failed = negated(done) & ((search.steps >= self.maxiter) | negated(width > 0.0))
        return search._replace(best=best, error=error, done=done, failed=failed)

    def _error(self, point: Point, start: Point, ceiling: Any) -> Any:
        """The violation of the Wolfe conditions, or of the approximate ones, which use slopes instead of values."""
        curvature = self.c2 * start.slope - point.slope
        wolfe = larger(point.value - start.value - self.c1 * point.stepsize * start.slope, curvature)
        by_slope = larger(larger(point.slope - (2.0 * self.c1 - 1.0) * start.slope, curvature), point.value - ceiling)
        return violation(where(point.stepsize > 0.0, smaller(wolfe, by_slope), math.inf))

    def _update(self, ray: Ray, low: Point, high: Point, at: Any, ceiling: Any) -> tuple[Point, Point]:
        """Split the interval at a step size, if that is inside."""
        inside = (at > low.stepsize) & (at < high.stepsize)
        if inside is False:
            return low, high
        new = ray(where(inside, at, high.stepsize))
        rises = new.slope >= 0.0
        good = negated(rises) & (new.value <= ceiling)
        too_large = inside & negated(rises | good)
        high = choose(inside & negated(good), new, high)
        return self._bisect_if(too_large, ray, choose(inside & good, new, low), high, ceiling)

    def _bisect_if(self, test: Any, ray: Ray, low: Point, high: Point, ceiling: Any) -> tuple[Point, Point]:
        """Bisect an interval whose value at the upper end is too large until the slope there is positive."""
        if test is False:
            return low, high

        def halve(last: _Interval) -> _Interval:
            new = ray((last.low.stepsize + last.high.stepsize) / 2.0)
            rises = new.slope >= 0.0
            good = negated(rises) & (new.value <= ceiling)
            return _Interval(choose(good, new, last.low), choose(good, last.high, new), last.steps + 1, negated(rises))

        going: Callable[[_Interval], Any] = lambda x: x.going & (x.high.stepsize > x.low.stepsize)  # noqa: E731
        found = while_loop(going, halve, _Interval(low, high, 0, test), self.maxiter)
        return found.low, found.high


def _ceiling(start: Point) -> Any:
    return start.value + _VALUE_RTOL * abs(start.value)


def _falls(point: Point, ceiling: Any) -> Any:
    """Whether the interval must be expanded beyond a point."""
    return (point.slope < 0.0) & (point.value <= ceiling) & (point.value > -math.inf)


def _secant(a: Point, b: Point) -> Any:
    """The zero of the line through two slopes; NaN if there is none."""
    rise = b.slope - a.slope
    level = (rise == 0.0) | (rise != rise)
    return where(level, math.nan, (a.stepsize * b.slope - b.stepsize * a.slope) / where(level, 1.0, rise))
