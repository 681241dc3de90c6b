# SPDX-License-Identifier: Apache-2.0
"""make_dot as TorchOpt 0.7.3 had it: arguments, colours, labels, attributes, saved tensors, the size of the page."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import graphviz
import pytest
import torch

import torchopt.visual
from tests.visual.graphs import edges, labels
from torchopt.visual import get_fn_name, make_dot, resize_graph, trace_graph


def drawn(dot: graphviz.Digraph) -> dict[str, str]:
    """From the label of each node to its fill."""
    found = {}
    for line in dot.body:
        if '->' not in line and 'label=' in line and 'subgraph' not in line:
            label = re.search(r'label=("(?:[^"\\]|\\.)*"|\S+)', line)
            fill = re.search(r'fillcolor=(\S+?)[\s\]]', line)
            assert label is not None
            found[label[1].strip('"]').replace('\\n', '\n')] = fill[1] if fill else ''
    return found


def test_the_arguments_are_those_of_0_7_3() -> None:
    parameters = list(inspect.signature(make_dot).parameters.values())
    plain = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert plain == {
        'var': inspect.Parameter.empty,
        'params': None,
        'show_attrs': False,
        'show_saved': False,
        'max_attr_chars': 50,
    }
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[5:])
    assert str(inspect.signature(resize_graph)).startswith(
        "(dot: 'Digraph', size_per_element: 'float' = 0.5, min_size: 'float' = 12.0)"
    )


def test_colours_and_labels() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    middle = x * 2.0
    dot = make_dot(middle.sum(), {'x': x})
    assert isinstance(dot, graphviz.Digraph)
    assert drawn(dot) == {
        '()': 'darkolivegreen1',
        'SumBackward0': '',  # graphviz's own lightgrey
        'MulBackward0': '',
        'AccumulateGrad': '',
        'x\n(2, 3)': 'lightblue',
    }
    assert dot.node_attr['style'] == 'filled'
    assert dot.node_attr['shape'] == 'box'


def test_a_leaf_without_a_name_shows_its_shape() -> None:
    graph = trace_graph(torch.ones(4, requires_grad=True).sum())
    assert labels(graph, 'leaf') == ['(4,)']
    assert labels(graph, 'output') == ['()']


def test_arrows_go_from_arguments_to_functions() -> None:
    x, y = (torch.ones((), requires_grad=True) for _ in range(2))
    graph = trace_graph(x.exp() * y, {'x': x, 'y': y})
    assert edges(graph) == {
        ('x\n()', 'AccumulateGrad', 'flow'),
        ('y\n()', 'AccumulateGrad', 'flow'),
        ('AccumulateGrad', 'ExpBackward0', 'flow'),
        ('AccumulateGrad', 'MulBackward0', 'flow'),
        ('ExpBackward0', 'MulBackward0', 'flow'),
        ('MulBackward0', '()', 'flow'),
    }
    assert len(graph.edges) == 6


def test_an_argument_that_is_used_twice_has_two_arrows() -> None:
    x = torch.ones((), requires_grad=True)
    y = x.exp()
    graph = trace_graph(y * y)
    tails = [e.tail for e in graph.edges]
    exp = next(node.id for node in graph.nodes if node.label == 'ExpBackward0')
    assert tails.count(exp) == 2


def test_nodes_that_add_up_gradients_can_be_left_out() -> None:
    x = torch.ones((), requires_grad=True)
    graph = trace_graph(x.exp() * x, {'x': x}, show_accumulate=False)
    assert edges(graph) == {
        ('x\n()', 'ExpBackward0', 'flow'),
        ('x\n()', 'MulBackward0', 'flow'),
        ('ExpBackward0', 'MulBackward0', 'flow'),
        ('MulBackward0', '()', 'flow'),
    }


@pytest.mark.parametrize('var', [torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)])
def test_a_tensor_without_a_graph_is_a_picture_of_one_node(var: torch.Tensor) -> None:
    assert drawn(make_dot(var, {'w': var})) == {'w\n(2, 3)': 'darkolivegreen1'}


def test_a_tree_of_outputs() -> None:
    x = torch.ones(2, requires_grad=True)
    y = x * 2.0
    graph = trace_graph({'loss': y.sum(), 'others': [y, None], 'again': y}, {'x': x})
    assert labels(graph, 'output') == ['again\n(2,)', 'loss\n()']  # each tensor once, by its first place
    assert labels(graph, 'leaf') == ['x\n(2,)']
    assert labels(graph, 'function').count('MulBackward0') == 1


def test_an_output_that_is_also_a_leaf_of_the_graph_is_one_node() -> None:
    x = torch.ones(2, requires_grad=True)
    graph = trace_graph([x.sum(), x], {'x': x})
    assert graph.counts() == {'output': 2, 'function': 2}
    assert ('x\n(2,)', 'AccumulateGrad', 'flow') in edges(graph)


def test_the_base_of_a_view() -> None:
    x = torch.ones(3, 4, requires_grad=True)
    base = x * 2.0
    view = base[:2]
    graph = trace_graph(view, {'x': x})
    assert labels(graph, 'base') == ['(3, 4)']
    assert ('(3, 4)', '(2, 4)', 'view') in edges(graph)
    assert ('MulBackward0', '(3, 4)', 'flow') in edges(graph)
    fills = drawn(graph.to_digraph())
    assert fills['(3, 4)'] == 'darkolivegreen3'
    assert fills['(2, 4)'] == 'darkolivegreen1'
    assert any('style=dotted' in line for line in graph.to_digraph().body if '->' in line)


def test_saved_tensors() -> None:
    x = torch.ones(3, requires_grad=True)
    y = (x.exp() * torch.full((3,), 2.0)).sum()
    assert not labels(trace_graph(y), 'saved')
    graph = trace_graph(y, show_saved=True)
    assert sorted(labels(graph, 'saved')) == ['other\n(3,)', 'result\n(3,)']
    assert ('ExpBackward0', 'result\n(3,)', 'saved') in edges(graph)
    dot = graph.to_digraph()
    assert drawn(dot)['other\n(3,)'] == 'orange'
    assert sum('dir=none' in line for line in dot.body) == 2


def test_saved_tensors_of_a_custom_function() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x, torch.zeros(5))
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    x = torch.ones(2, requires_grad=True)
    graph = trace_graph(Twice.apply(x), {'x': x}, show_saved=True)
    assert labels(graph, 'function') == ['TwiceBackward', 'AccumulateGrad']
    assert labels(graph, 'saved') == ['x\n(2,)', 'saved_tensors[1]\n(5,)']
    assert graph.saved_bytes == 2 * 4 + 5 * 4


@pytest.mark.parametrize(
    ('limit', 'value'), [(50, '(1, 1, 1, 1, 1, 1)'), (8, '(1, 1...'), (3, '...'), (2, '...'), (0, '...')]
)
def test_attributes_are_cut(limit: int, value: str) -> None:
    fn = torch.ones((1,) * 6, requires_grad=True).sum(0).grad_fn
    name, line, *rows = get_fn_name(fn, True, limit).split('\n')
    assert name == 'SumBackward1'
    assert set(line) == {'-'}
    width = max(3, min(limit, len('(1, 1, 1, 1, 1, 1)')))
    assert f'self_sym_sizes: {value:>{width}}' in rows
    assert get_fn_name(fn, False, limit) == 'SumBackward1'


def test_attributes_are_listed_in_the_node() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    graph = trace_graph((x * x).sum(1), show_attrs=True)
    (mul,) = [text for text in labels(graph, 'function') if text.startswith('MulBackward0')]
    assert 'self : [saved tensor]' in mul
    assert 'other: [saved tensor]' in mul
    (total,) = [text for text in labels(graph, 'function') if text.startswith('SumBackward1')]
    assert re.search(r'keepdim +: +False', total)


def test_a_graph_that_a_backward_pass_has_freed() -> None:
    x = torch.ones(2, requires_grad=True)
    y = (x * x).sum()
    y.backward()
    graph = trace_graph(y, show_attrs=True, show_saved=True)
    assert any('[freed]' in text for text in labels(graph, 'function'))
    assert graph.counts()['function'] == 3


def test_the_page_grows_with_the_graph() -> None:
    x = torch.ones(1, requires_grad=True)
    assert make_dot(x.sum()).graph_attr['size'] == '12.0,12.0'
    for _ in range(30):
        x = x + 1.0
    dot = make_dot(x)
    assert len(dot.body) > 60
    assert dot.graph_attr['size'] == f'{len(dot.body) * 0.5},{len(dot.body) * 0.5}'
    assert resize_graph(dot, size_per_element=0.0, min_size=7.0) is dot
    assert dot.graph_attr['size'] == '7.0,7.0'


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'var': 'loss'}, TypeError, r"var: 'loss' is a str. Pass a tensor"),
        ({'var': {'loss': 1.0}}, TypeError, r"var\['loss'\]: 1.0 is a float"),
        ({'var': []}, ValueError, r'var: it contains no tensor'),
        ({'params': 3}, TypeError, r'params: 3 is an int, which does not name tensors. Pass a mapping'),
        ({'params': 'w'}, TypeError, r"params: 'w' is a str"),
        ({'params': {'w': 'x'}}, TypeError, r"params\['w'\]: 'x' is a str"),
        ({'params': [object]}, TypeError, r'params\[0\]: '),
        ({'max_attr_chars': -1}, ValueError, r'max_attr_chars: -1 is negative'),
        ({'max_attr_chars': '5'}, TypeError, r"max_attr_chars: '5' is a str. Pass an integer"),
        ({'max_nodes': 1}, ValueError, r'max_nodes: 1 is too small'),
        ({'max_nodes': 2.5}, TypeError, r'max_nodes: 2.5 is a float'),
        ({'rankdir': 'down'}, ValueError, r"rankdir: 'down' is not a direction. Pass 'TB'"),
    ],
)
def test_refusals_name_the_argument(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_dot(**{'var': torch.ones(2, requires_grad=True).sum(), **arguments})


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'graphviz', None)
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ImportError, match=r'pip install torchopt\[visual\]'):
        make_dot(x.sum())
    assert trace_graph(x.sum()).to_dot().startswith('digraph {')


def test_the_package_is_imported_when_it_is_needed() -> None:
    code = (
        'import sys, torchopt.visual\n'
        'assert not {"graphviz", "matplotlib"} & {*sys.modules}\n'
        'torchopt.visual.Digraph\n'
        'assert "graphviz" in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    assert torchopt.visual.Digraph is graphviz.Digraph
    assert torchopt.visual.SAVED_PREFIX == '_saved_'
    with pytest.raises(AttributeError, match='no_such_name'):
        torchopt.visual.no_such_name  # noqa: B018
