# SPDX-License-Identifier: Apache-2.0
"""Fused steps: one node each, named after its rule, in a frame with what belongs to its inner step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import torchopt
from tests.visual.graphs import inner_loop, labels, make_net, needs_engine, tasks
from torchopt.visual import trace_graph

pytestmark = needs_engine


def frames(graph: Any) -> list[list[str]]:
    """The labels of the nodes in each frame."""
    return [[n.label for n in graph.nodes if n.cluster == c] for c in range(len(graph.clusters))]


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_one_node_for_each_step(steps: int) -> None:
    loss, *_ = inner_loop(steps)
    graph = trace_graph(loss)
    assert labels(graph, 'step') == ['Adam step\n4 leaves'] * steps
    assert {node.colour for node in graph.nodes if node.kind == 'step'} == {'darkorange'}


@pytest.mark.parametrize(
    ('face', 'options', 'title'),
    [
        (torchopt.MetaSGD, {'weight_decay': 0.1}, 'SGD step'),
        (torchopt.MetaSGD, {'momentum': 0.9}, 'SGD step'),
        (torchopt.MetaAdam, {}, 'Adam step'),
        (torchopt.MetaAdam, {'weight_decay': 0.1}, 'Adam step'),
        (torchopt.MetaAdamW, {'weight_decay': 0.1}, 'AdamW step'),
        (torchopt.MetaAdaMax, {}, 'AdaMax step'),
        (torchopt.MetaRMSProp, {}, 'RMSProp step'),
        (torchopt.MetaRMSProp, {'centered': True}, 'centered RMSProp step'),
        (torchopt.MetaAdaGrad, {}, 'AdaGrad step'),
        (torchopt.MetaAdaDelta, {}, 'AdaDelta step'),
    ],
)
def test_the_rule_is_named(face: Any, options: dict, title: str) -> None:
    loss, *_ = inner_loop(2, face, **options)
    assert labels(trace_graph(loss), 'step') == [f'{title}\n4 leaves'] * 2


def test_gradient_descent_runs_in_operations_of_torch() -> None:
    loss, *_ = inner_loop(2, torchopt.MetaSGD)
    graph = trace_graph(loss)
    assert not labels(graph, 'step')
    assert not graph.clusters


@pytest.mark.parametrize(
    ('alias', 'title'),
    [
        (torchopt.lion(0.1), 'Lion'),
        (torchopt.yogi(0.1), 'Yogi'),
        (torchopt.amsgrad(0.1), 'AMSGrad'),
        (torchopt.adabelief(0.1), 'AdaBelief'),
        (torchopt.nadam(0.1), 'NAdam'),
    ],
)
def test_an_update_that_is_not_added_yet(alias: Any, title: str) -> None:
    params = {'w': torch.ones(3, requires_grad=True)}
    (grad,) = torch.autograd.grad(params['w'].pow(3).sum(), params['w'], create_graph=True)
    updates, _ = alias.update({'w': grad}, alias.init(params), params)
    graph = trace_graph(updates, params)
    assert labels(graph, 'step') == [f'{title} update\n1 leaf']


def test_the_moments_of_every_rule_have_the_names_of_its_state() -> None:
    """The table in fused_step against the states themselves."""
    from torchopt import rules
    from torchopt.visual import fused_step

    assert {*fused_step._RULES} == {rule.__name__ for rule in rules.RULES}
    for rule in rules.RULES:
        assert len(fused_step._RULES[rule.__name__][1]) == rules.count_moments(rule), rule
    states = {
        'trace': torchopt.transform.trace(0.9),
        'adam': torchopt.transform.scale_by_adam(),
        'amsgrad': torchopt.amsgrad(0.1),
        'yogi': torchopt.yogi(0.1),
        'belief': torchopt.adabelief(0.1),
        'adamax': torchopt.transform.scale_by_adamax(),
        'rms': torchopt.transform.scale_by_rms(),
        'stddev': torchopt.transform.scale_by_stddev(),
        'rss': torchopt.transform.scale_by_rss(),
        'adadelta': torchopt.transform.scale_by_adadelta(),
        'lion': torchopt.lion(0.1),
    }
    for rule, tx in states.items():
        for field in fused_step._RULES[rule][1]:
            assert torchopt.tree.get_all_with_path(tx.init(torch.ones(1)), field), (rule, field)


def test_a_frame_for_each_inner_step() -> None:
    loss, meta, *_, states = inner_loop(2)
    graph = trace_graph(loss, [*states, {'meta': meta}])
    assert [(c.index, c.loop) for c in graph.clusters] == [(1, 1), (2, 1)]
    first, second = frames(graph)
    assert len(first) == len(second)
    assert first.count('Adam step\n4 leaves') == second.count('Adam step\n4 leaves') == 1
    assert 'MseLossBackwardBackward0' in first
    assert 'step1.0.weight\n(4, 3)' in first
    assert 'step2.0.weight\n(4, 3)' in second
    outside = [node.label for node in graph.nodes if node.cluster is None]
    assert 'MseLossBackward0' in outside
    assert 'meta\n()' in outside
    assert 'step0.0.weight\n(4, 3)' in outside
    assert not [node for node in graph.nodes if node.kind == 'leaf' and node.cluster is not None]
    assert trace_graph(loss, show_steps=False).clusters == []


def test_the_totals_of_a_frame() -> None:
    loss, *_ = inner_loop(2)
    graph = trace_graph(loss)
    for c, cluster in enumerate(graph.clusters):
        members = [node for node in graph.nodes if node.cluster == c]
        assert cluster.functions == len(members)
        assert 0 < cluster.saved_bytes <= sum(node.saved_bytes for node in members)
        assert cluster.label == (
            f'inner step {cluster.index} · {cluster.functions} functions · {cluster.saved_bytes} B saved'
        )
    assert sum(c.saved_bytes for c in graph.clusters) >= 4 * 21 * 4  # two moments, twice
    assert graph.saved_bytes is not None
    assert graph.saved_bytes >= max(c.saved_bytes for c in graph.clusters)
    plain = trace_graph(loss, measure=False)
    assert plain.saved_bytes is None
    assert 'saved' not in plain.totals + plain.clusters[0].label


def test_a_storage_is_counted_once() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = x.exp()
    graph = trace_graph((y * y.view(10, 100).view(-1)).sum())
    assert graph.saved_bytes == 4000
    assert sum(node.saved_bytes for node in graph.nodes) == 12000


def test_the_facts_of_a_step() -> None:
    loss, *_ = inner_loop(2)
    steps = [node for node in trace_graph(loss).nodes if node.kind == 'step']
    facts = {node.tooltip.split('\n')[0]: node for node in steps}
    assert {*facts} == {'Adam step 1', 'Adam step 2'}
    lines = facts['Adam step 1'].tooltip.split('\n')
    assert 'rule: adam' in lines
    assert 'leaves: 4' in lines
    assert 'moments: mu, nu' in lines
    assert 'factor of the update: -0.1' in lines
    # Gradients and both moments; the parameters need not be kept.
    assert facts['Adam step 1'].saved_bytes == 3 * 21 * 4


def test_one_arrow_between_two_steps() -> None:
    loss, *_ = inner_loop(2)
    graph = trace_graph(loss)
    ids = {node.id for node in graph.nodes if node.kind == 'step'}
    (edge,) = [e for e in graph.edges if e.tail in ids and e.head in ids]
    assert edge.label == 'mu, nu, params'
    assert edge.tooltip.count('\n') == 11


def test_a_learned_rate_serves_all_steps_and_is_in_no_frame() -> None:
    net, rate = make_net(), torch.tensor(-2.0, requires_grad=True)
    optimizer = torchopt.MetaAdam(net, lr=rate.exp())
    for _ in range(2):
        optimizer.step(F.mse_loss(net(torch.ones(5, 3)), torch.zeros(5, 1)))
    graph = trace_graph(net(torch.ones(5, 3)).sum(), {'rate': rate})
    (exp,) = [node for node in graph.nodes if node.label == 'ExpBackward0']
    assert exp.cluster is None
    assert len(graph.clusters) == 2
    assert all('coefficients: learned' in node.tooltip for node in graph.nodes if node.kind == 'step')


@pytest.mark.parametrize('count', [2, 3])
def test_the_loops_of_several_tasks_are_apart(count: int) -> None:
    graph = trace_graph(*tasks(count))
    assert [(c.loop, c.index) for c in graph.clusters] == [(t, i) for t in range(1, count + 1) for i in (1, 2)]
    shared = [node for node in graph.nodes if node.label in ('ExpBackward0', 'PowBackward0') and node.cluster is None]
    assert {node.label for node in shared} == {'ExpBackward0', 'PowBackward0'}
    assert graph.clusters[-1].label.startswith(f'inner step 2 of loop {count} ')


def test_two_groups_of_parameters_are_one_inner_step() -> None:
    net = make_net()
    optimizer = torchopt.MetaAdam(net[0], lr=0.1)
    optimizer.add_param_group(net[2])
    for _ in range(2):
        optimizer.step(F.mse_loss(net(torch.ones(5, 3)), torch.zeros(5, 1)))
    graph = trace_graph(net(torch.ones(5, 3)).sum())
    assert [(c.index, c.loop) for c in graph.clusters] == [(1, 1), (2, 1)]
    assert all(content.count('Adam step\n2 leaves') == 2 for content in frames(graph))


def test_derivatives_of_steps_are_coloured_too() -> None:
    _, meta, net, _, _ = inner_loop(2)
    (gradient,) = torch.autograd.grad(net[0].weight.sum(), meta, create_graph=True)
    graph = trace_graph(gradient)
    found = {text.split('\n')[0] for text in labels(graph, 'step')}
    assert found == {'Adam step', 'Adam step, derivative'}
    assert all(len(content) > 1 for content in frames(graph))


def test_plain_torch_has_no_step() -> None:
    loss, *_ = inner_loop(2, use_accelerated_op=False)
    graph = trace_graph(loss)
    fused = trace_graph(inner_loop(2)[0])
    assert not labels(graph, 'step')
    assert not graph.clusters
    assert len(graph.nodes) > 2 * len(fused.nodes)


@pytest.mark.parametrize('measure', [True, False])
def test_checkpoints_and_hooks_on_saved_tensors(measure: bool) -> None:
    """Reading what was saved computes it again; the graph is as good as before."""
    calls = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        calls.append(None)
        return x.exp().sin()

    x = torch.ones(2, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False).sum()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(), torch.from_numpy):
        y = y + (x * x.detach()).sum()
    graph = trace_graph(y, measure=measure)
    assert (len(calls) > 1) == measure
    assert (graph.saved_bytes is not None) == measure
    (gradient,) = torch.autograd.grad(y, x)
    assert torch.allclose(gradient, x.exp() * x.exp().cos() + x.detach())


def functional_loop(steps: int, add: bool) -> Any:
    """Explicit gradients and states; with ``add`` the updates are added by the user."""
    params = {'w': torch.ones(3, requires_grad=True), 'b': torch.zeros((), requires_grad=True)}
    first, meta = params, torch.ones((), requires_grad=True)
    tx = torchopt.adam(0.1)
    optimizer = torchopt.FuncOptimizer(tx)
    state = tx.init(params)
    for _ in range(steps):
        loss = meta * ((params['w'] + params['b']) ** 3).sum()
        if add:
            grads = dict(zip(params, torch.autograd.grad(loss, list(params.values()), create_graph=True)))
            updates, state = tx.update(grads, state, params)
            params = {name: params[name] + updates[name] for name in params}
        else:
            params = optimizer.step(loss, params)
    return trace_graph(sum(p.sum() for p in params.values()), first, show_accumulate=False)


@pytest.mark.parametrize('add', [False, True])
def test_functional_loops(add: bool) -> None:
    graph = functional_loop(3, add)
    assert labels(graph, 'step') == [f'Adam {"update" if add else "step"}\n2 leaves'] * 3
    assert [(c.index, c.loop) for c in graph.clusters] == [(1, 1), (2, 1), (3, 1)]


def test_decay_tells_which_parameters_moments_belong_to() -> None:
    """An update that reads the parameters knows them, also where the user adds it to them."""
    p = {'w': torch.ones(3, requires_grad=True), 'b': torch.zeros((), requires_grad=True)}
    first, tx = p, torchopt.adam(0.1, weight_decay=0.1, moment_requires_grad=True)
    state = tx.init(p)
    for _ in range(2):
        loss = ((p['w'] + p['b']) ** 3).sum()
        grads = dict(zip(p, torch.autograd.grad(loss, list(p.values()), create_graph=True)))
        updates, state = tx.update(grads, state, p)
        p = {name: p[name] + updates[name] for name in p}
    graph = trace_graph([*p.values(), torchopt.tree.get(state, 'mu')], first)
    assert "step0.nu['w']\n(3,)" in labels(graph, 'leaf')
    assert "step2.mu['w']\n(3,)" in labels(graph, 'output')
