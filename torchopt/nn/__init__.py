# SPDX-License-Identifier: Apache-2.0
"""Modules for bilevel problems, and functions that replace the tensors of a module.

* :class:`MetaGradientModule` separates the parameters that an inner problem trains from the
  meta-parameters that an outer problem trains through it.
* :class:`ImplicitMetaGradientModule` also differentiates the trained parameters as an implicit function of the
  meta-parameters.
* :class:`ZeroOrderGradientModule` estimates its gradient from function values only.
* :func:`reparametrize` and :func:`swap_state` replace the tensors of a module.
"""

from __future__ import annotations

from torchopt._old_paths import register_old_paths
from torchopt.nn.implicit_module import ImplicitMetaGradientModule
from torchopt.nn.meta_module import MetaGradientModule
from torchopt.nn.reparametrize import reparameterize, reparametrize, swap_state
from torchopt.nn.zero_order_module import ZeroOrderGradientModule

__all__ = [
    'ImplicitMetaGradientModule',
    'MetaGradientModule',
    'ZeroOrderGradientModule',
    'reparameterize',
    'reparametrize',
    'swap_state',
]

register_old_paths(__name__)
