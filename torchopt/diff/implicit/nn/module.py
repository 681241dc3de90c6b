# SPDX-License-Identifier: Apache-2.0
"""How a class becomes an implicit one, step by step."""

from torchopt.nn.implicit_module import (
    ImplicitMetaGradientModule,
    enable_implicit_gradients,
    make_optimality_from_objective,
)

__all__ = ['ImplicitMetaGradientModule', 'enable_implicit_gradients', 'make_optimality_from_objective']
