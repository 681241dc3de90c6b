# SPDX-License-Identifier: Apache-2.0
"""The line search of Hager and Zhang: secant steps at both ends of an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt.linesearch.ray import Point, Ray, choose
from torchopt.loop import while_loop
from torchopt.scalars import larger, negated, numbers, smaller, violation, where

__all__ = ['HagerZhangOptions', 'HagerZhangSearch', 'hager_zhang_begin', 'hager_zhang_step']


class HagerZhangOptions(NamedTuple):
    r"""The options of the search.

    Attributes:
        limit: The maximum number of consecutive bisections or expansions.
        tol: The permitted violation of the conditions.
        c1: The constant of the decrease condition.
        c2: The constant of the curvature condition.
        expansion_factor: The factor by which the first interval expands.
        shrinkage_factor: An interval that did not shrink by this factor is bisected.
        value_rtol: The tolerance :math:`\epsilon`: a value of at most :math:`\varphi(0) + \epsilon |\varphi(0)|` is
            treated as no larger than :math:`\varphi(0)`, since rounding errors are of this size.
    """

    limit: int = 30
    tol: Any = 0.0
    c1: Any = 0.1
    c2: Any = 0.9
    expansion_factor: Any = 5.0
    shrinkage_factor: Any = 0.66
    value_rtol: Any = 1e-6


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


def hager_zhang_begin(ray: Ray, start: Point, guess: Any, options: HagerZhangOptions) -> HagerZhangSearch:
    """Find an interval: expand until the slope is positive or the value too large; NaN is treated as too large.

    Args:
        ray: ``ray(stepsize)`` evaluates the function and its slope.
        start: The point at step size 0.
        guess: The first step size, positive.
        options: The options.

    References:
        Hager and Zhang, `Algorithm 851: CG_DESCENT <https://doi.org/10.1145/1132973.1132979>`_, 2006.
    """
    stepsize, value, slope = numbers(*start[:3])
    start = Point(stepsize, value, slope, start.extra)
    (guess,) = numbers(guess)
    ceiling = _ceiling(start, options)

    def expand(last: _Interval) -> _Interval:
        new = ray(options.expansion_factor * last.high.stepsize)
        return _Interval(last.high, new, last.steps + 1, _falls(new, ceiling))

    first = ray(guess)
    interval = _Interval(start, first, 0, _falls(first, ceiling))
    # The first point may already satisfy the conditions.
    error = _error(first, start, ceiling, options)
    accepted = error <= options.tol
    interval = interval._replace(going=interval.going & negated(accepted))
    interval = while_loop(lambda x: x.going, expand, interval, options.limit)
    too_large = negated(interval.high.slope >= 0.0) & negated(accepted)
    low, high = _bisect_if(too_large, ray, choose(too_large, start, interval.low), interval.high, ceiling, options)
    return _judge(HagerZhangSearch(start, low, high, first, error, 0, accepted, False), ceiling, options)


def hager_zhang_step(ray: Ray, search: HagerZhangSearch, options: HagerZhangOptions) -> HagerZhangSearch:
    """Two secant steps, and a bisection if they have not shrunk the interval enough."""
    start, low, high = search[:3]
    ceiling = _ceiling(start, options)
    at = _secant(low, high)
    new_low, new_high = _update(ray, low, high, at, ceiling, options)
    # A second secant step, from the end that changed.
    second = where(
        at == new_high.stepsize,
        _secant(high, new_high),
        where(at == new_low.stepsize, _secant(low, new_low), math.nan),
    )
    new_low, new_high = _update(ray, new_low, new_high, second, ceiling, options)
    slow = new_high.stepsize - new_low.stepsize > options.shrinkage_factor * (high.stepsize - low.stepsize)
    middle = where(slow, (new_low.stepsize + new_high.stepsize) / 2.0, math.nan)
    new_low, new_high = _update(ray, new_low, new_high, middle, ceiling, options)
    return _judge(search._replace(low=new_low, high=new_high, steps=search.steps + 1), ceiling, options)


def _ceiling(start: Point, options: HagerZhangOptions) -> Any:
    return start.value + options.value_rtol * abs(start.value)


def _falls(point: Point, ceiling: Any) -> Any:
    """Whether the interval must be expanded beyond a point."""
    return (point.slope < 0.0) & (point.value <= ceiling) & (point.value > -math.inf)


def _judge(search: HagerZhangSearch, ceiling: Any, options: HagerZhangOptions) -> HagerZhangSearch:
    """Choose the better end, and check whether it satisfies the conditions."""
    lower = search.low.value < search.high.value
    lower = lower | (search.high.value != search.high.value)
    best = choose(lower, search.low, search.high)
    best = choose(search.done, search.best, best)
    error = where(search.done, search.error, _error(best, search.start, ceiling, options))
    done = search.done | (error <= options.tol)
    width = search.high.stepsize - search.low.stepsize
    failed = negated(done) & ((search.steps >= options.limit) | negated(width > 0.0))
    return search._replace(best=best, error=error, done=done, failed=failed)


def _error(point: Point, start: Point, ceiling: Any, options: HagerZhangOptions) -> Any:
    """The violation of the Wolfe conditions, or of the approximate ones, which use slopes instead of values."""
    curvature = options.c2 * start.slope - point.slope
    wolfe = larger(point.value - start.value - options.c1 * point.stepsize * start.slope, curvature)
    by_slope = larger(larger(point.slope - (2.0 * options.c1 - 1.0) * start.slope, curvature), point.value - ceiling)
    return violation(where(point.stepsize > 0.0, smaller(wolfe, by_slope), math.inf))


def _secant(a: Point, b: Point) -> Any:
    """The zero of the line through two slopes; NaN if there is none."""
    rise = b.slope - a.slope
    level = (rise == 0.0) | (rise != rise)
    return where(level, math.nan, (a.stepsize * b.slope - b.stepsize * a.slope) / where(level, 1.0, rise))


def _update(
    ray: Ray, low: Point, high: Point, at: Any, ceiling: Any, options: HagerZhangOptions
) -> tuple[Point, Point]:
    """Split the interval at a step size, if that is inside."""
    inside = (at > low.stepsize) & (at < high.stepsize)
    if inside is False:
        return low, high
    new = ray(where(inside, at, high.stepsize))
    rises = new.slope >= 0.0
    good = negated(rises) & (new.value <= ceiling)
    too_large = inside & negated(rises | good)
    high = choose(inside & negated(good), new, high)
    return _bisect_if(too_large, ray, choose(inside & good, new, low), high, ceiling, options)


def _bisect_if(
    test: Any, ray: Ray, low: Point, high: Point, ceiling: Any, options: HagerZhangOptions
) -> tuple[Point, Point]:
    """Bisect an interval whose value at the upper end is too large until the slope there is positive."""
    if test is False:
        return low, high

    def halve(last: _Interval) -> _Interval:
        new = ray((last.low.stepsize + last.high.stepsize) / 2.0)
        rises = new.slope >= 0.0
        good = negated(rises) & (new.value <= ceiling)
        return _Interval(choose(good, new, last.low), choose(good, last.high, new), last.steps + 1, negated(rises))

    going: Callable[[_Interval], Any] = lambda x: x.going & (x.high.stepsize > x.low.stepsize)  # noqa: E731
    found = while_loop(going, halve, _Interval(low, high, 0, test), options.limit)
    return found.low, found.high
