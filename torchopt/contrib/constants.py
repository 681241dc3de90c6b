# SPDX-License-Identifier: Apache-2.0
"""Parameters and gradients as a step may use them: no graph grows from step to step, nor in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchopt import tree
from torchopt.transform.leafwise import as_constant, is_weight

__all__ = ['kept_copy', 'without_graphs']


def kept_copy(params: Any) -> Any:
    """A copy of the parameters for a state; that of weights in plain training, which change in place, has no graph."""
    tree.check_inexact(params, name='params')
    return tree.map(lambda p: (p.detach() if is_weight(p) else p).clone(), params)


def without_graphs(updates: Any, params: Any, inplace: bool) -> tuple[Any, Any]:
    """Gradients and the parameters beside them, both without a graph where nobody differentiates the step.

    A step in place is outside of autograd.  In a step of plain training the parameters count as constants.

    Returns:
        Two trees of the structure of ``updates``; where that is None, both are.

    Raises:
        TypeError: If an update has an integer or boolean dtype.
        ValueError: If structures or shapes differ.
    """
    tree.check_inexact(updates, name='updates')
    tree.check_updates(updates, params)

    def constant(u: Tensor, p: Tensor) -> Tensor:
        return p.detach() if inplace else as_constant(p, u)

    read = tree.map(constant, updates, params)
    return (tree.map(Tensor.detach, updates) if inplace else updates), read
