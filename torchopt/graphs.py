# SPDX-License-Identifier: Apache-2.0
"""Traversal of autograd graphs, to find the leaves on which a result depends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

__all__ = ['leaves_of', 'nodes_of']


def nodes_of(outputs: Iterable[Tensor]) -> Iterator[Any]:
    """The nodes of the graph of some tensors, each once; without recursion."""
    stack: list[Any] = [x.grad_fn for x in outputs]
    # Keep the nodes alive: their Python objects are created on access, and the ids of deleted ones are reused.
    seen: dict[int, Any] = {}
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        yield node
        stack.extend(n for n, _ in node.next_functions)


def leaves_of(outputs: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that require grad on which these tensors depend, each once."""
    outputs = list(outputs)
    found = {id(x): x for x in outputs if x.requires_grad and x.grad_fn is None}
    found.update((id(node.variable), node.variable) for node in nodes_of(outputs) if hasattr(node, 'variable'))
    return list(found.values())
