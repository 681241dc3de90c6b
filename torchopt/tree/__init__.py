# SPDX-License-Identifier: Apache-2.0
"""Functions on trees of tensors, such as parameters, gradients and optimizer states.

They handle loops, casts, ``None`` and in-place writes, so that update rules need not.
"""

from torchopt.tree.averages import bias_correction, update_infinity_moment, update_moment, update_moment_per_elem_norm
from torchopt.tree.casting import cast, cast_like, dtype
from torchopt.tree.files import load, save
from torchopt.tree.filling import batch_shape, full_like, ones_like, zeros_like
from torchopt.tree.math import (
    add,
    add_scale,
    allclose,
    clip,
    conj,
    div,
    max,
    min,
    mul,
    norm,
    real,
    scale,
    size,
    sub,
    sum,
    vdot,
    where,
    wide_norm,
)
from torchopt.tree.ops import all, any, broadcast_prefix, check_matching, map, map_with_path, reduce
from torchopt.tree.paths import flatten_with_keys
from torchopt.tree.random import random_like, split_key_like, unwrap_random_key_data
from torchopt.tree.registry import (
    TreeSpec,
    flatten,
    flatten_up_to,
    flatten_with_path,
    is_leaf_node,
    leaves,
    made_for,
    register_node,
    structure,
    unflatten,
)
from torchopt.tree.selection import Selection, combine, partition
from torchopt.tree.serialization import safe_to_load
from torchopt.tree.state import (
    DictKey,
    Initable,
    NamedTupleKey,
    ParamsPlaceholder,
    SequenceKey,
    get,
    get_all_with_path,
    map_params,
    set,
)
from torchopt.tree.table import summary
from torchopt.tree.text import Spelled, as_text
from torchopt.tree.vector import ravel

__all__ = [
    'DictKey',
    'Initable',
    'NamedTupleKey',
    'ParamsPlaceholder',
    'Selection',
    'SequenceKey',
    'Spelled',
    'TreeSpec',
    'add',
    'add_scale',
    'all',
    'allclose',
    'any',
    'as_text',
    'batch_shape',
    'bias_correction',
    'broadcast_prefix',
    'cast',
    'cast_like',
    'check_matching',
    'clip',
    'combine',
    'conj',
    'div',
    'dtype',
    'flatten',
    'flatten_up_to',
    'flatten_with_keys',
    'flatten_with_path',
    'full_like',
    'get',
    'get_all_with_path',
    'is_leaf_node',
    'leaves',
    'load',
    'made_for',
    'map',
    'map_params',
    'map_with_path',
    'max',
    'min',
    'mul',
    'norm',
    'ones_like',
    'partition',
    'random_like',
    'ravel',
    'real',
    'reduce',
    'register_node',
    'safe_to_load',
    'save',
    'scale',
    'set',
    'size',
    'split_key_like',
    'structure',
    'sub',
    'sum',
    'summary',
    'unflatten',
    'unwrap_random_key_data',
    'update_infinity_moment',
    'update_moment',
    'update_moment_per_elem_norm',
    'vdot',
    'where',
    'wide_norm',
    'zeros_like',
]
