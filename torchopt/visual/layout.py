# SPDX-License-Identifier: Apache-2.0
"""A layered layout of graphs, used if graphviz is not installed.

The steps are those of Sugiyama, Tagawa and Toda, Methods for visual understanding of hierarchical system structures,
1981: assign nodes to layers, so that arrows point down; insert points into arrows that cross layers; sort each layer by
the mean position of the neighbours, so that few arrows cross; choose horizontal positions close to the neighbours.

A frame must not contain nodes of other frames.  So every frame has a lane, an interval of columns of its own in the
layers that it spans, and all other nodes of these layers are to the right of all lanes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from torchopt.visual.model import Model, Node

CHARACTER, LINE, PADDING = 6.1, 12.5, 8.0
GAP, LAYER_GAP, FRAME_PADDING, FRAME_TITLE = 14.0, 26.0, 12.0, 18.0
POINT_WIDTH = 6.0
SWEEPS = 8
MOST_POINTS = 30_000


@dataclasses.dataclass
class Box:
    """A rectangle with centre ``(x, y)``."""

    x: float
    y: float
    width: float
    height: float


Route = list[tuple[float, float]]
"""The points of an arrow, from its tail to its head."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The positions of all elements of a drawing.

    Attributes:
        boxes: The rectangle of each node.
        routes: The points of each edge.
        frames: The rectangle of each cluster.
        width: The width of the drawing.
        height: The height of the drawing.
    """

    boxes: list[Box]
    routes: list[Route]
    frames: list[Box]
    width: float
    height: float


def text_size(label: str, size: float = 1.0) -> tuple[float, float]:
    """The width and height of a text in the font of the boxes."""
    lines = label.split('\n')
    return max(map(len, lines)) * CHARACTER * size, len(lines) * LINE * size


@dataclasses.dataclass
class _Item:
    """A box, or a point of an arrow that crosses a layer."""

    width: float
    height: float
    layer: int
    group: int | None
    above: list[int] = dataclasses.field(default_factory=list)
    below: list[int] = dataclasses.field(default_factory=list)
    x: float = 0.0


def lay_out(model: Model) -> Layout:
    """Compute the positions of all boxes and arrows."""
    number = {node.id: i for i, node in enumerate(model.nodes)}
    # The box for the nodes that were left out is at the top, whatever the direction of its arrows.
    back = [edge.head == 'more' for edge in model.edges]
    pairs = [(number[edge.tail], number[edge.head]) for edge in model.edges]
    pairs = [(head, tail) if up else (tail, head) for (tail, head), up in zip(pairs, back)]
    layers = _layers(model, pairs)
    items = [_item(node, layer) for node, layer in zip(model.nodes, layers)]
    chains = _split_long(items, pairs, [text_size(edge.label)[0] if edge.label else 0.0 for edge in model.edges])
    rows: list[list[int]] = [[] for _ in range(max((i.layer for i in items), default=0) + 1)]
    for i, item in enumerate(items):
        rows[item.layer].append(i)
    spans = _spans(items, len(model.clusters), len(model.nodes))
    busy = [any(low <= layer <= high for low, high in spans) for layer in range(len(rows))]
    _order(items, rows, busy)
    lanes, right = _lanes(items, rows, spans)
    _place(items, rows, busy, lanes, right)
    layout = _measure(model, items, rows, chains, spans)
    for route, up in zip(layout.routes, back):
        if up:
            route.reverse()
    return layout


def _item(node: Node, layer: int) -> _Item:
    width, height = text_size(node.label, 1.15 if node.kind == 'step' else 1.0)
    return _Item(width + 2 * PADDING, height + PADDING, layer, node.cluster)


def _layers(model: Model, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The length of the longest path to each node, with the frames of one loop below each other."""
    count, frames = len(model.nodes), len(model.clusters)
    # Add two nodes per frame: its top, before all its nodes, and its bottom, after them.
    below: list[list[int]] = [[] for _ in range(count + 2 * frames)]
    above = [0] * len(below)

    def before(a: int, b: int) -> None:
        below[a].append(b)
        above[b] += 1

    for tail, head in pairs:
        if tail != head:
            before(tail, head)
    for i, node in enumerate(model.nodes):
        if node.cluster is not None:
            before(count + 2 * node.cluster, i)
            before(i, count + 2 * node.cluster + 1)
    for c, (frame, following) in enumerate(zip(model.clusters, model.clusters[1:])):
        if frame.loop == following.loop:
            before(count + 2 * c + 1, count + 2 * c + 2)
    layer = [0] * len(below)
    ready = [i for i, waiting in enumerate(above) if waiting == 0]
    order = []
    for i in ready:
        order.append(i)
        for j in below[i]:
            layer[j] = max(layer[j], layer[i] + (i < count))
            above[j] -= 1
            if above[j] == 0:
                ready.append(j)
    # Move nodes without inputs down, next to their users, but not between the nodes of a frame.
    tops = [min((layer[i] for i in range(count) if model.nodes[i].cluster == c), default=0) for c in range(frames)]
    for i in reversed(order):
        if i >= count or model.nodes[i].cluster is not None:
            continue
        users = [j for j in below[i] if j < count]
        if users:
            limit = min(
                layer[j] if model.nodes[j].cluster is None else tops[model.nodes[j].cluster or 0] for j in users
            )
            layer[i] = max(layer[i], limit - 1)
    used = {old: new for new, old in enumerate(sorted({*layer[:count]}))}
    return [used[old] for old in layer[:count]]


