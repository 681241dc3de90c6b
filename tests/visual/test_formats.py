# SPDX-License-Identifier: Apache-2.0
"""Writers: DOT, Mermaid, SVG, PNG, HTML, notebooks; large graphs; the same text for the same graph."""

from __future__ import annotations

import html.parser
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import graphviz
import pytest
import torch

import torchopt.visual.dot
from tests.visual.graphs import inner_loop, needs_engine, tasks
from torchopt.visual import GradientGraph, trace_graph
from torchopt.visual.layout import lay_out

SVG = '{http://www.w3.org/2000/svg}'
needs_dot = pytest.mark.skipif(shutil.which('dot') is None, reason="requires graphviz's program dot")


def small() -> GradientGraph:
    x = torch.ones(2, 3, requires_grad=True)
    return trace_graph((x * x).sum(), {'x "<&#>" \\': x}, show_saved=True)


def loop(**options: Any) -> GradientGraph:
    loss, meta, *_, states = inner_loop(2)
    return trace_graph(loss, [*states, {'meta': meta}], **options)


def deep(length: int) -> torch.Tensor:
    x = torch.ones(2, requires_grad=True)
    for _ in range(length):
        x = x + 1.0
    return x


WRITERS = ['to_dot', 'to_mermaid', 'to_html', 'to_svg']


@pytest.mark.parametrize('options', [{}, {'show_attrs': True, 'show_saved': True}, {'max_nodes': 20}])
@pytest.mark.parametrize('writer', WRITERS)
def test_the_same_graph_gives_the_same_text(writer: str, options: dict) -> None:
    arguments = {'layout': 'own'} if writer == 'to_svg' else {}
    first, second = (getattr(loop(**options), writer)(**arguments) for _ in range(2))
    assert first == second
    assert '0x' not in first


def test_dot_text_and_digraph_say_the_same() -> None:
    graph = loop(show_saved=True)
    node = re.compile(r'^\s*(n\d+) \[', re.M)
    edge = re.compile(r'^\s*(n\d+) -> (n\d+)', re.M)
    text, source = graph.to_dot(), graph.to_digraph().source
    assert node.findall(text) == node.findall(source)
    assert {*node.findall(text)} == {n.id for n in graph.nodes}
    assert edge.findall(text) == edge.findall(source) == [(e.tail, e.head) for e in graph.edges]
    assert text.count('subgraph') == source.count('subgraph') == len(graph.clusters)
    assert text.count('{') == text.count('}')


def test_dot_text_is_quoted() -> None:
    text = small().to_dot()
    assert r'label="x \"<&#>\" \\\n(2, 3)"' in text


@needs_dot
@pytest.mark.parametrize('rankdir', ['TB', 'LR'])
def test_graphviz_draws_what_we_write(rankdir: str) -> None:
    for graph in (small(), loop(show_attrs=True), loop(max_nodes=10)):
        for text in (graph.to_dot(rankdir), graph.to_digraph(rankdir).source):
            root = ET.fromstring(torchopt.visual.dot.run_dot(text, 'svg'))
            groups = [g.get('class') for g in root.iter(f'{SVG}g')]
            assert groups.count('node') == len(graph.nodes)
            assert groups.count('edge') == len(graph.edges)
            assert groups.count('cluster') == len({node.cluster for node in graph.nodes} - {None})
    words = {t.text for t in ET.fromstring(torchopt.visual.dot.run_dot(small().to_dot(), 'svg')).iter(f'{SVG}text')}
    assert 'x "<&#>" \\' in words


def test_mermaid() -> None:
    graph = loop()
    lines = graph.to_mermaid('LR').splitlines()
    assert lines[0] == 'flowchart LR'
    assert sum('-->' in line for line in lines) == len(graph.edges)
    nodes = [line for line in lines if re.match(r'\s+n\d+\[', line)]
    assert len(nodes) == len(graph.nodes)
    assert sum(line.strip().startswith('subgraph ') for line in lines) == len(graph.clusters)
    assert sum(line.strip() == 'end' for line in lines) == len(graph.clusters)
    assert '    classDef leaf fill:#add8e6,stroke:#333,color:#000' in lines


def test_mermaid_text_is_escaped() -> None:
    (line,) = [line for line in small().to_mermaid().splitlines() if ':::leaf' in line]
    assert line.strip() == r'n6["x #quot;&lt;&amp;#35;&gt;#quot; \<br/>(2, 3)"]:::leaf'


