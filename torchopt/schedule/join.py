# SPDX-License-Identifier: Apache-2.0
"""Concatenation of schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torchopt.kinds import kind_of
from torchopt.numerics import as_python_scalar
from torchopt.scalars import where
from torchopt.schedule.arithmetic import FunctionOfCount, Number, Schedule, lift, require_count
from torchopt.spelling import suggesting


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Joined(FunctionOfCount):
    """The schedule that :func:`join_schedules` returns."""

    schedules: tuple[Schedule, ...]
    boundaries: tuple[Number, ...]

    made_by = 'join_schedules'

    def __call__(self, count: Any) -> Any:
        """The value at a step, from the schedule whose interval contains it."""
        number = as_python_scalar(count)
        if number is not None and None not in [as_python_scalar(b) for b in self.boundaries]:
            begin: Number = 0
            schedule = self.schedules[0]
            for boundary, later in zip(self.boundaries, self.schedules[1:]):
                if number >= boundary:
                    schedule, begin = later, boundary
            return schedule(number - begin if begin else number)
        value = self.schedules[0](count)
        for boundary, later in zip(self.boundaries, self.schedules[1:]):
            step, start, old, new = lift(count, boundary, value, later(count - boundary))
            value = where(step < start, old, new)
        return value


@suggesting
def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Schedule:
    """Concatenate schedules; each one counts steps from its own beginning.

    Args:
        schedules: The schedules.
        boundaries: The steps at which the second, third, ... schedule begins.

    Raises:
        TypeError: If a schedule is not callable, or a boundary is not a number.
        ValueError: If the number of boundaries is not the number of schedules minus one.

    Example:
        >>> import torchopt
        >>> from torchopt.schedule import constant_schedule, linear_schedule
        >>> warmup = linear_schedule(0.0, 1.0, transition_steps=4)
        >>> schedule = torchopt.schedule.join_schedules([warmup, constant_schedule(0.1)], [2])
        >>> [schedule(t) for t in range(4)]
        [0.0, 0.25, 0.1, 0.1]
    """
    schedules, boundaries = tuple(schedules), tuple(boundaries)
    for i, schedule in enumerate(schedules):
        if not callable(schedule):
            raise TypeError(
                f'Invalid schedules: item {i} is {kind_of(schedule)}, which is not callable. '
                f'Wrap a number in constant_schedule.'
            )
    if len(schedules) != len(boundaries) + 1:
        raise ValueError(
            f'Invalid boundaries: {len(schedules)} schedules need {max(len(schedules) - 1, 0)} '
            f'boundaries, but {len(boundaries)} were given.'
        )
    for boundary in boundaries:
        require_count('boundary', boundary)
    return Joined(schedules, boundaries)
