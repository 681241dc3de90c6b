# SPDX-License-Identifier: Apache-2.0
"""Piecewise linear and piecewise cosine schedules, including the one-cycle schedules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from torchopt.scalars import cosine, where
from torchopt.schedule.arithmetic import (
    FunctionOfCount,
    Number,
    Schedule,
    lift,
    require_count,
    require_number,
    scales_in_order,
)
from torchopt.spelling import suggesting


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PiecewiseInterpolate(FunctionOfCount):
    """The schedule that :func:`piecewise_interpolate_schedule` returns."""

    wave: bool
    init_value: Number
    boundaries_and_scales: tuple[tuple[Number, Number], ...]

    def __call__(self, count: Any) -> Any:
        """The value at a step, interpolated between the two boundaries around it."""
        flat = [x for pair in self.boundaries_and_scales for x in pair]
        count, value, begin, *flat = lift(count, self.init_value, 0, *flat)
        total = 0.0 * count
        for end, factor in zip(flat[::2], flat[1::2]):
            following = value * factor
            length = where(end - begin > 1, end - begin, 1.0 + 0.0 * end)
            reached = self._between(value, following, (count - begin) / length)
            total = total + where(begin <= count, where(count < end, reached, 0.0 * count), 0.0 * count)
            begin, value = end, following
        return total + where(begin <= count, value + 0.0 * count, 0.0 * count)

    def _between(self, start: Any, end: Any, part: Any) -> Any:
        if self.wave:
            return end + (start - end) / 2.0 * (cosine(math.pi * part) + 1.0)
        return (end - start) * part + start


@suggesting
def piecewise_interpolate_schedule(
    interpolate_type: str, init_value: Number, boundaries_and_scales: Mapping[int, Number] | None = None
) -> Schedule:
    r"""A schedule that interpolates between the values at given boundaries.

    At the boundary :math:`b_i` it has the value :math:`v_0 \prod_{j \le i} f_j`.  Between two boundaries it is linear,
    or half a period of the cosine; after the last one it is constant.

    Args:
        interpolate_type: ``'linear'`` or ``'cosine'``.
        init_value: The value :math:`v_0` at step 0, a number or a 0-d tensor.
        boundaries_and_scales: A dict from each boundary :math:`b_i`, a step, to its factor :math:`f_i \ge 0`.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If the type is unknown, a factor is negative, or an argument is NaN.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.piecewise_interpolate_schedule('linear', 1.0, {4: 0.5, 6: 0.0})
        >>> [schedule(t) for t in (0, 2, 4, 5, 6, 9)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """
    if interpolate_type not in ('linear', 'cosine'):
        raise ValueError(f"Invalid interpolate_type: {interpolate_type!r}; expected 'linear' or 'cosine'.")
    require_number('init_value', init_value)
    pairs = scales_in_order(boundaries_and_scales)
    return PiecewiseInterpolate(interpolate_type == 'cosine', init_value, tuple(pairs))


@suggesting
def linear_onecycle_schedule(
    transition_steps: int,
    peak_value: Number,
    pct_start: float = 0.3,
    pct_final: float = 0.85,
    div_factor: Number = 25.0,
    final_div_factor: Number = 1e4,
) -> Schedule:
    """A piecewise linear schedule that rises to its peak, falls back to its first value, and then close to 0.

    Args:
        transition_steps: The number of steps of the cycle.
        peak_value: The largest value, a number or a 0-d tensor.
        pct_start: The fraction of the steps in which the value rises.
        pct_final: The fraction of the steps after which it is back at its first value.
        div_factor: The ratio of the peak to the first value.
        final_div_factor: The ratio of the first value to the last.

    Raises:
        ValueError: If ``transition_steps`` is not positive, or an argument is NaN.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.linear_onecycle_schedule(100, 1.0, div_factor=4.0)
        >>> [round(schedule(t), 5) for t in (0, 15, 30, 85, 100)]
        [0.25, 0.625, 1.0, 0.25, 3e-05]

    References:
        Smith and Topin, `Super-convergence: very fast training of neural networks using large learning rates
        <https://arxiv.org/abs/1708.07120>`_, 2017.
    """
    _check_cycle(transition_steps, peak_value, div_factor, final_div_factor)
    scales = {
        int(pct_start * transition_steps): div_factor,
        int(pct_final * transition_steps): 1.0 / div_factor,
        transition_steps: 1.0 / final_div_factor,
    }
    return piecewise_interpolate_schedule('linear', peak_value / div_factor, scales)


@suggesting
def cosine_onecycle_schedule(
    transition_steps: int,
    peak_value: Number,
    pct_start: float = 0.3,
    div_factor: Number = 25.0,
    final_div_factor: Number = 1e4,
) -> Schedule:
    """A schedule that rises to its peak and falls close to 0, each along half a period of the cosine.

    The arguments and errors are those of :func:`linear_onecycle_schedule`, without ``pct_final``.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.cosine_onecycle_schedule(100, 1.0, div_factor=4.0)
        >>> [round(schedule(t), 5) for t in (0, 15, 30, 65, 100)]
        [0.25, 0.625, 1.0, 0.50001, 3e-05]

    References:
        Smith and Topin, `Super-convergence: very fast training of neural networks using large learning rates
        <https://arxiv.org/abs/1708.07120>`_, 2017.
    """
    _check_cycle(transition_steps, peak_value, div_factor, final_div_factor)
    scales = {
        int(pct_start * transition_steps): div_factor,
        int(transition_steps): 1.0 / (div_factor * final_div_factor),
    }
    return piecewise_interpolate_schedule('cosine', peak_value / div_factor, scales)


def _check_cycle(transition_steps: Any, peak_value: Any, div_factor: Any, final_div_factor: Any) -> None:
    require_count('transition_steps', transition_steps)
    if transition_steps <= 0:
        raise ValueError(f'Invalid transition_steps: {transition_steps}; expected a positive number of steps.')
    for name, value in (('div_factor', div_factor), ('final_div_factor', final_div_factor)):
        require_number(name, value)
        if not isinstance(value, torch.Tensor) and value <= 0:
            raise ValueError(f'Invalid {name}: {value}; expected a number > 0.')
    require_number('peak_value', peak_value)
