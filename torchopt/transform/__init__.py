# SPDX-License-Identifier: Apache-2.0
"""Gradient transformations, the parts that optimizers are chained from.

Every factory returns a :class:`torchopt.base.GradientTransformation`: ``init(params)`` makes a state, and
``update(updates, state, params=None, *, inplace=False)`` makes one step.  ``None`` in the place of a gradient means
that the parameter is left alone in this step: its state stays as it was and its update is ``None``.

A hyper-parameter that a rule has as a number may also be a 0-d tensor, or a tree of numbers and tensors with the
structure of the parameters or of its top, for values that differ from parameter to parameter.
"""

from torchopt.transform.adam import ScaleByAdamState, scale_by_accelerated_adam, scale_by_adam
from torchopt.transform.adamax import ScaleByAdamaxState, scale_by_adamax
from torchopt.transform.amsgrad import ScaleByAmsgradState, scale_by_amsgrad
from torchopt.transform.belief import ScaleByBeliefState, scale_by_belief
from torchopt.transform.decay import WeightDecaySchedule, add_decayed_weights
from torchopt.transform.lion import ScaleByLionState, scale_by_lion
from torchopt.transform.masking import MaskedNode, MaskedState, PartitionState, masked, partition
from torchopt.transform.nan_to_num import nan_to_num
from torchopt.transform.radam import ScaleByRadamState, scale_by_radam
from torchopt.transform.rms import (
    ScaleByAdaDeltaState,
    ScaleByRmsState,
    ScaleByRmsWithCountState,
    ScaleByRssState,
    ScaleByRStdDevState,
    ScaleByRStdDevWithCountState,
    scale_by_adadelta,
    scale_by_rms,
    scale_by_rss,
    scale_by_stddev,
)
from torchopt.transform.scale import (
    ScaleByScheduleState,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
)
from torchopt.transform.trace import TraceState, trace
from torchopt.transform.yogi import scale_by_yogi

__all__ = [
    'MaskedNode',
    'MaskedState',
    'PartitionState',
    'ScaleByAdaDeltaState',
    'ScaleByAdamState',
    'ScaleByAdamaxState',
    'ScaleByAmsgradState',
    'ScaleByBeliefState',
    'ScaleByLionState',
    'ScaleByRStdDevState',
    'ScaleByRStdDevWithCountState',
    'ScaleByRadamState',
    'ScaleByRmsState',
    'ScaleByRmsWithCountState',
    'ScaleByRssState',
    'ScaleByScheduleState',
    'TraceState',
    'WeightDecaySchedule',
    'add_decayed_weights',
    'masked',
    'nan_to_num',
    'partition',
    'scale',
    'scale_by_accelerated_adam',
    'scale_by_adadelta',
    'scale_by_adam',
    'scale_by_adamax',
    'scale_by_amsgrad',
    'scale_by_belief',
    'scale_by_learning_rate',
    'scale_by_lion',
    'scale_by_radam',
    'scale_by_rms',
    'scale_by_rss',
    'scale_by_schedule',
    'scale_by_stddev',
    'scale_by_yogi',
    'trace',
]
