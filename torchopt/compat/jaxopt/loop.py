# SPDX-License-Identifier: Apache-2.0
"""Loops, as ``jaxopt.loop`` has them."""

from torchopt.loop import while_loop

__all__ = ['while_loop']
