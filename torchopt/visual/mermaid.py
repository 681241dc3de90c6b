# SPDX-License-Identifier: Apache-2.0
"""Graphs as Mermaid text, which GitHub, GitLab and many notebooks can draw."""

from __future__ import annotations

from torchopt.visual.dot import nodes_by_cluster
from torchopt.visual.model import COLOURS, Edge, Model, Node
from torchopt.visual.svg import HEX

_ARROWS = {'flow': '-->', 'view': '-.->', 'saved': '---', 'more': '-.->'}


def _text(text: str) -> str:
    escaped = text.replace('&', '&amp;').replace('#', '#35;').replace('"', '#quot;')
    return escaped.replace('<', '&lt;').replace('>', '&gt;').replace('\n', '<br/>')


def _node(node: Node) -> str:
    left, right = ('[["', '"]]') if node.kind == 'step' else ('["', '"]')
    return f'{node.id}{left}{_text(node.label)}{right}:::{node.kind}'


def _edge(edge: Edge) -> str:
    label = f'|"{_text(edge.label)}"|' if edge.label else ''
    return f'{edge.tail} {_ARROWS[edge.kind]}{label} {edge.head}'


def mermaid_text(model: Model, rankdir: str = 'TB') -> str:
    """The graph as Mermaid text."""
    lines = [f'flowchart {rankdir}']
    for c, nodes in nodes_by_cluster(model):
        if c is None:
            lines += [f'    {_node(node)}' for node in nodes]
        else:
            lines.append(f'    subgraph cluster_{c}["{_text(model.clusters[c].label)}"]')
            lines += [f'        {_node(node)}' for node in nodes]
            lines.append('    end')
    lines += [f'    {_edge(edge)}' for edge in model.edges]
    used = {node.kind for node in model.nodes}
    lines += [
        f'    classDef {kind} fill:{HEX[COLOURS[kind]]},stroke:#333,color:#000' for kind in COLOURS if kind in used
    ]
    return '\n'.join([*lines, ''])
