# SPDX-License-Identifier: Apache-2.0
"""Exponential decay, smooth or in steps."""

from __future__ import annotations

import dataclasses
import logging
import math
from typing import Any

from torchopt.numerics import as_python_scalar
from torchopt.scalars import floor, larger, power, smaller, where
from torchopt.schedule.arithmetic import FunctionOfCount, Number, Schedule, lift, require_number
from torchopt.schedule.constant import constant_schedule
from torchopt.schedule.polynomial import start_of_transition
from torchopt.spelling import suggesting

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Exponential(FunctionOfCount):
    """The schedule that :func:`exponential_decay` returns."""

    init_value: Number
    decay_rate: Number
    transition_begin: Number = 0
    transition_steps: Number = 1
    staircase: bool = False
    end_value: Number | None = None

    made_by = 'exponential_decay'

    def __call__(self, count: Any) -> Any:
        """Return the value at the step ``count``."""
        bounds = [] if self.end_value is None else [self.end_value]
        count, init, rate, begin, steps, *bounds = lift(
            count, self.init_value, self.decay_rate, self.transition_begin, self.transition_steps, *bounds
        )
        # Clamp the exponent at 0 before the transition: a large negative one could overflow.
        exponent = larger(count - begin, 0.0 * begin) / steps
        if self.staircase:
            exponent = floor(exponent)
        value = where(rate == 0, init, init * power(rate, exponent))
        for end in bounds:
            bounded = where(rate < 1, larger(value, end), smaller(value, end))
            value = where(rate == 0, value, bounded)
        return value


@suggesting
def exponential_decay(
    init_value: Number,
    decay_rate: Number,
    transition_begin: int = 0,
    transition_steps: int = 1,
    staircase: bool = False,
    end_value: Number | None = None,
) -> Schedule:
    r"""A schedule that decays, or grows, exponentially.

    .. math::
        v_t = v_0 \, r^{\max(t - B, 0) / T}

    The order of the arguments is that of TorchOpt 0.7.3; Optax has ``transition_steps`` second: pass keywords.

    Args:
        init_value: The first value :math:`v_0`, a number or a 0-d tensor, which may require grad.
        decay_rate: The factor :math:`r`, likewise.  If it is 0, the schedule is constant.
        transition_begin: The step :math:`B` until which the value is ``init_value``; 0 if negative.
        transition_steps: The number of steps :math:`T` in which the value changes by the factor :math:`r`.  If it
            is not positive, the schedule is constant.
        staircase: Round the exponent down, so that the value changes every :math:`T` steps.
        end_value: A lower bound if :math:`r < 1`, else an upper bound; None means no bound.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is NaN, or the arguments seem to be in Optax's order: a fractional
            ``transition_begin`` with a ``decay_rate`` of at least 1.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.exponential_decay(1.0, 0.5, transition_steps=2, staircase=True)
        >>> [schedule(t) for t in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    require_number('init_value', init_value)
    require_number('decay_rate', decay_rate)
    if end_value is not None:
        require_number('end_value', end_value)
    rate, begin = as_python_scalar(decay_rate), as_python_scalar(transition_begin)
    if rate is not None and begin is not None and rate >= 1 and begin % 1 != 0 and math.isfinite(begin):
        raise ValueError(
            f'decay_rate={rate} and transition_begin={begin}; expected a factor and a number of steps. Here the order '
            f'of arguments is init_value, decay_rate, transition_begin, transition_steps; in Optax transition_steps '
            f'comes second. Pass keywords.'
        )
    begin = start_of_transition('An exponential schedule', transition_steps, transition_begin)
    if begin is None:
        return constant_schedule(init_value)
    if as_python_scalar(decay_rate) == 0:
        logger.info('An exponential schedule has decay_rate=0; its value is constantly init_value.')
        return constant_schedule(init_value)
    return Exponential(init_value, decay_rate, begin, transition_steps, bool(staircase), end_value)
