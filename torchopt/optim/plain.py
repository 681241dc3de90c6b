# SPDX-License-Identifier: Apache-2.0
"""Keep a differentiable step from being taken for one of plain training."""

from __future__ import annotations

from typing import Any

from torchopt import tree
from torchopt.numerics import carries_no_graph

__all__ = ['off_leaf']


def off_leaf(params: Any, grads: Any) -> Any:
    """The same parameters, those that would count as plain training replaced by views with a graph.

    A gradient may have no graph even under ``create_graph=True``, where the loss is linear.  Rules that read the
    parameters (weight decay) must stay differentiable all the same.
    """
    return tree.map(lambda p, g: p.view_as(p) if g is not None and carries_no_graph(p, g) else p, params, grads)
