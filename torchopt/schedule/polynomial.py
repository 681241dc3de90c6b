# SPDX-License-Identifier: Apache-2.0
"""Polynomial schedules, including linear ones."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from torchopt.numerics import as_python_scalar
from torchopt.scalars import clip, power
from torchopt.schedule.arithmetic import FunctionOfCount, Number, Schedule, lift, require_count, require_number
from torchopt.schedule.constant import constant_schedule
from torchopt.spelling import suggesting

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Polynomial(FunctionOfCount):
    """The schedule that :func:`polynomial_schedule` returns."""

    init_value: Number
    end_value: Number
    power: Number
    transition_steps: Number
    transition_begin: Number = 0

    made_by = 'polynomial_schedule'

    def __call__(self, count: Any) -> Any:
        """Return the value at the step ``count``."""
        count, init, end, exponent, steps, begin = lift(
            count, self.init_value, self.end_value, self.power, self.transition_steps, self.transition_begin
        )
        rest = 1.0 - clip(count - begin, 0.0, steps) / steps
        return (init - end) * power(rest, exponent) + end


@suggesting
def polynomial_schedule(
    init_value: Number, end_value: Number, power: Number, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    r"""A schedule that changes from one value to another along a polynomial.

    With :math:`c = \min(\max(t - B, 0), T)`,

    .. math::
        v_t = (v_0 - v_T) \left(1 - \frac{c}{T}\right)^p + v_T.

    Args:
        init_value: The first value :math:`v_0`, a number or a 0-d tensor, which may require grad.
        end_value: The last value :math:`v_T`, likewise.
        power: The exponent :math:`p`, likewise.
        transition_steps: The number of steps :math:`T` from the first value to the last.  If it is
            not positive, the schedule is constantly ``init_value``.
        transition_begin: The step :math:`B` until which the value is ``init_value``; 0 if negative.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is NaN.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.polynomial_schedule(1.0, 0.0, 2, transition_steps=4)
        >>> [schedule(t) for t in range(5)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """
    require_number('init_value', init_value)
    require_number('end_value', end_value)
    require_number('power', power)
    begin = start_of_transition('A polynomial schedule', transition_steps, transition_begin)
    if begin is None:
        return constant_schedule(init_value)
    return Polynomial(init_value, end_value, power, transition_steps, begin)


@suggesting
def linear_schedule(
    init_value: Number, end_value: Number, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    """A schedule that changes linearly from one value to another.

    It is :func:`polynomial_schedule` of power 1, with the same arguments.

    Example:
        >>> import torch, torchopt
        >>> schedule = torchopt.schedule.linear_schedule(1.0, 0.0, transition_steps=4)
        >>> schedule(1), schedule(torch.tensor(3))
        (0.75, 0.25)
    """
    return polynomial_schedule(init_value, end_value, 1, transition_steps, transition_begin)


@suggesting
def warmup_constant_schedule(init_value: Number, peak_value: Number, warmup_steps: int) -> Schedule:
    """A schedule that rises linearly and is then constant.

    Args:
        init_value: The first value.
        peak_value: The value after the warmup.
        warmup_steps: The number of steps of the warmup.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.warmup_constant_schedule(0.0, 1.0, warmup_steps=2)
        >>> [schedule(t) for t in range(4)]
        [0.0, 0.5, 1.0, 1.0]
    """
    return linear_schedule(init_value, peak_value, warmup_steps)


def start_of_transition(what: str, transition_steps: Any, transition_begin: Any) -> Any:
    """Check the arguments of a transition; the step at which it begins, at least 0, or None if it has no steps."""
    require_count('transition_steps', transition_steps)
    require_count('transition_begin', transition_begin)
    steps, begin = as_python_scalar(transition_steps), as_python_scalar(transition_begin)
    if steps is not None and steps <= 0:
        logger.info(
            '%s has transition_steps=%s, which is not positive; its value is constantly init_value.', what, steps
        )
        return None
    if begin is not None and begin < 0:
        logger.info('%s has transition_begin=%s, which is negative; the transition begins at step 0.', what, begin)
        return 0
    return transition_begin
