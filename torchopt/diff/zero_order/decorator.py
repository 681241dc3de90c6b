# SPDX-License-Identifier: Apache-2.0
"""The path of TorchOpt 0.7.3 for the decorator of :mod:`torchopt.zero_order_diff`."""

from __future__ import annotations

from torchopt.zero_order_diff import zero_order

__all__ = ['zero_order']
