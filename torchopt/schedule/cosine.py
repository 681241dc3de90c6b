# SPDX-License-Identifier: Apache-2.0
"""Cosine decay, with and without a warmup."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torchopt.numerics import as_python_scalar
from torchopt.scalars import cosine, power, smaller, where
from torchopt.schedule.arithmetic import FunctionOfCount, Number, Schedule, lift, require_count, require_number
from torchopt.schedule.join import join_schedules
from torchopt.schedule.polynomial import linear_schedule
from torchopt.spelling import suggesting


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Cosine(FunctionOfCount):
    """The schedule that :func:`cosine_decay_schedule` returns."""

    init_value: Number
    decay_steps: Number
    alpha: Number = 0.0
    exponent: Number = 1.0

    made_by = 'cosine_decay_schedule'

    def __call__(self, count: Any) -> Any:
        """Return the value at the step ``count``."""
        count, init, steps, alpha, exponent = lift(count, self.init_value, self.decay_steps, self.alpha, self.exponent)
        half_wave = 0.5 * (1.0 + cosine(math.pi * smaller(count, steps) / steps))
        return init * ((1.0 - alpha) * power(half_wave, exponent) + alpha)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CosineTo(FunctionOfCount):
    """Like :class:`Cosine`, given the last value instead of its ratio to the first.

    Each call computes the ratio again, since a graph made once could be backpropagated through only once.
    """

    init_value: Number
    end_value: Number
    decay_steps: Number
    exponent: Number = 1.0

    def __call__(self, count: Any) -> Any:
        """Return the value at the step ``count``."""
        init, end = lift(self.init_value, self.end_value)
        # If the peak is zero, the whole schedule is zero, not NaN.
        alpha = where(init == 0, 0.0 * end, end) / where(init == 0, 1.0 + 0.0 * init, init)
        return Cosine(self.init_value, self.decay_steps, alpha, self.exponent)(count)


@suggesting
def cosine_decay_schedule(
    init_value: Number, decay_steps: int, alpha: Number = 0.0, exponent: Number = 1.0
) -> Schedule:
    r"""A schedule that decays along half a period of the cosine.

    With :math:`c = \min(t, T)`,

    .. math::
        v_t = v_0 \left[ (1 - \alpha)
            \left( \tfrac12 + \tfrac12 \cos \tfrac{\pi c}{T} \right)^p + \alpha \right].

    Args:
        init_value: The first value :math:`v_0`, a number or a 0-d tensor, which may require grad.
        decay_steps: The number of steps :math:`T > 0` of the decay.
        alpha: The last value as a fraction of the first.
        exponent: The exponent :math:`p`.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is NaN, or ``decay_steps`` is not positive.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.cosine_decay_schedule(1.0, decay_steps=4)
        >>> [round(schedule(t), 3) for t in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]

    References:
        Loshchilov and Hutter, `SGDR <https://arxiv.org/abs/1608.03983>`_, ICLR 2017.
    """
    require_number('init_value', init_value)
    require_number('alpha', alpha)
    require_number('exponent', exponent)
    _require_positive('decay_steps', decay_steps)
    return Cosine(init_value, decay_steps, alpha, exponent)


@suggesting
def warmup_cosine_decay_schedule(
    init_value: Number,
    peak_value: Number,
    warmup_steps: int,
    decay_steps: int,
    end_value: Number = 0.0,
    exponent: Number = 1.0,
) -> Schedule:
    """A schedule that rises linearly and then decays along half a period of the cosine.

    Args:
        init_value: The first value, a number or a 0-d tensor, which may require grad.
        peak_value: The value after the warmup, likewise.
        warmup_steps: The number of steps of the warmup.
        decay_steps: The total number of steps, including the warmup; more than ``warmup_steps``.
        end_value: The last value.
        exponent: The exponent of the decay, as in :func:`cosine_decay_schedule`.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is NaN, or ``decay_steps`` is not more than ``warmup_steps``.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.warmup_cosine_decay_schedule(0.0, 1.0, 2, 6)
        >>> [round(schedule(t), 3) for t in range(7)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    require_number('end_value', end_value)
    require_number('exponent', exponent)
    warmup = linear_schedule(init_value, peak_value, warmup_steps)
    require_count('decay_steps', decay_steps)
    _require_positive('decay_steps - warmup_steps', decay_steps - warmup_steps)
    decay = CosineTo(peak_value, end_value, decay_steps - warmup_steps, exponent)
    return join_schedules([warmup, decay], [warmup_steps])


def _require_positive(name: str, steps: Any) -> None:
    require_count(name, steps)
    number = as_python_scalar(steps)
    if number is not None and number <= 0:
        raise ValueError(f'Invalid {name}: {steps}; expected a positive number of steps.')