def _split_long(items: list[_Item], pairs: Sequence[tuple[int, int]], labels: Sequence[float]) -> list[list[int]]:
    """Insert points into the arrows that cross layers; return the items of each edge from tail to head."""
    total = sum(max(0, items[head].layer - items[tail].layer - 1) for tail, head in pairs)
    longest = 10**9 if total <= MOST_POINTS else max(8, MOST_POINTS // max(1, len(pairs)))
    chains = []
    inside: dict[int | None, tuple[int, int]] = {}
    for item in items:
        low, high = inside.get(item.group, (item.layer, item.layer))
        inside[item.group] = (min(low, item.layer), max(high, item.layer))
    shared: dict[tuple[int, int], list[int]] = {}
    for (tail, head), label in zip(pairs, labels):
        chain = [tail]
        passed = range(items[tail].layer + 1, items[head].layer)
        if 0 < len(passed) <= longest:
            if (tail, head) not in shared:
                points = []
                for layer in passed:
                    group = None
                    for end in (items[head].group, items[tail].group):
                        if end is not None and inside[end][0] <= layer <= inside[end][1]:
                            group = end
                            break
                    items.append(_Item(POINT_WIDTH, 0.0, layer, group))
                    points.append(len(items) - 1)
                shared[tail, head] = points
            chain += shared[tail, head]
            middle = items[shared[tail, head][len(passed) // 2]]
            middle.width = max(middle.width, label)
        chain.append(head)
        chains.append(chain)
        for a, b in itertools.pairwise(chain):
            items[a].below.append(b)
            items[b].above.append(a)
    return chains


def _order(items: list[_Item], rows: list[list[int]], busy: list[bool]) -> None:
    """Sort every layer by the mean position of the neighbours, alternately downwards and upwards; lanes come first."""
    place = [0.0] * len(items)
    for row in rows:
        for k, i in enumerate(row):
            place[i] = k - len(row) / 2

    def mean(neighbours: list[int], otherwise: float) -> float:
        return sum(place[j] for j in neighbours) / len(neighbours) if neighbours else otherwise

    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            keys = {
                i: (
                    busy[items[i].layer] and items[i].group is None,
                    mean(items[i].above if down else items[i].below, place[i]),
                )
                for i in row
            }
            row.sort(key=lambda i: keys[i])  # called before keys changes
            for k, i in enumerate(row):
                place[i] = k - len(row) / 2


def _spans(items: list[_Item], frames: int, count: int) -> list[tuple[int, int]]:
    spans = []
    for c in range(frames):
        layers = [item.layer for item in items[:count] if item.group == c]
        spans.append((min(layers), max(layers)) if layers else (0, -1))
    return spans


def _lanes(
    items: list[_Item], rows: list[list[int]], spans: list[tuple[int, int]]
) -> tuple[list[tuple[float, float]], float]:
    """The left and right end of each frame, and the right end of all."""
    widths = [80.0 for _ in spans]
    for row in rows:
        here: dict[int, float] = {}
        for i in row:
            group = items[i].group
            if group is not None:
                here[group] = here.get(group, 2 * FRAME_PADDING) + items[i].width + GAP
        for group, width in here.items():
            widths[group] = max(widths[group], width)
    columns: list[list[int]] = []  # frames that are above one another
    for c in sorted(range(len(spans)), key=lambda c: spans[c]):
        for column in columns:
            if spans[column[-1]][1] < spans[c][0]:
                column.append(c)
                break
        else:
            columns.append([c])
    lanes, left = [(0.0, 0.0)] * len(spans), 0.0
    for column in columns:
        right = left + max(widths[c] for c in column)
        for c in column:
            middle = (left + right) / 2
            lanes[c] = (middle - widths[c] / 2, middle + widths[c] / 2)
        left = right + 2 * GAP
    return lanes, left


def _place(
    items: list[_Item], rows: list[list[int]], busy: list[bool], lanes: list[tuple[float, float]], right: float
) -> None:
    """Compute the horizontal position of every item: as close to its neighbours as its lane and row allow."""
    parts: list[list[tuple[list[int], float, float]]] = []
    for layer, row in enumerate(rows):
        groups: dict[int | None, list[int]] = {}
        for i in row:
            groups.setdefault(items[i].group, []).append(i)
        here = []
        for group, members in groups.items():
            if group is not None:
                low, high = lanes[group][0] + FRAME_PADDING, lanes[group][1] - FRAME_PADDING
            else:
                low, high = (right, float('inf')) if busy[layer] else (float('-inf'), float('inf'))
            here.append((members, low, high))
        parts.append(here)
    for here in parts:
        for members, low, high in here:
            _fit(items, members, [0.0] * len(members), low, high)
    for sweep in range(2 * SWEEPS):
        down = sweep % 2 == 0
        last = sweep >= 2 * SWEEPS - 2
        for here in parts if down else reversed(parts):
            for members, low, high in here:
                wishes = []
                for i in members:
                    item = items[i]
                    near = item.above + item.below if last else (item.above if down else item.below)
                    wishes.append(sum(items[j].x for j in near) / len(near) if near else item.x)
                _fit(items, members, wishes, low, high)


def _fit(items: list[_Item], members: list[int], wishes: list[float], low: float, high: float) -> None:
    """The positions nearest to the wishes in the least-squares sense that keep order and distance, within bounds.

    After subtracting the widths of the items before it, each position must be at least the previous one.  The nearest
    such sequence is the isotonic regression, computed by the pool adjacent violators algorithm.
    """
    room = [0.0]
    for a, b in itertools.pairwise(members):
        room.append(room[-1] + (items[a].width + items[b].width) / 2 + GAP)
    pools: list[tuple[float, int]] = []
    for wish, offset in zip(wishes, room):
        total, count = wish - offset, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before, members_before = pools.pop()
            total, count = total + before, count + members_before
        pools.append((total, count))
    first = low + items[members[0]].width / 2
    last = max(first, high - items[members[-1]].width / 2 - room[-1])
    values = [total / count for total, count in pools for _ in range(count)]
    for i, value, offset in zip(members, values, room):
        items[i].x = min(max(value, first), last) + offset


def _measure(
    model: Model, items: list[_Item], rows: list[list[int]], chains: list[list[int]], spans: list[tuple[int, int]]
) -> Layout:
    """Convert layers to vertical positions, and shift everything to positive coordinates."""
    starts, ends = {low for low, high in spans if low <= high}, {high for low, high in spans if low <= high}
    top, middles, heights = 0.0, [], []
    for layer, row in enumerate(rows):
        height = max((items[i].height for i in row), default=0.0)
        top += (FRAME_TITLE + FRAME_PADDING) if layer in starts else 0.0
        middles.append(top + height / 2)
        heights.append(height)
        top += height + LAYER_GAP + (FRAME_PADDING if layer in ends else 0.0)
    frames = []
    for c, (low, high) in enumerate(spans):
        own = [item for item in items if item.group == c]
        if low > high or not own:
            frames.append(Box(0.0, 0.0, 0.0, 0.0))
            continue
        left = min(item.x - item.width / 2 for item in own) - FRAME_PADDING
        right = max(item.x + item.width / 2 for item in own) + FRAME_PADDING
        right = max(right, left + text_size(model.clusters[c].label)[0] + 2 * FRAME_PADDING)
        upper = middles[low] - heights[low] / 2 - FRAME_PADDING - FRAME_TITLE
        lower = middles[high] + heights[high] / 2 + FRAME_PADDING
        frames.append(Box((left + right) / 2, (upper + lower) / 2, right - left, lower - upper))
    boxes = [Box(item.x, middles[item.layer], item.width, item.height) for item in items[: len(model.nodes)]]
    everything = [*boxes, *frames, *(Box(item.x, 0.0, item.width, 0.0) for item in items[len(boxes) :])]
    left = min((b.x - b.width / 2 for b in everything), default=0.0) - 2 * GAP
    right = max((b.x + b.width / 2 for b in everything), default=0.0) + 2 * GAP
    shift, down = -left, 2 * GAP
    for box in (*boxes, *frames):
        box.x, box.y = box.x + shift, box.y + down
    routes = []
    for chain in chains:
        tail, head = boxes[chain[0]], boxes[chain[-1]]
        route = [(tail.x, tail.y + tail.height / 2)]
        route += [(items[i].x + shift, middles[items[i].layer] + down) for i in chain[1:-1]]
        routes.append([*route, (head.x, head.y - head.height / 2)])
    return Layout(boxes, routes, frames, right - left, top - LAYER_GAP + 2 * down)
