# SPDX-License-Identifier: Apache-2.0
"""Modules with zero-order gradients, where TorchOpt 0.7.3 has them; their home is :mod:`torchopt.nn`."""

from __future__ import annotations

from torchopt.nn.zero_order_module import ZeroOrderGradientModule, enable_zero_order_gradients

__all__ = ['ZeroOrderGradientModule', 'enable_zero_order_gradients']
