# SPDX-License-Identifier: Apache-2.0
"""Derivatives of what is defined by an equation: roots of optimality conditions, and fixed points."""

from torchopt.implicit_diff.custom_root import custom_fixed_point, custom_root
from torchopt.implicit_diff.root import root_jvp, root_vjp

__all__ = ['custom_fixed_point', 'custom_root', 'root_jvp', 'root_vjp']
