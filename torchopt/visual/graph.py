# SPDX-License-Identifier: Apache-2.0
"""The autograd graph of tensors as an object to inspect, show in a notebook, and write in many formats."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchopt.visual.dot import check_rankdir, dot_text, run_dot, to_digraph
from torchopt.visual.html import page
from torchopt.visual.mermaid import mermaid_text
from torchopt.visual.model import Model
from torchopt.visual.svg import svg_text
from torchopt.visual.tracing import Options, trace

if TYPE_CHECKING:
    from graphviz import Digraph

SUFFIXES = {
    '.dot': 'dot',
    '.gv': 'dot',
    '.mmd': 'mermaid',
    '.mermaid': 'mermaid',
    '.svg': 'svg',
    '.png': 'png',
    '.html': 'html',
    '.htm': 'html',
}
LAYOUTS = ('dot', 'own')
LARGE = 1000


@dataclasses.dataclass(frozen=True, repr=False)
class GradientGraph(Model):
    """The autograd graph of tensors, ready to draw; made by :func:`trace_graph`.

    The output is deterministic.  Notebooks show the graph as SVG.

    Attributes:
        nodes: The boxes: ``id``, ``kind``, ``label``, ``tooltip``, ``cluster``, ``saved_bytes``, ``colour``.
        edges: The arrows: ``tail``, ``head``, ``kind``, ``label``, ``tooltip``.
        clusters: The inner steps: ``index``, ``loop``, ``label``, ``functions``, ``saved_bytes``.
        functions: The number of autograd nodes, including those that ``max_nodes`` left out.
        saved_bytes: The memory that the graph keeps, each storage counted once; None without ``measure``.

    Example:
        >>> import torch
        >>> from torchopt.visual import trace_graph
        >>> w = torch.ones(2, requires_grad=True)
        >>> graph = trace_graph((w * w).sum(), {'w': w})
        >>> graph
        GradientGraph(5 nodes, 5 edges · 3 functions · 8 B saved)
        >>> graph.counts()
        {'output': 1, 'function': 3, 'leaf': 1}
    """

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.totals})'

    def counts(self) -> dict[str, int]:
        """The number of boxes of each kind."""
        found: dict[str, int] = {}
        for node in self.nodes:
            found[node.kind] = found.get(node.kind, 0) + 1
        return found

    def to_dot(self, rankdir: str = 'TB') -> str:
        """Text in graphviz's language DOT; requires no package.

        Args:
            rankdir: The direction of the arrows: ``'TB'``, ``'BT'``, ``'LR'`` or ``'RL'``.
        """
        return dot_text(self, check_rankdir(rankdir))

    def to_digraph(self, rankdir: str = 'TB') -> Digraph:
        """A ``graphviz.Digraph``, as :func:`make_dot` returns it.

        Args:
            rankdir: The direction of the arrows; see :meth:`to_dot`.

        Raises:
            ImportError: If the package graphviz is not installed.
        """
        return to_digraph(self, check_rankdir(rankdir))

    def to_mermaid(self, rankdir: str = 'TB') -> str:
        """Mermaid text, for a fenced block in Markdown.

        Args:
            rankdir: The direction of the arrows; see :meth:`to_dot`.
        """
        return mermaid_text(self, check_rankdir(rankdir))

    def to_svg(self, layout: str | None = None) -> str:
        """A drawing as SVG.

        Args:
            layout: ``'dot'`` uses graphviz's program, ``'own'`` the layout of this package, which requires no program.
                None uses graphviz's if it is installed and the graph has at most 1000 nodes, since it is very slow for
                larger graphs.

        Raises:
            RuntimeError: If ``layout`` is ``'dot'`` and graphviz's program is not installed.
            ValueError: If ``layout`` is unknown.
        """
        if layout is None:
            layout = 'dot' if shutil.which('dot') and len(self.nodes) <= LARGE else 'own'
        if layout not in LAYOUTS:
            raise ValueError(f"layout: {layout!r} is unknown. Pass 'dot', 'own' or None.")
        return run_dot(dot_text(self), 'svg').decode() if layout == 'dot' else svg_text(self)

    def to_html(self, title: str = 'Gradient graph') -> str:
        """An interactive HTML page with panning, zooming and search; it requires no program and no network.

        Drag to move, scroll to zoom, click a box to see its details and to highlight its neighbours.
        """
        return page(self, title)

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write the graph to a file.

        Args:
            path: The file.  Its suffix determines the format: ``.dot`` or ``.gv``, ``.mmd``, ``.svg``, ``.png``,
                ``.html``.
            format: ``'dot'``, ``'mermaid'``, ``'svg'``, ``'png'`` or ``'html'``, for other suffixes.

        Raises:
            RuntimeError: If the format is PNG and graphviz's program ``dot`` is not installed.
            ValueError: If the format is unknown.

        Example:
            >>> import pathlib, tempfile, torch
            >>> from torchopt.visual import trace_graph
            >>> graph = trace_graph(torch.ones(2, requires_grad=True).sum())
            >>> folder = pathlib.Path(tempfile.mkdtemp())
            >>> graph.save(folder / 'graph.mmd').read_text(encoding='utf-8').splitlines()[0]
            'flowchart TB'
        """
        path = Path(path)
        chosen = SUFFIXES.get(path.suffix.lower()) if format is None else format
        if chosen is None or chosen not in SUFFIXES.values():
            name, found = ('path', path.name) if format is None else ('format', format)
            raise ValueError(
                f'{name}: {found!r} is not a known format. Pass format= one of '
                f'{", ".join(map(repr, dict.fromkeys(SUFFIXES.values())))}, or a file name that ends in one of '
                f'{", ".join(SUFFIXES)}.'
            )
        if chosen == 'png':
            path.write_bytes(run_dot(self.to_dot(), 'png'))
        else:
            writers = {'dot': self.to_dot, 'mermaid': self.to_mermaid, 'svg': self.to_svg, 'html': self.to_html}
            path.write_text(writers[chosen](), encoding='utf-8')
        return path

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **_: Any) -> dict[str, str]:
        """The output in a notebook: the drawing, or one line of text if it cannot show drawings."""
        bundle = {}
        for kind, write in {'image/svg+xml': self.to_svg, 'text/plain': self.__repr__}.items():
            if (not include or kind in include) and not (exclude and kind in exclude):
                bundle[kind] = write()
        return bundle


