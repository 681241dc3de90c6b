# SPDX-License-Identifier: Apache-2.0
"""Gradient transformations, the building blocks of optimizers.

Every factory returns a :class:`torchopt.base.GradientTransformation`: ``init(params)`` returns a state, and
``update(updates, state, params=None, *, inplace=False)`` takes one step.  If a gradient is ``None``, the parameter is
skipped in this step: its state does not change and its update is ``None``.

A numeric hyper-parameter may also be a 0-d tensor, or a tree of numbers and tensors with the structure of the
parameters or a prefix of it, for values that differ between parameters.

There are three kinds: ``scaling`` contains update rules, ``wrappers`` transformations of other transformations, and
``linesearch`` transformations that evaluate the objective.  Import all names from this package; its files are not API.
"""

from torchopt._old_paths import register_old_paths
from torchopt.transform.linesearch.backtracking import (
    BacktrackingLinesearchInfo,
    ScaleByBacktrackingLinesearchState,
    scale_by_backtracking_linesearch,
)
from torchopt.transform.linesearch.value_and_grad import value_and_grad_from_state
from torchopt.transform.linesearch.zoom import ScaleByZoomLinesearchState, ZoomLinesearchInfo, scale_by_zoom_linesearch
from torchopt.transform.scaling.accumulation import ApplyEvery, EmaState, apply_every, ema
from torchopt.transform.scaling.adam import ScaleByAdamState, scale_by_accelerated_adam, scale_by_adam
from torchopt.transform.scaling.adamax import ScaleByAdamaxState, scale_by_adamax
from torchopt.transform.scaling.adan import ScaleByAdanState, scale_by_adan
from torchopt.transform.scaling.amsgrad import ScaleByAmsgradState, scale_by_amsgrad
from torchopt.transform.scaling.belief import ScaleByBeliefState, scale_by_belief
from torchopt.transform.scaling.block_norm import (
    ScaleByTrustRatioState,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_trust_ratio,
)
from torchopt.transform.scaling.constraining import (
    NonNegativeParamsState,
    ZeroNansState,
    keep_params_nonnegative,
    nan_to_num,
    zero_nans,
)
from torchopt.transform.scaling.decay import WeightDecaySchedule, add_decayed_weights
from torchopt.transform.scaling.distance_over_gradients import (
    ScaleByDistanceOverGradientsState,
    scale_by_distance_over_gradients,
)
from torchopt.transform.scaling.factored import FactoredState, scale_by_factored_rms
from torchopt.transform.scaling.lbfgs import ScaleByLBFGSState, scale_by_lbfgs
from torchopt.transform.scaling.lion import ScaleByLionState, scale_by_lion
from torchopt.transform.scaling.noise import AddNoiseState, add_noise
from torchopt.transform.scaling.normalization import centralize, normalize_by_update_norm
from torchopt.transform.scaling.novograd import ScaleByNovogradState, scale_by_novograd
from torchopt.transform.scaling.optimistic import ScaleByOptimisticGradientState, scale_by_optimistic_gradient
from torchopt.transform.scaling.polyak import scale_by_polyak
from torchopt.transform.scaling.radam import ScaleByRadamState, scale_by_radam
from torchopt.transform.scaling.rms import (
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
from torchopt.transform.scaling.rprop import ScaleByRpropState, scale_by_rprop
from torchopt.transform.scaling.scale import ScaleByScheduleState, scale, scale_by_learning_rate, scale_by_schedule
from torchopt.transform.scaling.sm3 import ScaleBySM3State, scale_by_sm3
from torchopt.transform.scaling.stateless import scale_by_sign, set_to_zero, stateless, stateless_with_tree_map
from torchopt.transform.scaling.trace import DampedTraceState, TraceState, trace
from torchopt.transform.scaling.yogi import scale_by_yogi
from torchopt.transform.wrappers.conditional import (
    ApplyIfFiniteState,
    ConditionallyMaskState,
    ConditionallyTransformState,
    ConditionFn,
    apply_if_finite,
    conditionally_mask,
    conditionally_transform,
)
from torchopt.transform.wrappers.flatten import flatten
from torchopt.transform.wrappers.freezing import freeze, selective_transform
from torchopt.transform.wrappers.lookahead import LookaheadParams, LookaheadState, lookahead
from torchopt.transform.wrappers.masking import MaskedNode, MaskedState, PartitionState, masked, partition
from torchopt.transform.wrappers.monitoring import MonitorState, SnapshotState, measure_with_ema, monitor, snapshot
from torchopt.transform.wrappers.multi_steps import (
    MultiSteps,
    MultiStepsState,
    ShouldSkipUpdateFunction,
    skip_large_updates,
    skip_not_finite,
)
from torchopt.transform.wrappers.reporting import ReportState, report

__all__ = [
    'AddNoiseState',
    'ApplyEvery',
    'ApplyIfFiniteState',
    'BacktrackingLinesearchInfo',
    'ConditionFn',
    'ConditionallyMaskState',
    'ConditionallyTransformState',
    'DampedTraceState',
    'EmaState',
    'FactoredState',
    'LookaheadParams',
    'LookaheadState',
    'MaskedNode',
    'MaskedState',
    'MonitorState',
    'MultiSteps',
    'MultiStepsState',
    'NonNegativeParamsState',
    'PartitionState',
    'ReportState',
    'ScaleByAdaDeltaState',
    'ScaleByAdamState',
    'ScaleByAdamaxState',
    'ScaleByAdanState',
    'ScaleByAmsgradState',
    'ScaleByBacktrackingLinesearchState',
    'ScaleByBeliefState',
    'ScaleByDistanceOverGradientsState',
    'ScaleByLBFGSState',
    'ScaleByLionState',
    'ScaleByNovogradState',
    'ScaleByOptimisticGradientState',
    'ScaleByRStdDevState',
    'ScaleByRStdDevWithCountState',
    'ScaleByRadamState',
    'ScaleByRmsState',
    'ScaleByRmsWithCountState',
    'ScaleByRpropState',
    'ScaleByRssState',
    'ScaleBySM3State',
    'ScaleByScheduleState',
    'ScaleByTrustRatioState',
    'ScaleByZoomLinesearchState',
    'ShouldSkipUpdateFunction',
    'SnapshotState',
    'TraceState',
    'WeightDecaySchedule',
    'ZeroNansState',
    'ZoomLinesearchInfo',
    'add_decayed_weights',
    'add_noise',
    'apply_every',
    'apply_if_finite',
    'centralize',
    'conditionally_mask',
    'conditionally_transform',
    'ema',
    'flatten',
    'freeze',
    'keep_params_nonnegative',
    'lookahead',
    'masked',
    'measure_with_ema',
    'monitor',
    'nan_to_num',
    'normalize_by_update_norm',
    'partition',
    'report',
    'scale',
    'scale_by_accelerated_adam',
    'scale_by_adadelta',
    'scale_by_adam',
    'scale_by_adamax',
    'scale_by_adan',
    'scale_by_amsgrad',
    'scale_by_backtracking_linesearch',
    'scale_by_belief',
    'scale_by_distance_over_gradients',
    'scale_by_factored_rms',
    'scale_by_lbfgs',
    'scale_by_learning_rate',
    'scale_by_lion',
    'scale_by_novograd',
    'scale_by_optimistic_gradient',
    'scale_by_param_block_norm',
    'scale_by_param_block_rms',
    'scale_by_polyak',
    'scale_by_radam',
    'scale_by_rms',
    'scale_by_rprop',
    'scale_by_rss',
    'scale_by_schedule',
    'scale_by_sign',
    'scale_by_sm3',
    'scale_by_stddev',
    'scale_by_trust_ratio',
    'scale_by_yogi',
    'scale_by_zoom_linesearch',
    'selective_transform',
    'set_to_zero',
    'skip_large_updates',
    'skip_not_finite',
    'snapshot',
    'stateless',
    'stateless_with_tree_map',
    'trace',
    'value_and_grad_from_state',
    'zero_nans',
]

register_old_paths(__name__)
