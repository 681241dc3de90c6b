# SPDX-License-Identifier: Apache-2.0
"""Implicit differentiation: derivatives of roots of optimality conditions, and of fixed points."""

from torchopt.implicit_diff.custom_root import custom_fixed_point, custom_root
from torchopt.implicit_diff.root import root_jvp, root_vjp

__all__ = ['custom_fixed_point', 'custom_root', 'root_jvp', 'root_vjp']
