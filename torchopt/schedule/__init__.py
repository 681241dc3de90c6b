# SPDX-License-Identifier: Apache-2.0
"""Schedules: hyper-parameters as functions of the step count.

The step count is an int, a NumPy number or a tensor.  A schedule returns a Python float if possible.  It returns a
float64 tensor under ``torch.func.vmap`` and ``torch.compile``, for counts on another device, and if one of its own
hyper-parameters is learned.
"""

from torchopt._old_paths import register_old_paths
from torchopt.schedule.constant import constant_schedule, piecewise_constant_schedule
from torchopt.schedule.cosine import cosine_decay_schedule, warmup_cosine_decay_schedule
from torchopt.schedule.exponential import exponential_decay
from torchopt.schedule.inject import (
    InjectHyperparamsState,
    InjectStatefulHyperparamsState,
    StatefulSchedule,
    WrappedSchedule,
    WrappedScheduleState,
    inject_hyperparams,
    inject_stateful_hyperparams,
)
from torchopt.schedule.interpolate import (
    cosine_onecycle_schedule,
    linear_onecycle_schedule,
    piecewise_interpolate_schedule,
)
from torchopt.schedule.inverse_time import inverse_time_decay
from torchopt.schedule.join import join_schedules
from torchopt.schedule.polynomial import linear_schedule, polynomial_schedule, warmup_constant_schedule
from torchopt.schedule.restarts import sgdr_schedule, warmup_exponential_decay_schedule

__all__ = [
    'InjectHyperparamsState',
    'InjectStatefulHyperparamsState',
    'StatefulSchedule',
    'WrappedSchedule',
    'WrappedScheduleState',
    'constant_schedule',
    'cosine_decay_schedule',
    'cosine_onecycle_schedule',
    'exponential_decay',
    'inject_hyperparams',
    'inject_stateful_hyperparams',
    'inverse_time_decay',
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

register_old_paths(__name__)
