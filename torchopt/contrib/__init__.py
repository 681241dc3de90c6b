# SPDX-License-Identifier: Apache-2.0
"""Optimizers and transformations that are newer or more specialized than those of :mod:`torchopt.alias`.

They have the names, arguments and states of ``optax.contrib``; :func:`cautious` is an addition.  A random key is a
seed, an int, or a :class:`torch.Generator`.
"""

from torchopt.contrib.acprop import acprop, scale_by_acprop
from torchopt.contrib.ademamix import ScaleByAdemamixState, ademamix, scale_by_ademamix
from torchopt.contrib.adopt import adopt, scale_by_adopt
from torchopt.contrib.cautious import CautiousState, cautious
from torchopt.contrib.cocob import COCOBState, cocob, scale_by_cocob
from torchopt.contrib.complex_valued import SplitRealAndImaginaryState, split_real_and_imaginary
from torchopt.contrib.dadapt_adamw import DAdaptAdamWState, dadapt_adamw
from torchopt.contrib.dog import DoGState, dog
from torchopt.contrib.dowg import DoWGState, dowg
from torchopt.contrib.galore import GaLoreDimensionNumbers, GaLoreState, galore, scale_by_galore
from torchopt.contrib.hutchinson import HutchinsonState, hutchinson_estimator_diag_hessian
from torchopt.contrib.madgrad import MadgradState, madgrad, scale_by_madgrad
from torchopt.contrib.mechanic import MechanicState, mechanize
from torchopt.contrib.momo import MomoState, momo
from torchopt.contrib.momo_adam import MomoAdamState, momo_adam
from torchopt.contrib.muon import MuonDimensionNumbers, MuonState, muon, scale_by_muon
from torchopt.contrib.normalize import NormalizeState, normalize
from torchopt.contrib.privacy import DifferentiallyPrivateAggregateState, differentially_private_aggregate, dpsgd
from torchopt.contrib.prodigy import ProdigyState, prodigy
from torchopt.contrib.reduce_on_plateau import ReduceLROnPlateauState, reduce_on_plateau
from torchopt.contrib.sam import SAMState, sam
from torchopt.contrib.schedule_free import (
    ScheduleFreeState,
    schedule_free,
    schedule_free_adamw,
    schedule_free_eval_params,
    schedule_free_sgd,
)
from torchopt.contrib.simplified_ademamix import (
    ScaleBySimplifiedAdEMAMixState,
    scale_by_simplified_ademamix,
    simplified_ademamix,
)
from torchopt.contrib.sophia import SophiaState, sophia

__all__ = [
    'COCOBState',
    'CautiousState',
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
    'cautious',
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