@pytest.mark.parametrize('make', [small, loop])
def test_own_svg(make: Any) -> None:
    graph = make()
    root = ET.fromstring(graph.to_svg('own'))
    boxes = [g for g in root.iter(f'{SVG}g') if g.get('class', '').startswith('node')]
    assert [g.get('id') for g in boxes] == [node.id for node in graph.nodes]
    ends = [(g.get('data-tail'), g.get('data-head')) for g in root.iter(f'{SVG}g') if 'edge' in g.get('class', '')]
    assert ends == [(e.tail, e.head) for e in graph.edges]
    for box, node in zip(boxes, graph.nodes):
        assert '\n'.join(text.text for text in box.iter(f'{SVG}text')) == node.label
        assert box.find(f'{SVG}title').text == node.tooltip
    fills = {box.get('class').split()[1]: box.find(f'{SVG}rect').get('fill') for box in boxes}
    assert fills['output'] == '#caff70'
    assert fills['leaf'] == '#add8e6'


def inside(inner: Any, outer: Any) -> bool:
    return (
        abs(inner.x - outer.x) + inner.width / 2 <= outer.width / 2
        and abs(inner.y - outer.y) + inner.height / 2 <= outer.height / 2
    )


def apart(a: Any, b: Any) -> bool:
    return abs(a.x - b.x) >= (a.width + b.width) / 2 or abs(a.y - b.y) >= (a.height + b.height) / 2


@pytest.mark.parametrize(
    'options', [{}, {'show_attrs': True}, {'show_saved': True}, {'max_nodes': 25}, {'show_accumulate': False}]
)
def test_own_layout(options: dict) -> None:
    """Boxes do not overlap, arrows go down, frames hold their own nodes and no others."""
    check_layout(loop(**options))


@needs_engine
@pytest.mark.parametrize('options', [{}, {'show_accumulate': False}, {'max_nodes': 60}])
def test_own_layout_of_several_loops(options: dict) -> None:
    """What several frames share stands outside of them; frames of one loop come one after another."""
    graph = trace_graph(*tasks(2), **options)
    check_layout(graph)
    frames = {(c.loop, c.index): frame for c, frame in zip(graph.clusters, lay_out(graph).frames)}
    for of_loop in (1, 2):
        first, second = frames[of_loop, 1], frames[of_loop, 2]
        assert first.y + first.height / 2 <= second.y - second.height / 2


