# SPDX-License-Identifier: Apache-2.0
"""Derivatives: gradients of functions of trees, products with Jacobians, and closure conversion."""

from torchopt.autodiff.closure import closure_convert
from torchopt.autodiff.compiled import Backend, Compiled
from torchopt.autodiff.forward import forward_value_and_grad
from torchopt.autodiff.grad import Differentiated, differentiate, grad, value_and_grad
from torchopt.autodiff.products import jvp, vjp
from torchopt.autodiff.recompute import checkpoint

__all__ = [
    'Backend',
    'Compiled',
    'Differentiated',
    'checkpoint',
    'closure_convert',
    'differentiate',
    'forward_value_and_grad',
    'grad',
    'jvp',
    'value_and_grad',
    'vjp',
]
