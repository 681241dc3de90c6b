# SPDX-License-Identifier: Apache-2.0
"""Autograd graphs as seen from their ends: which leaves a result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ['leaves_of']


def leaves_of(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that require grad on which these tensors depend, each once; without recursion."""
    stack: list[Any] = [x.grad_fn if x.grad_fn is not None else x for x in outputs if x.requires_grad]
    # The nodes themselves, not their numbers: Python makes them anew when asked, and gives a number of the dead again.
    seen: dict[int, Any] = {}
    found: list[Tensor] = []
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        if isinstance(node, Tensor):
            found.append(node)
        elif hasattr(node, 'variable'):
            stack.append(node.variable)
        else:
            stack.extend(n for n, _ in node.next_functions)
    return found
