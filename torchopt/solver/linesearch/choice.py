# SPDX-License-Identifier: Apache-2.0
"""The line search of a solver, by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchopt.solver.linesearch.backtracking import BacktrackingLineSearch
from torchopt.solver.linesearch.base import LineSearch
from torchopt.solver.linesearch.hager_zhang import HagerZhangLineSearch
from torchopt.solver.linesearch.zoom import ZoomLineSearch

__all__ = ['linesearch_of']


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
