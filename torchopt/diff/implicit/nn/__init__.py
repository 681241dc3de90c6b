# SPDX-License-Identifier: Apache-2.0
"""The path of TorchOpt 0.7.3 for the class of implicit modules."""

from torchopt.nn.implicit_module import ImplicitMetaGradientModule

__all__ = ['ImplicitMetaGradientModule']
