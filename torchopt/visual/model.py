# SPDX-License-Identifier: Apache-2.0
"""What a picture of a graph consists of; the writers turn it into text and drawings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

__all__ = ['COLOURS', 'Cluster', 'Edge', 'Model', 'Node', 'format_bytes']

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
"""The fill of a node by its kind, as graphviz calls it."""


@dataclasses.dataclass(frozen=True)
class Node:
    """One box of a picture.

    Attributes:
        id: ``n0``, ``n1``, ... in the order in which the walk came by.
        kind: ``output``; ``base``, the tensor that an output is a view of; ``leaf``; ``function``, a node of autograd;
            ``named``, a function whose only result has a name; ``step``, a fused optimizer step; ``state``, a named
            result of a step; ``saved``, a saved tensor; ``more``, all that was left out.
        label: What stands in the box; lines end with a line feed.
        tooltip: What a pointer over the box shows.
        cluster: The number of the inner step that it belongs to, an index into the clusters, or None.
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
        """The fill, as graphviz calls it."""
        return COLOURS[self.kind]


@dataclasses.dataclass(frozen=True)
class Edge:
    """One arrow of a picture.

    Attributes:
        tail: The id of the node that it comes from.
        head: The id of the node that it goes to.
        kind: ``flow``, from an argument to its function; ``view``, from a base to its view (dotted); ``saved``, between
            a function and what it saved (without arrowhead); ``more``, from what was left out (dashed).
        label: What stands beside it.
        tooltip: What a pointer over it shows.
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
        index: Which step of its loop, from 1.
        loop: Which loop, from 1; independent inner loops, such as those of several tasks, have different numbers.
        label: What stands at the top of the frame.
        functions: How many nodes of autograd are in it.
        saved_bytes: The size of the storages that they keep alive, each counted once.
    """

    index: int
    loop: int
    label: str
    functions: int
    saved_bytes: int


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A picture, before it is drawn.

    Attributes:
        nodes: The boxes, outputs first.
        edges: The arrows.
        clusters: The frames.
        functions: How many nodes of autograd the graph has, including those that were left out.
        saved_bytes: The size of the storages that the graph keeps alive, each counted once; None if not measured.
    """

    nodes: Sequence[Node]
    edges: Sequence[Edge]
    clusters: Sequence[Cluster]
    functions: int
    saved_bytes: int | None

    @property
    def totals(self) -> str:
        """One line that says how large the graph is."""
        parts = [
            f'{len(self.nodes):,} nodes, {len(self.edges):,} edges',
            f'{self.functions:,} {"function" if self.functions == 1 else "functions"}',
        ]
        if self.saved_bytes is not None:
            parts.append(f'{format_bytes(self.saved_bytes)} saved')
        return ' · '.join(parts)


def format_bytes(size: int) -> str:
    """A size in words: ``512 B``, ``1.5 KiB``."""
    value, units = float(size), ['B', 'KiB', 'MiB', 'GiB', 'TiB']
    while value >= 1023.95 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f'{size} B' if units[0] == 'B' else f'{value:.1f} {units[0]}'
