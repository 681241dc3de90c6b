# SPDX-License-Identifier: Apache-2.0
"""Implicit differentiation, as ``jaxopt.implicit_diff`` has it."""

from torchopt.implicit_diff import custom_fixed_point, custom_root, root_jvp, root_vjp

__all__ = ['custom_fixed_point', 'custom_root', 'root_jvp', 'root_vjp']
