# SPDX-License-Identifier: Apache-2.0
"""Names: every way to give them, and where they appear."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchopt
from tests.visual.graphs import inner_loop, labels, needs_engine
from torchopt.visual import trace_graph


@pytest.fixture
def net() -> nn.Module:
    return nn.Linear(2, 1)


@pytest.fixture
def meta() -> torch.Tensor:
    return torch.ones((), requires_grad=True)


ALL = ['bias', 'meta', 'weight']

WAYS = {
    'one mapping': (lambda net, meta: {'meta': meta, **dict(net.named_parameters())}, ALL),
    'a generator': (lambda net, meta: net.named_parameters(), ['bias', 'weight']),
    'a list of pairs': (lambda net, meta: [*net.named_parameters(), ('meta', meta)], ALL),
    'a tuple of pairs': (lambda net, meta: (*net.named_parameters(), ('meta', meta)), ALL),
    'a module': (lambda net, meta: net, ['bias', 'weight']),
    'a state': (lambda net, meta: torchopt.extract_state_dict(net, enable_visual=True), ['bias', 'weight']),
    'a state with a prefix': (
        lambda net, meta: torchopt.extract_state_dict(net, enable_visual=True, visual_prefix='net.'),
        ['net.bias', 'net.weight'],
    ),
    'a state without names': (lambda net, meta: torchopt.extract_state_dict(net), ['bias', 'weight']),
    'visual contents': (
        lambda net, meta: torchopt.extract_state_dict(net, enable_visual=True).visual_contents,
        ['bias', 'weight'],
    ),
    'a mixture': (lambda net, meta: [torchopt.extract_state_dict(net, enable_visual=True), {'meta': meta}, None], ALL),
    'generators in a generator': (lambda net, meta: (x for x in [net.named_parameters(), {'meta': meta}]), ALL),
    'a mapping of modules': (lambda net, meta: {'net': net, 'meta': meta}, ['meta', 'net.bias', 'net.weight']),
    'a pair with a module': (lambda net, meta: [('net', net)], ['net.bias', 'net.weight']),
    'a tree': (
        lambda net, meta: {'layers': [{'w': net.weight, 'b': net.bias}], 'meta': meta},
        ["layers[0]['b']", "layers[0]['w']", 'meta'],
    ),
    'a list of tensors': (lambda net, meta: [net.weight, net.bias], ['params[0]', 'params[1]']),
    'a later name wins': (lambda net, meta: [net, {'slope': net.weight}], ['bias', 'slope']),
    'numbers and None are no tensors': (lambda net, meta: {'meta': meta, 'lr': 0.1, 'none': None}, ['meta']),
}


@pytest.mark.parametrize('way', WAYS)
def test_every_way_to_give_names(way: str, net: nn.Module, meta: torch.Tensor) -> None:
    give, expected = WAYS[way]
    graph = trace_graph(net(torch.ones(3, 2)).sum() * meta, give(net, meta))
    assert sorted(text.split('\n')[0] for text in labels(graph, 'leaf') if '\n' in text) == expected
    assert len(labels(graph, 'leaf')) == 3


def test_a_result_named_by_its_node_is_a_blue_function() -> None:
    """So it is in 0.7.3 for the parameters of a module after a step."""
    net = nn.Linear(2, 1, bias=False)
    start = net.weight
    net._parameters['weight'] = start * 2.0
    state = torchopt.extract_state_dict(net, enable_visual=True, visual_prefix='step1.')
    graph = trace_graph(net(torch.ones(1, 2)), [{'start': start}, state])
    assert labels(graph, 'named') == ['step1.weight\n(1, 2)']
    assert labels(graph, 'leaf') == ['start\n(1, 2)']
    assert 'MulBackward0' not in labels(graph, 'function')
    (node,) = [node for node in graph.nodes if node.kind == 'named']
    assert node.colour == 'lightblue'
    assert 'MulBackward0' in node.tooltip


def test_a_result_in_a_mapping_is_named_where_it_is() -> None:
    x = torch.ones(2, requires_grad=True)
    middle = x.exp()
    end = middle.sum()
    graph = trace_graph(end, {'middle': middle, 'end': end})
    assert labels(graph, 'named') == ['middle\n(2,)']
    assert labels(graph, 'output') == ['end\n()']
    assert 'SumBackward0' in labels(graph, 'function')


def test_one_of_several_results_gets_a_box_of_its_own() -> None:
    x = torch.ones(4, 2, requires_grad=True)
    a, b = x.split(2)
    graph = trace_graph((a * b).sum(), {'b': b}, show_accumulate=False)
    assert labels(graph, 'state') == ['b\n(2, 2)']
    (split,) = [node for node in graph.nodes if node.label.startswith('SplitBackward')]
    (box,) = [node for node in graph.nodes if node.kind == 'state']
    (mul,) = [node for node in graph.nodes if node.label == 'MulBackward0']
    assert {(e.tail, e.head) for e in graph.edges} >= {(split.id, box.id), (box.id, mul.id), (split.id, mul.id)}


@needs_engine
def test_the_state_of_an_optimizer_names_moments() -> None:
    loss, _, _, optimizer, states = inner_loop(steps=2)
    graph = trace_graph([loss, optimizer.state_dict()[0][0].mu['0.bias']], [states[0], optimizer])
    assert "state[0][0].mu['0.bias']\n(4,)" in labels(graph, 'output')
    graph = trace_graph([loss, optimizer.state_dict()[0][0].mu['0.bias']], {'adam': optimizer.state_dict()[0][0]})
    assert "adam.mu['0.bias']\n(4,)" in labels(graph, 'output')


@needs_engine
def test_names_follow_from_the_roles_in_a_fused_step() -> None:
    """Moments are nowhere named by users; parameters after a step share one node, by which a ModuleState names them."""
    loss, meta, _, _, states = inner_loop(steps=2)
    graph = trace_graph(loss, [*states, {'meta': meta}])
    names = ['0.weight', '0.bias', '2.weight', '2.bias']
    leaves = {text.split('\n')[0] for text in labels(graph, 'leaf')}
    moments = {f'step0.{moment}[{name!r}]' for moment in ('mu', 'nu') for name in names}
    assert leaves == {'meta', *(f'step0.{name}' for name in names), *moments}
    results = [text.split('\n')[0] for text in labels(graph, 'state')]
    assert sorted(results) == sorted(f'step{i}.{name}' for i in (1, 2) for name in names)


@needs_engine
def test_every_state_leaf_is_named_in_a_tooltip() -> None:
    loss, *_ = inner_loop(steps=3)
    graph = trace_graph(loss)
    tips = '\n'.join(e.tooltip for e in graph.edges)
    for step in (1, 2):
        for k in range(4):
            assert all(f'step{step}.{role}[{k}]' in tips for role in ('params', 'mu', 'nu'))