def check_layout(graph: GradientGraph) -> None:
    layout = lay_out(graph)
    number = {node.id: i for i, node in enumerate(graph.nodes)}
    for i, box in enumerate(layout.boxes):
        assert 0 <= box.x - box.width / 2 <= box.x + box.width / 2 <= layout.width
        assert 0 <= box.y - box.height / 2 <= box.y + box.height / 2 <= layout.height
        assert all(apart(box, other) for other in layout.boxes[:i])
    for edge in graph.edges:
        if 'more' not in (edge.head, edge.tail):
            assert layout.boxes[number[edge.tail]].y < layout.boxes[number[edge.head]].y
    for c, frame in enumerate(layout.frames):
        for node, box in zip(graph.nodes, layout.boxes):
            assert inside(box, frame) if node.cluster == c else apart(box, frame)
        assert all(apart(frame, other) for other in layout.frames[:c])


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced, and collects what a browser would load."""

    VOID = frozenset({'meta', 'input', 'br', 'link', 'img'})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.seen.append(tag)
        for name, value in attrs:
            if name in ('src', 'href', 'xlink:href', 'action', 'data', 'srcset'):
                self.loads.append((tag, value))
            if name == 'id':
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ['script']:
            self.scripts.append(data)


def test_the_page_is_whole_and_loads_nothing() -> None:
    graph = loop(show_saved=True)
    text = graph.to_html('Two <steps>')
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert not page.loads
    assert not {'link', 'img', 'iframe', 'object', 'embed', 'base'} & {*page.seen}
    assert not re.search(r'https?:|//\w|@import|url\((?!#)|\bimport\(|fetch\(|XMLHttpRequest', text)
    assert '<title>Two &lt;steps&gt;</title>' in text
    (script,) = page.scripts
    for name in re.findall(r"getElementById\('(\w+)'\)", script):
        assert name in page.ids
    assert {node.id for node in graph.nodes} <= {*page.ids}
    assert len(page.ids) == len({*page.ids})
    ET.fromstring(text[text.index('<svg') : text.index('</svg>') + 6])  # well-formed by itself


def test_a_notebook_gets_a_drawing() -> None:
    graph = small()
    bundle = graph._repr_mimebundle_()
    assert {*bundle} == {'image/svg+xml', 'text/plain'}
    assert ET.fromstring(bundle['image/svg+xml']).tag == f'{SVG}svg'
    assert bundle['text/plain'] == repr(graph)
    assert {*graph._repr_mimebundle_(include={'text/plain'})} == {'text/plain'}
    assert {*graph._repr_mimebundle_(exclude={'text/plain'})} == {'image/svg+xml'}


def test_without_dot_a_notebook_gets_our_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small()
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    assert graph._repr_mimebundle_()['image/svg+xml'] == graph.to_svg('own')


@pytest.mark.parametrize(
    ('name', 'format', 'begins'),
    [
        ('a.dot', None, b'digraph {'),
        ('a.gv', None, b'digraph {'),
        ('a.mmd', None, b'flowchart TB'),
        ('a.html', None, b'<!DOCTYPE html>'),
        ('a.txt', 'mermaid', b'flowchart TB'),
        ('a.SVG', None, b'<'),
        pytest.param('a.png', None, b'\x89PNG', marks=needs_dot),
    ],
)
def test_save(tmp_path: Path, name: str, format: str | None, begins: bytes) -> None:
    path = small().save(tmp_path / name, format)
    assert path == tmp_path / name
    assert path.read_bytes().startswith(begins)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small()
    with pytest.raises(ValueError, match=r"path: 'a.pdf' is not a known format. Pass format= one of 'dot'"):
        graph.save(tmp_path / 'a.pdf')
    with pytest.raises(ValueError, match=r"format: 'jpeg' is not a known format"):
        graph.save(tmp_path / 'a.png', 'jpeg')
    with pytest.raises(ValueError, match=r"layout: 'neato' is unknown. Pass 'dot', 'own'"):
        graph.to_svg('neato')
    with pytest.raises(ValueError, match=r"rankdir: 'XY' is not a direction"):
        graph.to_mermaid('XY')
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    for draw in (lambda: graph.save(tmp_path / 'a.png'), lambda: graph.to_svg('dot')):
        with pytest.raises(RuntimeError, match=r"requires graphviz's program `dot`.*apt install graphviz"):
            draw()
    assert not [*tmp_path.iterdir()]


@needs_dot
def test_what_dot_says_is_passed_on() -> None:
    with pytest.raises(RuntimeError, match=r'`dot -Tsvg` failed: .*syntax error'):
        torchopt.visual.dot.run_dot('digraph {{', 'svg')


def test_a_deep_graph() -> None:
    length = max(20_000, 10 * sys.getrecursionlimit())
    graph = trace_graph(deep(length))
    assert graph.functions == length + 1
    assert len(graph.nodes) == length + 3
    assert graph.to_dot().count(' -> ') == length + 2
    assert graph.to_mermaid().count('-->') == length + 2
    assert isinstance(graph.to_digraph(), graphviz.Digraph)
    assert graph.to_svg('own').count('class="node') == length + 3


@pytest.mark.parametrize('limit', [2, 3, 10, 100])
def test_what_is_too_much_is_summed_up(limit: int) -> None:
    graph = trace_graph(deep(2000), max_nodes=limit)
    assert len(graph.nodes) == limit
    assert graph.functions == 2001
    assert graph.nodes[0].kind == 'output'
    more = graph.nodes[-1]
    assert (more.kind, more.label) == ('more', f'{2003 - limit + 1:,} more nodes')
    assert f'max_nodes={limit}' in more.tooltip
    (edge,) = [e for e in graph.edges if e.tail == more.id]
    assert (edge.kind, edge.head) == ('more', graph.nodes[-2].id)
    assert 'style=dashed' in graph.to_digraph().source
    assert 'style="filled,dashed"' in graph.to_digraph().source


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    x = deep(5)
    assert trace_graph(x, max_nodes=8).to_dot() == trace_graph(x).to_dot()
    assert trace_graph(x, max_nodes=7).counts()['more'] == 1


@needs_engine
@pytest.mark.parametrize('limit', [2, 15, 30, 45])
def test_a_limited_inner_loop_is_drawn_in_all_formats(limit: int) -> None:
    """Wherever the cut lies, no arrow hangs loose, and the layout holds."""
    graph = loop(max_nodes=limit)
    ids = {node.id for node in graph.nodes}
    assert all({e.tail, e.head} <= ids for e in graph.edges)
    assert len({(e.tail, e.head) for e in graph.edges if e.kind == 'more'}) == sum(
        e.kind == 'more' for e in graph.edges
    )
    for writer in WRITERS:
        assert getattr(graph, writer)()


def test_the_whole_says_how_large_it_is() -> None:
    graph = small()
    assert repr(graph) == f'GradientGraph({graph.totals})'
    assert graph.counts() == {'output': 1, 'function': 3, 'saved': 2, 'leaf': 1}
    assert graph.totals == '7 nodes, 7 edges · 3 functions · 24 B saved'


@pytest.mark.parametrize(
    ('size', 'words'),
    [(0, '0 B'), (1023, '1023 B'), (1024, '1.0 KiB'), (1536, '1.5 KiB'), (1024**2, '1.0 MiB'), (1048575, '1.0 MiB')],
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert torchopt.tree.table.format_bytes(size) == words
