# SPDX-License-Identifier: Apache-2.0
"""The search of Hager and Zhang as a line search of solvers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torchopt.linesearch import Point, Ray
from torchopt.linesearch.hager_zhang import HagerZhangOptions, HagerZhangSearch, hager_zhang_begin, hager_zhang_step
from torchopt.scalars import negated
from torchopt.solver.linesearch.base import LineSearch

__all__ = ['HagerZhangLineSearch']


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
