# SPDX-License-Identifier: Apache-2.0
"""The line search of Nocedal and Wright: bracket an interval with good step sizes, then shrink it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from torchopt.linesearch.interpolation import cubic_minimum, quadratic_minimum
from torchopt.linesearch.ray import Point, Ray, choose
from torchopt.loop.while_loops import fits_one_operation, repeat
from torchopt.scalars import larger, negated, numbers, settled, smaller, violation, where


class Zoomed(NamedTuple):
    """The result of :func:`zoom`.

    Attributes:
        point: The chosen step.
        decrease_error: The violation of the decrease condition by the last trial step: 0 if it holds.
        curvature_error: The violation of the curvature condition by the last trial step: 0 if it holds.
        steps: The number of evaluations.
        failed: Whether no step satisfies both conditions.  Then ``point`` is the best step with a sufficient decrease;
            if there is none, the last trial step; or, if its value is not finite, the start, with step size 0.
        interval: The final length of the interval.

    Example:
        >>> from torchopt.linesearch import Point, zoom
        >>> ray = lambda eta: Point(eta, (1 - eta) ** 2, -2 * (1 - eta), None)
        >>> zoom(ray, ray(0.0), 8.0, limit=9).failed
        False
    """

    point: Point
    decrease_error: Any
    curvature_error: Any
    steps: Any
    failed: Any
    interval: Any


class _End(NamedTuple):
    """An end of an interval."""

    stepsize: Any
    value: Any
    slope: Any


class ZoomOptions(NamedTuple):
    """The options of :func:`zoom`."""

    largest: Any = None
    tol: Any = 0.0
    increase_factor: Any = 2.0
    slope_rtol: Any = 1e-4
    curv_rtol: Any = 0.9
    approx_dec_rtol: Any = 1e-6
    precision: Any = 1e-5
    rel_tol_cubic: Any = 0.2
    rel_tol_quad: Any = 0.1


class ZoomSearch(NamedTuple):
    """The state of :func:`zoom`.

    ``low`` is the end of the interval with the lower value; it may be the larger step size.  ``third`` is the end that
    was replaced last, a third point for interpolation.  ``safe`` is the best step with a sufficient decrease, with step
    size 0 if there is none.
    ``first`` is the beginning.
    """

    last: Point
    safe: Point
    low: _End
    high: _End
    third: _End
    first: _End
    guess: Any
    decrease_error: Any
    curvature_error: Any
    steps: Any
    found: Any
    failed: Any
    running: Any


def zoom(
    ray: Ray,
    start: Point,
    guess: Any,
    *,
    limit: int,
    largest: Any = None,
    tol: Any = 0.0,
    increase_factor: Any = 2.0,
    slope_rtol: Any = 1e-4,
    curv_rtol: Any = 0.9,
    approx_dec_rtol: Any = 1e-6,
    precision: Any = 1e-5,
) -> Zoomed:
    r"""Find a step size that satisfies the strong Wolfe conditions: a sufficient decrease, and a small slope.

    .. math::
        \varphi(\eta) \le \varphi(0) + c_1 \eta\, \varphi'(0) + \epsilon, \qquad
        |\varphi'(\eta)| \le c_2\, |\varphi'(0)| + \epsilon

    Close to a minimum, rounding of the values makes the first condition unreliable.  It may then be replaced by a
    condition on slopes (Hager and Zhang):

    .. math::
        \varphi'(\eta) \le (2 c_1 - 1)\, \varphi'(0) + \epsilon \quad \text{if} \quad
        \varphi(\eta) \le \varphi(0) + c_3 |\varphi(0)| + \epsilon.

    The step size is increased until an interval with good step sizes is known.  Then the interval is divided at the
    minimum of a cubic through three points, or else of a parabola through two points, or at its midpoint if these do
    not exist or are too close to an end.

    Args:
        ray: ``ray(stepsize)`` evaluates :math:`\varphi`, its slope, and other results.
        start: The point at step size 0.
        guess: The first step size, positive.
        limit: The maximum number of evaluations, at least 1.
        largest: The largest step size; no bound if None.
        tol: :math:`\epsilon`.
        increase_factor: The factor of each increase, larger than 1.
        slope_rtol: :math:`c_1`.
        curv_rtol: :math:`c_2`; infinity turns the second condition off.
        approx_dec_rtol: :math:`c_3`; None never replaces the first condition.
        precision: The length of the interval at which the search ends with any sufficient decrease.

    Returns:
        The step, and the outcome of the search.

    Example:
        >>> from torchopt.linesearch import Point, zoom
        >>> ray = lambda eta: Point(eta, (1 - eta) ** 2, -2 * (1 - eta), None)
        >>> found = zoom(ray, ray(0.0), 8.0, limit=9)
        >>> found.point.stepsize, found.steps
        (1.0, 2)

    References:
        Nocedal and Wright, `Numerical optimization <https://doi.org/10.1007/978-0-387-40065-5>`_, algorithms 3.5 and
        3.6, 2006.  Hager and Zhang, `Algorithm 851: CG_DESCENT <https://doi.org/10.1145/1132973.1132979>`_, 2006.
    """
    options = ZoomOptions(largest, tol, increase_factor, slope_rtol, curv_rtol, approx_dec_rtol, precision)
    return zoom_search(ray, start, guess, options, limit)


def zoom_search(ray: Ray, start: Point, guess: Any, options: ZoomOptions, limit: int) -> Zoomed:
    """:func:`zoom` with its options in one."""
    value, slope, guess = numbers(start.value, start.slope, guess)
    first = _End(0.0, value, slope)
    new = ray(guess if options.largest is None else smaller(guess, options.largest))
    if options.tol == 0.0 and _are_floats(first, new) and _accepts(first, new, options):
        return Zoomed(new, 0.0, 0.0, 1, False, 0.0)  # most searches end here
    one_operation = fits_one_operation((start, new))
    if one_operation:  # which begins with the first evaluation, so that it is compiled once
        search = zoom_begin(start, guess)._replace(running=torch.ones_like(new.value, dtype=torch.bool))
    else:
        decrease, curvature = _errors(first, new, options)
        if settled(larger(decrease, curvature) <= options.tol) is True:
            # Most searches end here.
            return Zoomed(new, decrease, curvature, 1, False, 0.0)
        search = _absorb(zoom_begin(start, guess), new, options, limit)
    if search.running is not False:
        search = repeat(
            lambda search: search.running,
            lambda search: zoom_step(ray, search, options, limit),
            search,
            None if one_operation else limit - 1,  # `running` ends at the limit too
            check=False,
        )
    return zoom_end(search)


def _are_floats(x: _End, y: Point) -> bool:
    """Whether values and slopes are numbers on the host."""
    return type(x.value) is type(x.slope) is type(y.value) is type(y.slope) is float


def _accepts(first: _End, new: Point, options: ZoomOptions) -> bool:
    """Whether a step satisfies both conditions, as :func:`_errors` has them, on the host."""
    gain, slope = new.value - first.value, first.slope
    if not math.isfinite(gain + slope + new.slope):
        return False
    enough = gain <= options.slope_rtol * new.stepsize * slope
    if not enough and options.approx_dec_rtol is not None:
        by_slope = new.slope <= (2.0 * options.slope_rtol - 1.0) * slope
        enough = by_slope and gain <= options.approx_dec_rtol * abs(first.value)
    return bool(enough and abs(new.slope) <= options.curv_rtol * abs(slope))


def zoom_begin(start: Point, guess: Any) -> ZoomSearch:
    """The state of :func:`zoom` before its first evaluation."""
    value, slope, guess = numbers(start.value, start.slope, guess)
    start = Point(0.0, value, slope, start.extra)
    first = _End(0.0, value, slope)
    return ZoomSearch(start, start, first, first, first, first, guess, math.inf, math.inf, 0, False, False, True)


def _errors(first: _End, new: Point, options: ZoomOptions) -> tuple[Any, Any]:
    """By how much a step violates the conditions of decrease and of curvature."""
    gain = new.value - first.value
    decrease = gain - options.slope_rtol * new.stepsize * first.slope
    if options.approx_dec_rtol is not None:
        by_slope = new.slope - (2.0 * options.slope_rtol - 1.0) * first.slope
        decrease = smaller(larger(by_slope, gain - options.approx_dec_rtol * abs(first.value)), decrease)
    return violation(decrease), violation(abs(new.slope) - options.curv_rtol * abs(first.slope))


def zoom_step(ray: Ray, search: ZoomSearch, options: ZoomOptions, limit: int) -> ZoomSearch:
    """One evaluation of :func:`zoom`."""
    stepsize = _longer(search, options)
    if options.largest is not None:
        stepsize = smaller(stepsize, options.largest)
    if search.found is not False:
        stepsize = where(search.found, _cut(search, options), stepsize)
    if isinstance(search.running, np.ndarray):  # of a batch, a search that has ended stays where it is
        stepsize = where(search.running, stepsize, search.last.stepsize)
    return _absorb(search, ray(stepsize), options, limit)


def _longer(search: ZoomSearch, options: ZoomOptions) -> Any:
    """The next step size, as long as no interval is known."""
    return where(search.steps > 0, options.increase_factor * search.last.stepsize, search.guess)


def _absorb(search: ZoomSearch, new: Point, options: ZoomOptions, limit: int) -> ZoomSearch:
    """The state after an evaluation."""
    first, tol = search.first, options.tol
    largest = math.inf if options.largest is None else options.largest
    begun, longer = search.steps > 0, _longer(search, options)
    decrease, curvature = _errors(first, new, options)
    met = larger(decrease, curvature) <= tol
    known, end = search.found, _End(*new[:3])

    # The first step that is too long or acceptable ends the bracketing; the last step is the lower end until then.
    last = _End(*search.last[:3])
    rises = begun & (new.value >= last.value)
    too_long = (decrease > 0.0) | rises
    turned = negated(too_long) & (new.slope >= 0.0)
    found = too_long | turned | met

    # The new point replaces one end of the interval; the other end moves as well if the minimum is beyond it.
    low, high = search.low, search.high
    worse = (decrease > 0.0) | (new.value >= low.value)
    beyond = negated(worse) & (new.slope * (high.stepsize - low.stepsize) >= 0.0)

    new_low = _choose(known, _choose(worse, low, end), _choose(turned, end, last))
    new_high = _choose(known, _choose(worse, end, _choose(beyond, low, high)), _choose(turned, last, end))
    third = _choose(known, _choose(worse | beyond, high, low), new_low)

    enough = decrease <= tol
    better = enough & (negated(known) | (new.value < search.safe.value))
    safe = choose(better, new, search.safe)
    out_of_reach = negated(known) & (longer >= largest) & negated(found)
    too_small = known & (abs(high.stepsize - low.stepsize) <= options.precision) & (safe.stepsize > 0.0)
    done = met | out_of_reach
    failed = negated(done) & (too_small | (search.steps + 1 >= limit))
    going = negated(done | failed)
    k = search.steps + 1
    return ZoomSearch(
        new, safe, new_low, new_high, third, first, search.guess, decrease, curvature, k, known | found, failed, going
    )


def zoom_end(search: ZoomSearch) -> Zoomed:
    """The result of :func:`zoom`."""
    fall_back = search.failed & ((search.safe.stepsize > 0.0) | (search.decrease_error == math.inf))
    return Zoomed(
        choose(fall_back, search.safe, search.last),
        search.decrease_error,
        search.curvature_error,
        search.steps,
        search.failed,
        abs(search.high.stepsize - search.low.stepsize),
    )


def _choose(test: Any, x: _End, y: _End) -> _End:
    test = settled(test)
    if test is True or test is False:
        return x if test else y
    return _End(*(where(test, a, b) for a, b in zip(x, y)))


def _cut(search: ZoomSearch, options: ZoomOptions) -> Any:
    """The step size within the interval to try next."""
    low, high, third = search.low, search.high, search.third
    left, right = smaller(low.stepsize, high.stepsize), larger(low.stepsize, high.stepsize)
    length = right - left

    def inside(x: Any, margin: float) -> Any:
        return (x > left + margin * length) & (x < right - margin * length)

    cubic = cubic_minimum(*low, high.stepsize, high.value, third.stepsize, third.value)
    parabola = quadratic_minimum(*low, high.stepsize, high.value)
    middle = (low.stepsize + high.stepsize) / 2.0
    return where(
        inside(cubic, options.rel_tol_cubic), cubic, where(inside(parabola, options.rel_tol_quad), parabola, middle)
    )
