# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of trees under the older names of ``optax.tree_utils``."""

from torchopt.tree import (
    NamedTupleKey,
)
from torchopt.tree import (
    add as tree_add,
)
from torchopt.tree import (
    add_scale as tree_add_scale,
)
from torchopt.tree import (
    allclose as tree_allclose,
)
from torchopt.tree import (
    batch_shape as tree_batch_shape,
)
from torchopt.tree import (
    bias_correction as tree_bias_correction,
)
from torchopt.tree import (
    cast as tree_cast,
)
from torchopt.tree import (
    cast_like as tree_cast_like,
)
from torchopt.tree import (
    clip as tree_clip,
)
from torchopt.tree import (
    conj as tree_conj,
)
from torchopt.tree import (
    div as tree_div,
)
from torchopt.tree import (
    dtype as tree_dtype,
)
from torchopt.tree import (
    full_like as tree_full_like,
)
from torchopt.tree import (
    get as tree_get,
)
from torchopt.tree import (
    get_all_with_path as tree_get_all_with_path,
)
from torchopt.tree import (
    map_params as tree_map_params,
)
from torchopt.tree import (
    max as tree_max,
)
from torchopt.tree import (
    min as tree_min,
)
from torchopt.tree import (
    mul as tree_mul,
)
from torchopt.tree import (
    norm as tree_norm,
)
from torchopt.tree import (
    ones_like as tree_ones_like,
)
from torchopt.tree import (
    random_like as tree_random_like,
)
from torchopt.tree import (
    real as tree_real,
)
from torchopt.tree import (
    scale as tree_scale,
)
from torchopt.tree import (
    set as tree_set,
)
from torchopt.tree import (
    size as tree_size,
)
from torchopt.tree import (
    split_key_like as tree_split_key_like,
)
from torchopt.tree import (
    sub as tree_sub,
)
from torchopt.tree import (
    sum as tree_sum,
)
from torchopt.tree import (
    unwrap_random_key_data as tree_unwrap_random_key_data,
)
from torchopt.tree import (
    update_infinity_moment as tree_update_infinity_moment,
)
from torchopt.tree import (
    update_moment as tree_update_moment,
)
from torchopt.tree import (
    update_moment_per_elem_norm as tree_update_moment_per_elem_norm,
)
from torchopt.tree import (
    vdot as tree_vdot,
)
from torchopt.tree import (
    where as tree_where,
)
from torchopt.tree import (
    zeros_like as tree_zeros_like,
)

__all__ = [
    'NamedTupleKey',
    'tree_add',
    'tree_add_scale',
    'tree_allclose',
    'tree_batch_shape',
    'tree_bias_correction',
    'tree_cast',
    'tree_cast_like',
    'tree_clip',
    'tree_conj',
    'tree_div',
    'tree_dtype',
    'tree_full_like',
    'tree_get',
    'tree_get_all_with_path',
    'tree_map_params',
    'tree_max',
    'tree_min',
    'tree_mul',
    'tree_norm',
    'tree_ones_like',
    'tree_random_like',
    'tree_real',
    'tree_scale',
    'tree_set',
    'tree_size',
    'tree_split_key_like',
    'tree_sub',
    'tree_sum',
    'tree_unwrap_random_key_data',
    'tree_update_infinity_moment',
    'tree_update_moment',
    'tree_update_moment_per_elem_norm',
    'tree_vdot',
    'tree_where',
    'tree_zeros_like',
]
