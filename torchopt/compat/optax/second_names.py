# SPDX-License-Identifier: Apache-2.0
"""Second names: objects that have several names in Optax, or another name in torchopt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torchopt import base, numerics, transform, tree

__all__ = [
    'AdaptiveGradClipState',
    'AddDecayedWeightsState',
    'ClipByGlobalNormState',
    'MaskOrFn',
    'MultiTransformState',
    'ScaleState',
    'TransformUpdateExtraArgsFn',
    'bias_correction',
    'multi_transform',
    'safe_int32_increment',
    'tree_map_params',
    'update_infinity_moment',
    'update_moment',
    'update_moment_per_elem_norm',
]

# States of stateless transformations.
AdaptiveGradClipState = base.EmptyState
AddDecayedWeightsState = base.EmptyState
ClipByGlobalNormState = base.EmptyState
ScaleState = base.EmptyState

multi_transform = transform.partition
MultiTransformState = transform.PartitionState
safe_int32_increment = numerics.safe_increment
# Every update function here accepts extra arguments.
TransformUpdateExtraArgsFn = base.TransformUpdateFn

bias_correction = tree.bias_correction
tree_map_params = tree.map_params
update_infinity_moment = tree.update_infinity_moment
update_moment = tree.update_moment
update_moment_per_elem_norm = tree.update_moment_per_elem_norm

MaskOrFn: TypeAlias = Any | Callable[[Any], Any] | None
"""A mask: a tree of booleans, a function that makes one from parameters, or None."""
