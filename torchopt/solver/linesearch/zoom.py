# SPDX-License-Identifier: Apache-2.0
"""The search of Nocedal and Wright as a line search of solvers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torchopt.linesearch import Point, Ray
from torchopt.linesearch.zoom import ZoomOptions, ZoomSearch, zoom_begin, zoom_end, zoom_search, zoom_step
from torchopt.scalars import where
from torchopt.solver.linesearch.base import Found, LineSearch, LineSearchState
from torchopt.solver.status import Status


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
