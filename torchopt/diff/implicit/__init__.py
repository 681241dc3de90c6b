# SPDX-License-Identifier: Apache-2.0
"""Implicit differentiation, with the names and the behaviour of TorchOpt 0.7.3."""

from torchopt.diff.implicit import nn
from torchopt.diff.implicit.decorator import custom_root
from torchopt.nn.implicit_module import ImplicitMetaGradientModule

__all__ = ['ImplicitMetaGradientModule', 'custom_root', 'nn']
