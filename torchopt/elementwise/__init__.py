# SPDX-License-Identifier: Apache-2.0
"""Elementwise transformations: one pass over the leaves, on the native engine where possible."""

from torchopt.elementwise.hyperparams import Hyperparams, PerLeafRule, check_each, has_shape
from torchopt.elementwise.leaves import as_constant, as_constants, leaf_norm, least_norm
from torchopt.elementwise.moments import (
    add_to_leaf,
    apply_rule,
    check_inexact,
    check_updates,
    full_moment,
    require_real,
    zero_moment,
)
from torchopt.elementwise.run import ElementwiseStep, run_steps

__all__ = [
    'ElementwiseStep',
    'Hyperparams',
    'PerLeafRule',
    'add_to_leaf',
    'apply_rule',
    'as_constant',
    'check_each',
    'check_inexact',
    'check_updates',
    'full_moment',
    'has_shape',
    'as_constants',
    'leaf_norm',
    'least_norm',
    'require_real',
    'run_steps',
    'zero_moment',
]
