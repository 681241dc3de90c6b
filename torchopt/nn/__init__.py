# SPDX-License-Identifier: Apache-2.0
"""Modules that know which of their tensors belong to an outer problem, and swapping of tensors.

* :class:`MetaGradientModule` tells the parameters that an inner problem trains from those (the
  meta-parameters) that an outer problem trains through it.
* :func:`reparametrize` and :func:`swap_state` run a module with other tensors in the places of its
  own.
"""

from __future__ import annotations

from torchopt.nn.meta_module import MetaGradientModule
from torchopt.nn.reparametrize import reparameterize, reparametrize, swap_state

__all__ = ['MetaGradientModule', 'reparameterize', 'reparametrize', 'swap_state']
