# SPDX-License-Identifier: Apache-2.0
"""The path of TorchOpt 0.7.3 for the class of modules with zero-order gradients."""

from __future__ import annotations

from torchopt.diff.zero_order.nn import module
from torchopt.nn.zero_order_module import ZeroOrderGradientModule

__all__ = ['ZeroOrderGradientModule', 'module']