def trace_graph(
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
) -> GradientGraph:
    """Trace the autograd graph of tensors, to inspect or draw it; requires no other package or program.

    Args:
        var: A tensor or a tree of tensors; see :func:`make_dot`.
        params: Names of tensors; see :func:`make_dot`.
        show_attrs: Whether to list what functions saved for their derivatives.
        show_saved: Whether to draw saved tensors.
        max_attr_chars: The length to which values of attributes are cut.
        show_accumulate: Whether to draw the nodes that accumulate the gradients of leaves.
        show_steps: Whether to draw frames around inner steps.
        max_nodes: The maximum number of boxes, or None.
        measure: Whether to read the saved tensors for their sizes.

    Raises:
        TypeError: If ``var`` or ``params`` has a wrong type.
        ValueError: If there is no tensor in ``var``, or a number is out of its range.

    Example:
        >>> import torch
        >>> from torchopt.visual import trace_graph
        >>> x = torch.ones(2, requires_grad=True)
        >>> for _ in range(5000):
        ...     x = x + 1.0
        >>> trace_graph(x, max_nodes=100)
        GradientGraph(100 nodes, 99 edges · 5,001 functions · 0 B saved)
    """
    options = Options(show_attrs, show_saved, max_attr_chars, show_accumulate, show_steps, max_nodes, measure)
    return GradientGraph(**vars(trace(var, params, options)))
