# SPDX-License-Identifier: Apache-2.0
"""Loops and branches over trees, with the signatures of ``jax.lax``.

They are Python loops of ordinary tensor operations, which autograd, ``torch.func`` and debuggers support.  Under
``torch.vmap`` each sample has its own stopping condition.
"""

from torchopt.loop.branches import cond
from torchopt.loop.scans import scan
from torchopt.loop.while_loops import fori_loop, while_loop

__all__ = ['cond', 'fori_loop', 'scan', 'while_loop']
