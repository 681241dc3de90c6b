# SPDX-License-Identifier: Apache-2.0
"""The path of TorchOpt 0.7.3 for the classes and functions behind implicit modules."""

from torchopt.nn.implicit_module import (
    ImplicitMetaGradientModule,
    enable_implicit_gradients,
    make_optimality_from_objective,
)

__all__ = ['ImplicitMetaGradientModule', 'enable_implicit_gradients', 'make_optimality_from_objective']
