# SPDX-License-Identifier: Apache-2.0
"""Traversal of autograd graphs, to find the leaves on which a result depends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

__all__ = ['leaves_of', 'nodes_of']


def nodes_of(outputs: Iterable[Tensor], until: Iterable[Any] = ()) -> Iterator[Any]:
    """The nodes of the graph behind some tensors, each once, without recursion; not ``until`` and what is behind it."""
    stack: list[Any] = [x.grad_fn for x in outputs]
    # Keep the nodes alive: their Python objects are created on access, and the ids of deleted ones are reused.
    seen: dict[int, Any] = {id(node): node for node in until}
    while stack:
        node = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen[id(node)] = node
        yield node
        stack.extend(n for n, _ in node.next_functions)


def leaves_of(outputs: Iterable[Tensor], until: Iterable[Any] = ()) -> list[Tensor]:
    """The leaves that require grad on which these tensors depend, each once; not those behind the nodes ``until``."""
    outputs = list(outputs)
    found = {id(x): x for x in outputs if x.requires_grad and x.grad_fn is None}
    found.update((id(node.variable), node.variable) for node in nodes_of(outputs, until) if hasattr(node, 'variable'))
    return list(found.values())
