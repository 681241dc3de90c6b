# SPDX-License-Identifier: Apache-2.0
"""The decorator for zero-order gradients, where TorchOpt 0.7.3 has it; its home is :mod:`torchopt.zero_order_diff`."""

from __future__ import annotations

from torchopt.zero_order_diff import zero_order

__all__ = ['zero_order']
