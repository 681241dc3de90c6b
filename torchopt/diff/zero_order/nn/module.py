# SPDX-License-Identifier: Apache-2.0
"""The path of TorchOpt 0.7.3 for modules with zero-order gradients, which are defined in :mod:`torchopt.nn`."""

from __future__ import annotations

from torchopt.nn.zero_order_module import ZeroOrderGradientModule, enable_zero_order_gradients

__all__ = ['ZeroOrderGradientModule', 'enable_zero_order_gradients']
