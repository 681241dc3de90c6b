# SPDX-License-Identifier: Apache-2.0
"""Multiply updates: by a constant, by a schedule, by the negative learning rate."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torchopt import checks, tree
from torchopt._C import reference
from torchopt.base import (
    EmptyState,
    GradientTransformation,
    elementwise,
    factory,
    init_empty_state,
)
from torchopt.numerics import increment, on_host, zero_count

__all__ = ['ScaleByScheduleState', 'scale', 'scale_by_learning_rate', 'scale_by_schedule']


def _times(factor: Any, settle: Any) -> tree.Pass:
    """The rule that multiplies by a factor, a Python number wherever it can be."""
    number = on_host(factor)
    return tree.Pass(partial(reference.scale, factor=factor if number is None else number), (), settle)


@factory
def scale(step_size: Any) -> GradientTransformation:
    r"""Multiply every update by a constant: :math:`u = s\,g`.

    Args:
        step_size: The factor :math:`s`, a number or a 0-d tensor; a tensor that requires grad receives its gradient.

    Raises:
        ValueError: If the factor is NaN, or a tensor of more than one element.
        TypeError: If it is neither a number nor a tensor.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale(2.0)
        >>> tx.update({'w': torch.tensor(3.0)}, tx.init({'w': torch.tensor(0.0)}))[0]
        {'w': tensor(6.)}
    """
    checks.number('step_size value', step_size)

    return elementwise(init_empty_state, lambda state: _times(step_size, EmptyState))


@tree.safe_to_load
class ScaleByScheduleState(NamedTuple):
    """State of :func:`scale_by_schedule`: the number of steps taken."""

    count: Any


@factory
def scale_by_schedule(step_size_fn: Any) -> GradientTransformation:
    r"""Multiply every update by what a schedule gives: :math:`u_t = s(t)\,g_t`, with :math:`t = 0` at the first step.

    Args:
        step_size_fn: The schedule, a function from the count to a number or 0-d tensor.  The count is a 0-d int64
            tensor on the CPU, so that Python's mathematics and torch's both work on it.

    Raises:
        TypeError: If ``step_size_fn`` is not a function.
        ValueError: In ``update``, if the schedule returns NaN, infinity or more than one number; nothing is changed
            then.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_schedule(lambda count: 0.5**count)
        >>> state = tx.init([torch.tensor(1.0)])
        >>> for _ in range(3):
        ...     u, state = tx.update([torch.tensor(1.0)], state)
        >>> u
        [tensor(0.2500)]
    """
    checks.schedule('step_size_fn', step_size_fn)
    return _scheduled(step_size_fn, 1)


def _scheduled(schedule: Any, sign: int) -> GradientTransformation:
    def value(state: ScaleByScheduleState, params: Any = None) -> Any:
        return checks.schedule_value(schedule(state.count), state.count)

    def init(params: Any) -> ScaleByScheduleState:
        return ScaleByScheduleState(zero_count())

    def begin(state: ScaleByScheduleState) -> tree.Pass:
        return _times(sign * value(state), lambda: ScaleByScheduleState(increment(state.count)))

    return elementwise(init, begin, ScaleByScheduleState, then=value)


@factory
def scale_by_learning_rate(learning_rate: Any, *, flip_sign: bool = True) -> GradientTransformation:
    r"""Multiply every update by the negative learning rate: :math:`u = -\eta\,g`.

    The last stage of every optimizer, after which updates are ready to be added to the parameters.

    Args:
        learning_rate: :math:`\eta \ge 0`: a number, a 0-d tensor (learned if it requires grad) or a schedule.
        flip_sign: False multiplies by :math:`+\eta`, for ascent.

    Raises:
        ValueError: If the learning rate is negative, NaN or infinite.
        TypeError: If it is neither a number, a tensor nor callable.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_learning_rate(0.1)
        >>> tx.update([torch.tensor(2.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(-0.2000)]
    """
    checks.learning_rate(learning_rate)
    sign = -1 if flip_sign else 1
    if checks.is_schedule(learning_rate):
        return _scheduled(learning_rate, sign)

    return elementwise(init_empty_state, lambda state: _times(sign * learning_rate, EmptyState))
