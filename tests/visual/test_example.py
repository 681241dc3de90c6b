# SPDX-License-Identifier: Apache-2.0
"""The seed's visualization example."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.visual.graphs import labels, needs_engine
from torchopt.visual import trace_graph

sys.path.insert(0, str(Path(__file__).parents[2] / 'examples'))

import visualize


@needs_engine
def test_the_example_draws_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', ['visualize.py', '--out', str(tmp_path / 'new' / 'pictures')])
    counts = visualize.main()
    assert counts['torchopt'] == 38
    assert counts['plain'] > 2 * counts['torchopt']
    assert {'plain.svg', 'torchopt.html', 'torchopt.svg'} <= {
        path.name for path in (tmp_path / 'new/pictures').iterdir()
    }


@needs_engine
def test_all_that_the_example_names_is_in_the_picture() -> None:
    loss, params = visualize.adapt(None)
    graph = trace_graph(loss, params)
    names = {node.label.split('\n')[0] for node in graph.nodes if '\n' in node.label}
    steps = {f'step{i}.fc.{name}' for i in range(3) for name in ('weight', 'bias')}
    assert names >= {*steps, 'meta_param', 'outer_loss'}
    assert labels(graph, 'step') == ['Adam step\n2 leaves'] * 2
    assert [cluster.index for cluster in graph.clusters] == [1, 2]
