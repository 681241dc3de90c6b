# SPDX-License-Identifier: Apache-2.0
"""The names of ``optax.schedules``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torchopt import schedule
from torchopt.compat.optax.former_names import missing
from torchopt.compat.optax.leaves import export
from torchopt.schedule import (
    InjectHyperparamsState,
    InjectStatefulHyperparamsState,
    StatefulSchedule,
    WrappedSchedule,
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    inject_hyperparams,
    inject_stateful_hyperparams,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
)
from torchopt.spelling import suggesting
from torchopt.typing import Schedule

__all__ = [
    'InjectHyperparamsState',
    'InjectStatefulHyperparamsState',
    'Schedule',
    'StatefulSchedule',
    'WrappedSchedule',
    'constant_schedule',
    'cosine_decay_schedule',
    'cosine_onecycle_schedule',
    'exponential_decay',
    'inject_hyperparams',
    'inject_stateful_hyperparams',
    'join_schedules',
    'linear_onecycle_schedule',
    'linear_schedule',
    'piecewise_constant_schedule',
    'piecewise_interpolate_schedule',
    'polynomial_schedule',
    'sgdr_schedule',
    'warmup_constant_schedule',
    'warmup_cosine_decay_schedule',
    'warmup_exponential_decay_schedule',
]


@suggesting
def exponential_decay(
    init_value: Any,
    transition_steps: Any,
    decay_rate: Any,
    transition_begin: int = 0,
    staircase: bool = False,
    end_value: Any = None,
) -> Schedule:
    """:func:`torchopt.schedule.exponential_decay` with its arguments in the order of Optax.

    Example:
        >>> from torchopt.compat import optax
        >>> schedule = optax.exponential_decay(1.0, 2, 0.5, staircase=True)
        >>> [schedule(t) for t in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """
    return schedule.exponential_decay(init_value, decay_rate, transition_begin, transition_steps, staircase, end_value)


export(globals())

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> object:
        raise missing(__name__, name)
