# SPDX-License-Identifier: Apache-2.0
"""Runs on objectives without a lower bound, which their end shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from torchopt import tree
from torchopt.dtypes import is_inexact
from torchopt.scalars import larger, negated, settled, where
from torchopt.solver.run import OptStep, Task
from torchopt.solver.status import Status

_FAR = 100.0
"""Parameters that have grown by less than this factor are no sign of an objective without a lower bound."""


def recognizing_no_bound(task: Task, measures: Callable[[Any], tuple[Any, Any, Any]], tol: Any) -> Task:
    """The task of a run at whose end an objective without a lower bound is recognized.

    ``measures(params)`` returns the objective, the norm of the parameters, and by how much they violate the optimality
    condition, whose tolerance is ``tol``.
    """
    init_params = task.start.params

    def finish(last: OptStep) -> OptStep:
        params, state = last = task.finish(last)
        like = next((x for x in tree.leaves(params) if is_inexact(x)), None)
        # The parameters of an objective without a lower bound grow without end.
        if like is None or settled(tree.wide_norm(params) <= _FAR * (1.0 + tree.wide_norm(init_params))) is True:
            return last
        endless = has_no_bound(measures(init_params), measures(params), torch.finfo(like.dtype).eps)
        status = where(endless & negated(state.error <= tol), int(Status.UNBOUNDED), state.status)
        return OptStep(params, state._replace(status=status))

    return task._replace(finish=finish)


def has_no_bound(start: tuple[Any, Any, Any], end: tuple[Any, Any, Any], precision: float) -> Any:
    """Whether a descent shows that an objective has no lower bound, as far as numbers can show it.

    The objective is minus infinity; or the parameters and the decrease are so large that those of the start are hardly
    more than rounding, and the gradient is as steep as there.  Start and end are the objective and the norms of the
    parameters and of the gradient; ``precision`` is that of the dtype.
    """
    (before, began, slope), (after, ended, last_slope) = start, end
    least = precision**-0.5
    far = (ended > least * larger(began, 1.0)) & (after < -least * larger(abs(before), 1.0))
    return (after == -math.inf) | (far & (last_slope >= 0.5 * slope))
