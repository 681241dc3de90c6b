# SPDX-License-Identifier: Apache-2.0
"""Modules that know which of their tensors belong to an outer problem, and swapping of tensors.

* :class:`MetaGradientModule` tells the parameters that an inner problem trains from those (the
  meta-parameters) that an outer problem trains through it.
* :class:`ImplicitMetaGradientModule` is one whose parameters, once trained, are an implicit function of the
  meta-parameters.
* :class:`ZeroOrderGradientModule` estimates its gradient from values alone.
* :func:`reparametrize` and :func:`swap_state` run a module with other tensors in the places of its
  own.
"""

from __future__ import annotations

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
