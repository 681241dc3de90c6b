# SPDX-License-Identifier: Apache-2.0
"""Graphs as SVG in the layout of :mod:`torchopt.visual.layout`; requires no program."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from torchopt.visual.layout import LINE, Box, Route, lay_out, text_size
from torchopt.visual.model import COLOURS, Edge, Model, Node

HEX = {
    'darkolivegreen1': '#caff70',
    'darkolivegreen3': '#a2cd5a',
    'lightblue': '#add8e6',
    'orange': '#ffa500',
    'darkorange': '#ff8c00',
    'lightgrey': '#d3d3d3',
    'white': '#ffffff',
}
"""graphviz's colours in hexadecimal notation."""

FONT = 10.0
STYLE = """\
text{font-family:'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:10px;text-anchor:middle;fill:#111}
.node rect{stroke:#444;stroke-width:.8}.step rect{stroke-width:2}.step text{font-size:11.5px}
.more rect{stroke-dasharray:4 3}.frame rect{fill:#f6f6f2;stroke:#999}
.title text{text-anchor:start;fill:#444}.title rect{fill:#f6f6f2;opacity:.85}
.edge path{fill:none;stroke:#555;stroke-width:.9}.edge.view path{stroke-dasharray:1.5 3}
.edge.more path{stroke-dasharray:5 3}
.edge text{font-size:9px;fill:#444;stroke:#f6f6f2;stroke-width:3px;paint-order:stroke}"""


def _number(value: float) -> str:
    return f'{value:.1f}'.removesuffix('.0')


def _rectangle(box: Box, attributes: str) -> str:
    x, y = _number(box.x - box.width / 2), _number(box.y - box.height / 2)
    return f'<rect x="{x}" y="{y}" width="{_number(box.width)}" height="{_number(box.height)}" {attributes}/>'


def _title(text: str) -> str:
    return f'<title>{escape(text)}</title>' if text else ''


def _node(node: Node, box: Box) -> str:
    lines = node.label.split('\n')
    scale = 1.15 if node.kind == 'step' else 1.0
    height = LINE * scale
    first = box.y - height * (len(lines) - 1) / 2 + 0.35 * FONT * scale
    # Keep the spaces that align columns of attributes, which SVG collapses by default.
    keep = ' xml:space="preserve"' if any('  ' in line for line in lines) else ''
    text = ''.join(
        f'<text x="{_number(box.x)}" y="{_number(first + k * height)}"{keep}>{escape(line)}</text>'
        for k, line in enumerate(lines)
    )
    fill = HEX[COLOURS[node.kind]]
    return (
        f'<g class="node {node.kind}" id="{node.id}">{_title(node.tooltip or node.label)}'
        f'{_rectangle(box, f"""rx="3" fill="{fill}" """.rstrip())}{text}</g>'
    )


def _path(points: Route) -> str:
    """A smooth curve whose tangent at every point is vertical."""
    x, y = points[0]
    words = [f'M{_number(x)} {_number(y)}']
    for u, v in points[1:]:
        bend = (v - y) / 2
        a, b = f'{_number(x)} {_number(y + bend)}', f'{_number(u)} {_number(v - bend)}'
        words.append(f'C{a} {b} {_number(u)} {_number(v)}')
        x, y = u, v
    return ''.join(words)


def _edge(edge: Edge, route: Route) -> str:
    points = [*route]
    arrow = '' if edge.kind == 'saved' else ' marker-end="url(#arrow)"'
    if arrow:
        x, y = points[-1]
        points[-1] = (x, y - 5.0)  # room for the arrowhead
    label = ''
    if edge.label:
        middle = len(points) // 2
        (x, y), (u, v) = points[middle - 1], points[middle]
        if len(points) == 2:
            u, v = (x + u) / 2, (y + v) / 2
        label = f'<text x="{_number(u)}" y="{_number(v + 3)}">{escape(edge.label)}</text>'
    ends = f'data-tail={quoteattr(edge.tail)} data-head={quoteattr(edge.head)}'
    return f'<g class="edge {edge.kind}" {ends}>{_title(edge.tooltip)}<path d="{_path(points)}"{arrow}/>{label}</g>'


def svg_text(model: Model) -> str:
    """The graph as one ``<svg>`` element."""
    layout = lay_out(model)
    width, height = _number(layout.width), _number(layout.height)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<style>{STYLE}</style>',
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for cluster, frame in zip(model.clusters, layout.frames):
        if frame.width:
            shape = _rectangle(frame, 'rx="8"')
            parts.append(f'<g class="frame">{_title(cluster.label)}{shape}</g>')
    parts += [_edge(edge, route) for edge, route in zip(model.edges, layout.routes)]
    parts += [_node(node, box) for node, box in zip(model.nodes, layout.boxes)]
    for cluster, frame in zip(model.clusters, layout.frames):
        if frame.width:  # drawn over the arrows that cross it
            x, y = _number(frame.x - frame.width / 2 + 8), _number(frame.y - frame.height / 2 + 14)
            wide = text_size(cluster.label)[0] + 8
            plate = Box(frame.x - frame.width / 2 + 4 + wide / 2, frame.y - frame.height / 2 + 10.5, wide, 13)
            back = _rectangle(plate, 'rx="2"')
            parts.append(f'<g class="title">{back}<text x="{x}" y="{y}">{escape(cluster.label)}</text></g>')
    return '\n'.join([*parts, '</svg>', ''])
