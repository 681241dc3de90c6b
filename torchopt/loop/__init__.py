# SPDX-License-Identifier: Apache-2.0
"""Loops and branches over trees, with the signatures of ``jax.lax``.

They run in Python, one step after another, so that autograd, ``torch.func`` and debuggers see ordinary tensor
operations.  Under ``torch.vmap`` each sample stops by its own condition.
"""

from torchopt.loop.branches import cond
from torchopt.loop.scans import scan
from torchopt.loop.while_loops import fori_loop, while_loop

__all__ = ['cond', 'fori_loop', 'scan', 'while_loop']
