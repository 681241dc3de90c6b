# SPDX-License-Identifier: Apache-2.0
"""Implicit and zero-order differentiation, with the names of TorchOpt 0.7.3."""

from __future__ import annotations

from torchopt.diff import implicit, zero_order
from torchopt.nn import ImplicitMetaGradientModule, ZeroOrderGradientModule

__all__ = ['ImplicitMetaGradientModule', 'ZeroOrderGradientModule', 'implicit', 'zero_order']
