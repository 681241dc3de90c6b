# SPDX-License-Identifier: Apache-2.0
"""Inverse time decay."""

from __future__ import annotations

import dataclasses
from typing import Any

from torchopt.schedule.arithmetic import FunctionOfCount, Number, Schedule, lift, require_number
from torchopt.spelling import suggesting


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class InverseTime(FunctionOfCount):
    """The schedule that :func:`inverse_time_decay` returns."""

    init_value: Number
    decay_rate: Number

    made_by = 'inverse_time_decay'

    def __call__(self, count: Any) -> Any:
        """Return the value at the step ``count``."""
        count, init, rate = lift(count, self.init_value, self.decay_rate)
        return init / (1.0 + rate * count)


@suggesting
def inverse_time_decay(init_value: Number, decay_rate: Number) -> Schedule:
    r"""The schedule :math:`s(t) = s_0 / (1 + \delta t)`.

    Args:
        init_value: The first value :math:`s_0`, a number or a 0-d tensor.
        decay_rate: The rate :math:`\delta`, a number or a 0-d tensor.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is NaN.

    Example:
        >>> import torchopt
        >>> torchopt.schedule.inverse_time_decay(1.0, 0.5)(2)
        0.5
    """
    require_number('init_value', init_value)
    require_number('decay_rate', decay_rate)
    return InverseTime(init_value, decay_rate)
