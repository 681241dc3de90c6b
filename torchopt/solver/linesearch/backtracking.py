# SPDX-License-Identifier: Apache-2.0
"""Backtracking as a line search of solvers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt.linesearch import Point, Ray, choose
from torchopt.scalars import larger, negated, numbers, smaller, violation, where
from torchopt.solver.linesearch.base import LineSearch


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
        stepsize, value, slope, guess = numbers(*start[:3], guess)
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
        # Of a batch, a search that has ended stays where it is.
        following = where(done | failed, new.stepsize, new.stepsize * self.decrease_factor)
        return BacktrackingSearch(start, new, safe, following, error, search.steps + 1, done, failed)

    def _goes_on(self, search: BacktrackingSearch) -> Any:
        return negated(search.done | search.failed)

    def _end(self, search: BacktrackingSearch) -> tuple[Point, Any, Any, Any]:
        point = choose(search.failed & (search.safe.stepsize > 0.0), search.safe, search.last)
        return point, search.error, search.steps, search.failed
