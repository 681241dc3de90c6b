# SPDX-License-Identifier: Apache-2.0
"""Ways to differentiate that are not backpropagation through every step, as TorchOpt 0.7.3 names them."""

from __future__ import annotations

from torchopt.diff import implicit, zero_order
from torchopt.nn import ImplicitMetaGradientModule, ZeroOrderGradientModule

__all__ = ['ImplicitMetaGradientModule', 'ZeroOrderGradientModule', 'implicit', 'zero_order']
