# SPDX-License-Identifier: Apache-2.0
"""What is newer or more special, as ``optax.contrib`` has it."""

from __future__ import annotations

from typing import Any

from torchopt import contrib
from torchopt.base import GradientTransformationExtraArgs
from torchopt.compat.optax.chains import chain, with_every_stage
from torchopt.compat.optax.optimizers import momentum_stage
from torchopt.compat.optax.rules import scale_by_learning_rate
from torchopt.contrib import (
    COCOBState,
    DAdaptAdamWState,
    DifferentiallyPrivateAggregateState,
    DoGState,
    DoWGState,
    GaLoreDimensionNumbers,
    GaLoreState,
    HutchinsonState,
    MadgradState,
    MechanicState,
    MomoAdamState,
    MomoState,
    MuonDimensionNumbers,
    MuonState,
    NormalizeState,
    ProdigyState,
    ReduceLROnPlateauState,
    SAMState,
    ScaleByAdemamixState,
    ScaleBySimplifiedAdEMAMixState,
    ScheduleFreeState,
    SophiaState,
    SplitRealAndImaginaryState,
    adopt,
    dadapt_adamw,
    differentially_private_aggregate,
    hutchinson_estimator_diag_hessian,
    mechanize,
    momo,
    momo_adam,
    muon,
    normalize,
    prodigy,
    reduce_on_plateau,
    sam,
    scale_by_acprop,
    scale_by_ademamix,
    scale_by_adopt,
    scale_by_cocob,
    scale_by_galore,
    scale_by_madgrad,
    scale_by_muon,
    scale_by_simplified_ademamix,
    schedule_free,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
    split_real_and_imaginary,
)

__all__ = [
    'COCOBState',
    'DAdaptAdamWState',
    'DifferentiallyPrivateAggregateState',
    'DoGState',
    'DoWGState',
    'GaLoreDimensionNumbers',
    'GaLoreState',
    'HutchinsonState',
    'MadgradState',
    'MechanicState',
    'MomoAdamState',
    'MomoState',
    'MuonDimensionNumbers',
    'MuonState',
    'NormalizeState',
    'ProdigyState',
    'ReduceLROnPlateauState',
    'SAMState',
    'ScaleByAdemamixState',
    'ScaleBySimplifiedAdEMAMixState',
    'ScheduleFreeState',
    'SophiaState',
    'SplitRealAndImaginaryState',
    'acprop',
    'ademamix',
    'adopt',
    'cocob',
    'dadapt_adamw',
    'differentially_private_aggregate',
    'dog',
    'dowg',
    'dpsgd',
    'galore',
    'hutchinson_estimator_diag_hessian',
    'madgrad',
    'mechanize',
    'momo',
    'momo_adam',
    'muon',
    'normalize',
    'prodigy',
    'reduce_on_plateau',
    'sam',
    'scale_by_acprop',
    'scale_by_ademamix',
    'scale_by_adopt',
    'scale_by_cocob',
    'scale_by_galore',
    'scale_by_madgrad',
    'scale_by_muon',
    'scale_by_simplified_ademamix',
    'schedule_free',
    'schedule_free_adamw',
    'schedule_free_eval_params',
    'schedule_free_sgd',
    'simplified_ademamix',
    'sophia',
    'split_real_and_imaginary',
]

# These differ only in their states where nothing decays.
acprop = with_every_stage(contrib.acprop, 3, 1, __name__)
ademamix = with_every_stage(contrib.ademamix, 3, 1, __name__)
cocob = with_every_stage(contrib.cocob, 3, 0, __name__)
dog = with_every_stage(contrib.dog, 3, 0, __name__)
dowg = with_every_stage(contrib.dowg, 3, 0, __name__)
galore = with_every_stage(contrib.galore, 3, 1, __name__)
madgrad = with_every_stage(contrib.madgrad, 2, 0, __name__)
simplified_ademamix = with_every_stage(contrib.simplified_ademamix, 3, 1, __name__)
sophia = with_every_stage(contrib.sophia, 3, 1, __name__)


def dpsgd(
    learning_rate: Any,
    l2_norm_clip: Any,
    noise_multiplier: Any,
    seed: int,
    momentum: Any = None,
    nesterov: bool = False,
) -> GradientTransformationExtraArgs:
    """:func:`torchopt.contrib.dpsgd`; a momentum of zero has a state too, and only None has none.

    Example:
        >>> import torch
        >>> from torchopt.compat import optax
        >>> optimizer = optax.contrib.dpsgd(0.5, l2_norm_clip=1.0, noise_multiplier=0.0, seed=0, momentum=0.0)
        >>> g = [torch.tensor([[3.0, 4.0], [0.0, 0.6]])]
        >>> optimizer.update(g, optimizer.init([torch.zeros(2)]))[0]
        [tensor([-0.1500, -0.3500])]
    """
    return chain(
        contrib.differentially_private_aggregate(l2_norm_clip, noise_multiplier, key=seed),
        momentum_stage(momentum, nesterov),
        scale_by_learning_rate(learning_rate),
    )
