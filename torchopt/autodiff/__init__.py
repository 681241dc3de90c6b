# SPDX-License-Identifier: Apache-2.0
"""Derivatives of functions of tensors: products with Jacobians, and closure conversion."""

from torchopt.autodiff.closure import closure_convert
from torchopt.autodiff.products import jvp, vjp

__all__ = ['closure_convert', 'jvp', 'vjp']
