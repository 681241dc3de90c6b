# SPDX-License-Identifier: Apache-2.0
"""Constant and piecewise constant schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from torchopt.scalars import where
from torchopt.schedule.arithmetic import FunctionOfCount, Number, Schedule, lift, require_number, scales_in_order
from torchopt.spelling import suggesting


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Constant(FunctionOfCount):
    """The schedule that :func:`constant_schedule` returns."""

    value: Number

    made_by = 'constant_schedule'

    def __call__(self, count: Any) -> Any:
        """The value, in the shape of the count."""
        count, value = lift(count, self.value)
        return value.expand(count.shape) if isinstance(value, torch.Tensor) else value


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PiecewiseConstant(FunctionOfCount):
    """The schedule that :func:`piecewise_constant_schedule` returns."""

    init_value: Number
    boundaries_and_scales: tuple[tuple[Number, Number], ...]

    made_by = 'piecewise_constant_schedule'

    def __call__(self, count: Any) -> Any:
        """The product of the initial value and all factors whose boundary is at most ``count``."""
        flat = [x for pair in self.boundaries_and_scales for x in pair]
        count, value, *flat = lift(count, self.init_value, *flat)
        if isinstance(value, torch.Tensor):
            value = value.expand(count.shape)
        for boundary, factor in zip(flat[::2], flat[1::2]):
            value = where(count < boundary, value, value * factor)
        return value


@suggesting
def constant_schedule(value: Number) -> Schedule:
    """A constant schedule.

    Args:
        value: The value, a number or a 0-d tensor.

    Raises:
        TypeError: If the value is not a number.
        ValueError: If it is NaN.

    Example:
        >>> import torchopt
        >>> torchopt.schedule.constant_schedule(0.1)(1000)
        0.1
    """
    require_number('value', value)
    return Constant(value)


@suggesting
def piecewise_constant_schedule(
    init_value: Number, boundaries_and_scales: Mapping[int, Number] | None = None
) -> Schedule:
    r"""A schedule that is multiplied by a factor at each boundary.

    .. math::
        v_t = v_0 \prod_{b_i \le t} f_i

    Args:
        init_value: The initial value :math:`v_0`.
        boundaries_and_scales: A dict from each boundary :math:`b_i`, a step, to its factor :math:`f_i \ge 0`.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a factor is negative, or an argument is NaN.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.piecewise_constant_schedule(1.0, {100: 0.5, 200: 0.5})
        >>> [schedule(t) for t in (99, 100, 200)]
        [1.0, 0.5, 0.25]
    """
    require_number('init_value', init_value)
    pairs = scales_in_order(boundaries_and_scales)
    return PiecewiseConstant(init_value, tuple(pairs))
