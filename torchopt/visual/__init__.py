# SPDX-License-Identifier: Apache-2.0
"""Drawings of autograd graphs, plots of schedules and of the paths of optimizers, and records of bilevel runs.

:func:`make_dot` is the function of TorchOpt 0.7.3.  :func:`trace_graph` takes the same arguments and returns an object
that writes DOT, Mermaid, SVG, PNG and HTML.  The packages graphviz and matplotlib are imported only if used.
"""

from __future__ import annotations

from typing import Any

from torchopt.visual.dot import make_dot, resize_graph
from torchopt.visual.functions import SAVED_PREFIX, get_fn_name
from torchopt.visual.graph import GradientGraph, trace_graph
from torchopt.visual.plots import plot_landscape, plot_schedule
from torchopt.visual.recorder import BilevelRecorder, StepRecord

__all__ = [
    'BilevelRecorder',
    'GradientGraph',
    'SAVED_PREFIX',
    'StepRecord',
    'get_fn_name',
    'make_dot',
    'plot_landscape',
    'plot_schedule',
    'resize_graph',
    'trace_graph',
]


def __getattr__(name: str) -> Any:
    if name == 'Digraph':  # a name of TorchOpt 0.7.3; import graphviz only on access
        import graphviz

        return graphviz.Digraph
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
