# SPDX-License-Identifier: Apache-2.0
"""The elements of a drawing of a graph, which the writers convert to text and images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torchopt.tree.table import format_bytes

COLOURS = {
    'output': 'darkolivegreen1',
    'base': 'darkolivegreen3',
    'leaf': 'lightblue',
    'named': 'lightblue',
    'state': 'lightblue',
    'saved': 'orange',
    'step': 'darkorange',
    'function': 'lightgrey',
    'more': 'white',
}
"""The fill colour of each kind of node, as a name of graphviz."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One box of a drawing.

    Attributes:
        id: ``n0``, ``n1``, ... in the order in which the nodes were visited.
        kind: ``output``; ``base``, a tensor of which an output is a view; ``leaf``; ``function``, an autograd node;
            ``named``, a function whose only result has a name; ``step``, a fused optimizer step; ``state``, a named
            result of a step; ``saved``, a saved tensor; ``more``, all nodes that were left out.
        label: The text in the box; lines end with a line feed.
        tooltip: The text shown when the pointer is over the box.
        cluster: The index of its inner step among the clusters, or None.
        saved_bytes: The size of the tensors that the function saved for its derivative.
    """

    id: str
    kind: str
    label: str
    tooltip: str = ''
    cluster: int | None = None
    saved_bytes: int = 0

    @property
    def colour(self) -> str:
        """The fill colour, as a name of graphviz."""
        return COLOURS[self.kind]


@dataclasses.dataclass(frozen=True)
class Edge:
    """One arrow of a drawing.

    Attributes:
        tail: The id of the node at which it begins.
        head: The id of the node to which it points.
        kind: ``flow``, from an argument to its function; ``view``, from a base to its view (dotted); ``saved``, between
            a function and a tensor that it saved (without arrowhead); ``more``, from nodes that were left out (dashed).
        label: The text next to the arrow.
        tooltip: The text shown when the pointer is over the arrow.
    """

    tail: str
    head: str
    kind: str = 'flow'
    label: str = ''
    tooltip: str = ''


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A frame around the nodes of one inner step.

    Attributes:
        index: The number of the step in its loop, from 1.
        loop: The number of the loop, from 1; independent inner loops, such as those of several tasks, differ.
        label: The text at the top of the frame.
        functions: The number of autograd nodes in it.
        saved_bytes: The size of the storages that they keep alive, each counted once.
    """

    index: int
    loop: int
    label: str
    functions: int
    saved_bytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A drawing as data.

    Attributes:
        nodes: The boxes, outputs first.
        edges: The arrows.
        clusters: The frames.
        functions: The number of autograd nodes of the graph, including those that were left out.
        saved_bytes: The size of the storages that the graph keeps alive, each counted once; None if not measured.
    """

    nodes: Sequence[Node]
    edges: Sequence[Edge]
    clusters: Sequence[Cluster]
    functions: int
    saved_bytes: int | None

    @property
    def totals(self) -> str:
        """One line with the size of the graph."""
        parts = [
            f'{len(self.nodes):,} nodes, {len(self.edges):,} edges',
            f'{self.functions:,} {"function" if self.functions == 1 else "functions"}',
        ]
        if self.saved_bytes is not None:
            parts.append(f'{format_bytes(self.saved_bytes)} saved')
        return ' · '.join(parts)
