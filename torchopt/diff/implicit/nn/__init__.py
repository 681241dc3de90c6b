# SPDX-License-Identifier: Apache-2.0
"""Where TorchOpt 0.7.3 has the module class too."""

from torchopt.nn.implicit_module import ImplicitMetaGradientModule

__all__ = ['ImplicitMetaGradientModule']
