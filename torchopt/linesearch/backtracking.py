# SPDX-License-Identifier: Apache-2.0
"""Backtracking: decrease the step size until the decrease of the function is sufficient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt.loop import while_loop
from torchopt.scalars import numbers, violation, where


class Backtracked(NamedTuple):
    """The result of :func:`backtracking`.

    Attributes:
        stepsize: The last trial step size.
        value: The value at this step size.
        decrease_error: The violation of the decrease condition at this step size: 0 if it holds.
        steps: The number of evaluations.
        running: Whether the condition does not hold, so that the search has failed.

    Example:
        >>> from torchopt.linesearch import backtracking
        >>> backtracking(lambda eta: (1 - eta) ** 2, 1.0, -2.0, 4.0, limit=5, decrease_factor=0.5).running
        False
    """

    stepsize: Any
    value: Any
    decrease_error: Any
    steps: Any
    running: Any


def backtracking(
    value_at: Callable[[Any], Any],
    value: Any,
    slope: Any,
    guess: Any,
    *,
    limit: int,
    slope_rtol: Any = 1e-4,
    decrease_factor: Any = 0.8,
    atol: Any = 0.0,
    rtol: Any = 0.0,
) -> Backtracked:
    r"""Decrease a step size until Armijo's condition holds.

    .. math:: \varphi(\eta) \le (1 + \delta)\, \varphi(0) + c\, \eta\, \varphi'(0) + \epsilon

    If the value is NaN, the condition does not hold.

    Args:
        value_at: ``value_at(stepsize)`` returns :math:`\varphi(\eta)`, a number or a 0-d tensor.
        value: :math:`\varphi(0)`.
        slope: :math:`\varphi'(0)`, negative for a descent direction.
        guess: The first trial step size.
        limit: The maximum number of decreases.
        slope_rtol: :math:`c`.
        decrease_factor: The factor of each decrease, in (0, 1).
        atol: :math:`\epsilon`.
        rtol: :math:`\delta`.

    Returns:
        The last trial step, even if the condition does not hold.

    Example:
        >>> from torchopt.linesearch import backtracking
        >>> found = backtracking(lambda eta: (1 - eta) ** 2, 1.0, -2.0, 4.0, limit=5, decrease_factor=0.5)
        >>> found.stepsize, found.value, found.steps
        (1.0, 0.0, 3)

    References:
        Armijo, `Minimization of functions having Lipschitz continuous first partial derivatives
        <https://doi.org/10.2140/pjm.1966.16.1>`_, 1966.
    """
    value, slope, guess = numbers(value, slope, guess)

    def step(last: Backtracked) -> Backtracked:
        stepsize = where(last.steps > 0, decrease_factor * last.stepsize, last.stepsize)
        (new,) = numbers(value_at(stepsize))
        error = violation(new - (1.0 + rtol) * value - stepsize * slope_rtol * slope)
        return Backtracked(stepsize, new, error, last.steps + 1, error > atol)

    return while_loop(lambda last: last.running, step, Backtracked(guess, value, math.inf, 0, True), limit + 1)
