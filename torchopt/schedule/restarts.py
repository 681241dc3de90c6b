# SPDX-License-Identifier: Apache-2.0
"""Schedules with warmup: exponential decay, and cosine decay with restarts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torchopt.schedule.arithmetic import Number, Schedule
from torchopt.schedule.cosine import warmup_cosine_decay_schedule
from torchopt.schedule.exponential import exponential_decay
from torchopt.schedule.join import join_schedules
from torchopt.schedule.polynomial import linear_schedule
from torchopt.spelling import suggesting


@suggesting
def warmup_exponential_decay_schedule(
    init_value: Number,
    peak_value: Number,
    warmup_steps: int,
    transition_steps: int,
    decay_rate: Number,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Number | None = None,
) -> Schedule:
    """A schedule that rises linearly and then decays exponentially.

    Args:
        init_value: The first value, a number or a 0-d tensor.
        peak_value: The value after the warmup, likewise.
        warmup_steps: The number of steps of the warmup.
        transition_steps: The number of steps in which the value changes by the factor ``decay_rate``.
        decay_rate: The factor of the decay, not 0.
        transition_begin: The number of steps after the warmup in which the value stays at the peak.
        staircase: Change the value only every ``transition_steps`` steps.
        end_value: A lower bound if ``decay_rate`` < 1, else an upper bound; None means no bound.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is NaN.

    Example:
        >>> import torchopt
        >>> schedule = torchopt.schedule.warmup_exponential_decay_schedule(0.0, 1.0, 2, 1, 0.5)
        >>> [schedule(t) for t in range(5)]
        [0.0, 0.5, 1.0, 0.5, 0.25]
    """
    warmup = linear_schedule(init_value, peak_value, warmup_steps)
    decay = exponential_decay(
        init_value=peak_value,
        transition_steps=transition_steps,
        decay_rate=decay_rate,
        transition_begin=transition_begin,
        staircase=staircase,
        end_value=end_value,
    )
    return join_schedules([warmup, decay], [warmup_steps])


@suggesting
def sgdr_schedule(cosine_kwargs: Iterable[dict[str, Any]]) -> Schedule:
    """A sequence of cosine decays with warmup (SGDR, stochastic gradient descent with warm restarts).

    Args:
        cosine_kwargs: For each decay, the arguments of :func:`warmup_cosine_decay_schedule`.  They include
            ``decay_steps``, the number of steps until the next decay begins.

    Raises:
        ValueError: If there is no decay, or one has no ``decay_steps``.
        TypeError: If the arguments are wrong; see :func:`warmup_cosine_decay_schedule`.

    Example:
        >>> import torchopt
        >>> cycle = {'init_value': 0.0, 'peak_value': 1.0, 'warmup_steps': 1, 'decay_steps': 3}
        >>> schedule = torchopt.schedule.sgdr_schedule([cycle, {**cycle, 'peak_value': 0.5}])
        >>> [round(schedule(t), 3) for t in range(7)]
        [0.0, 1.0, 0.5, 0.0, 0.5, 0.25, 0.0]

    References:
        Loshchilov and Hutter, `SGDR: stochastic gradient descent with warm restarts
        <https://arxiv.org/abs/1608.03983>`_, ICLR 2017.
    """
    cycles = [dict(cycle) for cycle in cosine_kwargs]
    if not cycles or any('decay_steps' not in cycle for cycle in cycles):
        raise ValueError(
            f'Invalid cosine_kwargs: {cycles!r}; expected one or more dicts with the arguments of '
            f'warmup_cosine_decay_schedule, including decay_steps.'
        )
    boundaries = [cycles[0]['decay_steps']]
    for cycle in cycles[1:]:
        boundaries.append(boundaries[-1] + cycle['decay_steps'])
    return join_schedules([warmup_cosine_decay_schedule(**cycle) for cycle in cycles], boundaries[:-1])
