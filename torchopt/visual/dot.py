# SPDX-License-Identifier: Apache-2.0
"""Graphs as DOT: as text, as an object of the graphviz package, and drawn by the ``dot`` program."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torchopt.visual.model import Cluster, Edge, Model, Node
from torchopt.visual.tracing import Options, trace

if TYPE_CHECKING:
    from graphviz import Digraph

__all__ = ['dot_text', 'make_dot', 'resize_graph', 'run_dot', 'to_digraph']

GRAPH = {'size': '12,12'}
NODE = {
    'style': 'filled',
    'shape': 'box',
    'align': 'left',
    'fontsize': '10',
    'ranksep': '0.1',
    'height': '0.2',
    'fontname': 'monospace',
}
_EDGE_STYLES = {'flow': {}, 'view': {'style': 'dotted'}, 'saved': {'dir': 'none'}, 'more': {'style': 'dashed'}}


def node_attributes(node: Node) -> dict[str, str]:
    """How graphviz draws a node."""
    attributes = {'label': node.label}
    if node.kind != 'function':  # which graphviz fills with lightgrey by itself
        attributes['fillcolor'] = node.colour
    if node.kind == 'step':
        attributes |= {'penwidth': '2', 'fontsize': '12'}
    if node.kind == 'more':
        attributes['style'] = 'filled,dashed'
    if node.tooltip:
        attributes['tooltip'] = node.tooltip
    return attributes


def edge_attributes(edge: Edge) -> dict[str, str]:
    """How graphviz draws an edge."""
    attributes: dict[str, str] = dict(_EDGE_STYLES[edge.kind])
    if edge.label:
        attributes |= {'label': edge.label, 'fontsize': '9', 'fontname': 'monospace'}
    if edge.tooltip:
        attributes |= {'tooltip': edge.tooltip, 'edgetooltip': edge.tooltip}
    return attributes


def frame_attributes(cluster: Cluster) -> dict[str, str]:
    """How graphviz draws the frame of an inner step."""
    return {
        'label': cluster.label,
        'labeljust': 'l',
        'fontsize': '11',
        'fontname': 'monospace',
        'style': 'rounded,filled',
        'color': 'grey60',
        'fillcolor': 'grey97',
        'tooltip': cluster.label,
    }


def nodes_by_cluster(model: Model) -> Iterator[tuple[int | None, list[Node]]]:
    """The nodes outside frames, then those in each frame; a frame whose nodes were left out is not there."""
    found: dict[int | None, list[Node]] = {c: [] for c in (None, *range(len(model.clusters)))}
    for node in model.nodes:
        found[node.cluster].append(node)
    return ((c, nodes) for c, nodes in found.items() if c is None or nodes)


def _list(attributes: dict[str, str]) -> str:
    def quoted(text: str) -> str:
        escaped = text.replace('\\', '\\\\').replace('"', '\\"').replace('\n', '\\n')
        return f'"{escaped}"'

    return ' '.join(f'{name}={quoted(value)}' for name, value in attributes.items())


def dot_text(model: Model, rankdir: str = 'TB') -> str:
    """The graph as text in the language DOT; needs no package."""
    lines = ['digraph {', f'\tgraph [rankdir="{rankdir}"]', f'\tnode [{_list(NODE)}]']
    for c, nodes in nodes_by_cluster(model):
        indent = '\t' if c is None else '\t\t'
        if c is not None:
            lines.append(f'\tsubgraph cluster_{c} {{')
            lines.append(f'{indent}graph [{_list(frame_attributes(model.clusters[c]))}]')
        lines += [f'{indent}{node.id} [{_list(node_attributes(node))}]' for node in nodes]
        if c is not None:
            lines.append('\t}')
    for edge in model.edges:
        attributes = edge_attributes(edge)
        lines.append(f'\t{edge.tail} -> {edge.head}' + (f' [{_list(attributes)}]' if attributes else ''))
    return '\n'.join([*lines, '}', ''])


def to_digraph(model: Model, rankdir: str = 'TB') -> Digraph:
    """The graph as an object of the graphviz package."""
    try:
        import graphviz
    except ImportError as error:
        raise ImportError(
            'A graphviz.Digraph needs the Python package graphviz. Run `pip install torchopt[visual]`, '
            'or use torchopt.visual.trace_graph, whose text, SVG and HTML need no package.'
        ) from error

    def escaped(attributes: dict[str, str]) -> dict[str, str]:
        return {name: graphviz.escape(value).replace('\n', '\\n') for name, value in attributes.items()}

    dot = graphviz.Digraph(node_attr=NODE, graph_attr=GRAPH | ({} if rankdir == 'TB' else {'rankdir': rankdir}))
    for c, nodes in nodes_by_cluster(model):
        part = dot if c is None else graphviz.Digraph(name=f'cluster_{c}')
        if c is not None:
            part.attr(**escaped(frame_attributes(model.clusters[c])))
        for node in nodes:
            part.node(node.id, **escaped(node_attributes(node)))
        if c is not None:
            dot.subgraph(part)
    for edge in model.edges:
        dot.edge(edge.tail, edge.head, **escaped(edge_attributes(edge)))
    return resize_graph(dot)


def resize_graph(dot: Digraph, size_per_element: float = 0.5, min_size: float = 12.0) -> Digraph:
    """Give a large graph a large page: a square of ``max(min_size, n * size_per_element)`` inches.

    Here ``n`` counts the lines of the source.

    Args:
        dot: The graph; its attribute ``size`` is changed.
        size_per_element: Inches for each line.
        min_size: The smallest page, in inches.

    Returns:
        The same graph.

    Example:
        >>> import torch
        >>> from torchopt.visual import make_dot, resize_graph
        >>> dot = make_dot(torch.ones(2, requires_grad=True).sum())
        >>> resize_graph(dot, size_per_element=5.0).graph_attr['size']
        '35.0,35.0'
    """
    size = max(min_size, len(dot.body) * size_per_element)
    dot.graph_attr.update(size=f'{size},{size}')
    return dot


def run_dot(text: str, format: str) -> bytes:
    """Draw DOT text by the ``dot`` program.

    Raises:
        RuntimeError: If the program is not there, or fails.
    """
    program = shutil.which('dot')
    if program is None:
        raise RuntimeError(
            f"Drawing {format.upper()} needs graphviz's program `dot`, which was not found. Install it (on Debian "
            f"`apt install graphviz`), or choose the format 'html', or 'svg' with layout='own', which need no program."
        )
    done = subprocess.run([program, f'-T{format}'], input=text.encode(), capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f'`dot -T{format}` failed: {done.stderr.decode(errors="replace").strip()}')
    return done.stdout


def make_dot(
    var: Any,
    params: Any = None,
    show_attrs: bool = False,
    show_saved: bool = False,
    max_attr_chars: int = 50,
    *,
    show_accumulate: bool = True,
    show_steps: bool = True,
    max_nodes: int | None = None,
    measure: bool = True,
    rankdir: str = 'TB',
) -> Digraph:
    """Draw the graph of autograd behind tensors, as a :class:`graphviz.Digraph`.

    Arrows go from arguments to functions.  Boxes are green for outputs (darker for a tensor that an output is a view
    of, with a dotted arrow), light blue for leaves and for results that have a name, orange for saved tensors, grey for
    functions, and dark orange for a whole optimizer step that the engine computed at once.  A frame holds what belongs
    to one inner step and says how many functions it has, and how much memory they keep.

    Making the graph needs the package graphviz (``pip install torchopt[visual]``), drawing it also the program ``dot``.
    :func:`torchopt.visual.trace_graph` takes the same arguments, and needs neither.

    Args:
        var: A tensor or a tree of tensors: the outputs.  One without a graph is a picture of one box.
        params: Names of tensors: a mapping, a :class:`torchopt.utils.ModuleState` extracted with
            ``enable_visual=True``, a module, an optimizer, pairs of name and tensor such as ``named_parameters()``, a
            tree of tensors such as an optimizer's state, or an iterable of these.  A tensor in the middle of the graph
            may have a name, too.
        show_attrs: Whether to list what functions saved for their derivative, such as dimensions.
        show_saved: Whether to draw saved tensors.
        max_attr_chars: The length to which the values of attributes are cut; less than 3 counts as 3.
        show_accumulate: Whether to draw the nodes that add up the gradients of leaves.
        show_steps: Whether to draw frames around inner steps.
        max_nodes: How many boxes to draw at most, nearest to the outputs first; one more box says how many were left
            out.  At least 2, or None for all.
        measure: Whether to read the saved tensors for their sizes.  With ``torch.utils.checkpoint``, reading computes
            them again.
        rankdir: The direction of the arrows: ``'TB'``, ``'BT'``, ``'LR'`` or ``'RL'``.

    Returns:
        The graph; ``.source`` is its text, ``.render('name', format='svg')`` draws it.

    Raises:
        ImportError: If the package graphviz is not installed.
        TypeError: If ``var`` or ``params`` is not what it should be.
        ValueError: If there is no tensor in ``var``, or a number is out of its range.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.visual import make_dot
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = torchopt.MetaAdam(net, lr=0.1, use_accelerated_op=None)
        >>> start = torchopt.extract_state_dict(net, enable_visual=True, visual_prefix='step0.')
        >>> optimizer.step(net(torch.ones(3, 2)).sum())
        >>> dot = make_dot(net(torch.ones(3, 2)).sum(), params=start)
        >>> 'step0.weight' in dot.source
        True
    """
    options = Options(
        show_attrs=show_attrs,
        show_saved=show_saved,
        max_attr_chars=max_attr_chars,
        show_accumulate=show_accumulate,
        show_steps=show_steps,
        max_nodes=max_nodes,
        measure=measure,
    )
    return to_digraph(trace(var, params, options), check_rankdir(rankdir))


def check_rankdir(rankdir: str) -> str:
    """Require a direction that graphviz knows."""
    if rankdir not in ('TB', 'BT', 'LR', 'RL'):
        raise ValueError(f"rankdir: {rankdir!r} is no direction. Pass 'TB', 'BT', 'LR' or 'RL'.")
    return rankdir
