# SPDX-License-Identifier: Apache-2.0
"""Graphs as DOT text, as ``graphviz.Digraph`` objects, and drawn by the program ``dot``."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torchopt.visual.model import Cluster, Edge, Model, Node
from torchopt.visual.tracing import Options, trace

if TYPE_CHECKING:
    from graphviz import Digraph

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
    """The graphviz attributes of a node."""
    attributes = {'label': node.label}
    if node.kind != 'function':  # functions have the default fill, light grey
        attributes['fillcolor'] = node.colour
    if node.kind == 'step':
        attributes |= {'penwidth': '2', 'fontsize': '12'}
    if node.kind == 'more':
        attributes['style'] = 'filled,dashed'
    if node.tooltip:
        attributes['tooltip'] = node.tooltip
    return attributes


def edge_attributes(edge: Edge) -> dict[str, str]:
    """The graphviz attributes of an edge."""
    attributes: dict[str, str] = dict(_EDGE_STYLES[edge.kind])
    if edge.label:
        attributes |= {'label': edge.label, 'fontsize': '9', 'fontname': 'monospace'}
    if edge.tooltip:
        attributes |= {'tooltip': edge.tooltip, 'edgetooltip': edge.tooltip}
    return attributes


def frame_attributes(cluster: Cluster) -> dict[str, str]:
    """The graphviz attributes of the frame of an inner step."""
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
    """The nodes outside of frames, then those in each frame; frames without nodes are left out."""
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
    """The graph in the language DOT; requires no package."""
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
            'A graphviz.Digraph requires the Python package graphviz. Run `pip install torchopt[visual]`, '
            'or use torchopt.visual.trace_graph, whose text, SVG and HTML require no package.'
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
    """Set the page size to a square of ``max(min_size, n * size_per_element)`` inches.

    Here ``n`` is the number of lines of the DOT source.

    Args:
        dot: The graph; its attribute ``size`` is changed.
        size_per_element: Inches per line.
        min_size: The minimum size, in inches.

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
    """Draw DOT text with the program ``dot``.

    Raises:
        RuntimeError: If the program is not installed or fails.
    """
    program = shutil.which('dot')
    if program is None:
        raise RuntimeError(
            f"Drawing {format.upper()} requires graphviz's program `dot`, which was not found. Install it (on Debian "
            f"`apt install graphviz`), or use the format 'html', or 'svg' with layout='own', which require no program."
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
    """Draw the autograd graph of tensors as a :class:`graphviz.Digraph`.

    Arrows go from arguments to functions.  The colours of the boxes:

    - green: outputs (dark green: a tensor of which an output is a view, with a dotted arrow);
    - light blue: leaves, and results with a name;
    - orange: saved tensors;
    - grey: functions;
    - dark orange: a whole optimizer step computed by the native engine.

    A frame surrounds the nodes of one inner step and shows their number and the memory that they keep.  Gradient
    descent without momentum and decay has neither: its step is one addition of torch for each parameter.

    Making the graph requires the package graphviz (``pip install torchopt[visual]``); drawing it also requires the
    program ``dot``.  :func:`torchopt.visual.trace_graph` takes the same arguments and requires neither.

    Args:
        var: The outputs, a tensor or a tree of tensors.  A tensor without a graph is drawn as one box.
        params: Names of tensors: a mapping, a :class:`torchopt.utils.ModuleState` extracted with
            ``enable_visual=True``, a module, an optimizer, pairs of name and tensor such as ``named_parameters()``, a
            tree of tensors such as an optimizer's state, or an iterable of these.  Intermediate results can have
            names, too.
        show_attrs: Whether to list what functions saved for their derivatives, such as dimensions.
        show_saved: Whether to draw saved tensors.
        max_attr_chars: The length to which values of attributes are cut; less than 3 counts as 3.
        show_accumulate: Whether to draw the nodes that accumulate the gradients of leaves.
        show_steps: Whether to draw frames around inner steps.
        max_nodes: The maximum number of boxes, those nearest to the outputs; one more box shows how many were left
            out.  At least 2, or None for no limit.
        measure: Whether to read the saved tensors for their sizes.  With ``torch.utils.checkpoint``, this recomputes
            them.
        rankdir: The direction of the arrows: ``'TB'``, ``'BT'``, ``'LR'`` or ``'RL'``.

    Returns:
        The graph; ``.source`` is its text, ``.render('name', format='svg')`` draws it.

    Raises:
        ImportError: If the package graphviz is not installed.
        TypeError: If ``var`` or ``params`` has a wrong type.
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
    options = Options(show_attrs, show_saved, max_attr_chars, show_accumulate, show_steps, max_nodes, measure)
    return to_digraph(trace(var, params, options), check_rankdir(rankdir))


def check_rankdir(rankdir: str) -> str:
    """Require a valid direction of graphviz."""
    if rankdir not in ('TB', 'BT', 'LR', 'RL'):
        raise ValueError(f"rankdir: {rankdir!r} is not a direction. Pass 'TB', 'BT', 'LR' or 'RL'.")
    return rankdir
