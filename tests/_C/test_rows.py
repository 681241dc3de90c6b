# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters that are trees run natively: rows of coefficients, one kernel call and one node for all leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from tests._C.cases import plain_torch, watched
from torchopt import rules, transform, tree
from torchopt._C import dispatch
from torchopt._C.call import Order
from torchopt._C.plans import AFFINE

F64 = torch.float64


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=F64) for shape in [(2, 3), (), (0,), (4,)]]


def learned(*values: float) -> list[Tensor]:
    return [torch.tensor(x, dtype=F64, requires_grad=True) for x in values]


def nodes(x: Tensor) -> set[Any]:
    """The nodes of the engine in the graph of a tensor."""
    found, todo = set(), [x.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return {node for node in found if 'Step' in node.name()}


MAKERS = {
    'sgd': lambda a, b: torchopt.sgd(a, momentum=b, weight_decay=b),
    'adam': lambda a, b: torchopt.adam(a, b1=b, eps=a),
    'adamw': lambda a, b: torchopt.adamw(a, b1=b, weight_decay=b),
    'adamw masked': lambda a, b: torchopt.adamw(
        a, b1=b, weight_decay=b, mask=lambda p: tree.map(lambda x: x.dim() != 1, p)
    ),
    'rmsprop': lambda a, b: torchopt.rmsprop(a, alpha=b, momentum=b, centered=True),
    'radam': lambda a, b: torchopt.radam(a, betas=(b, b)),
}
each_maker = pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)


@each_maker
def test_a_step_is_one_call_and_one_node(make: Any) -> None:
    rates, decays = learned(0.1, 0.2, 0.3, 0.4), learned(0.5, 0.6, 0.7, 0.8)
    tx, p, g = make(rates, decays), draw(0), draw(1)
    state = tx.init(p)
    with watched() as watch:
        updates, _ = tx.update(g, state, p)
        assert watch.orders == [Order.FORWARD]
        assert {id(node) for u in updates for node in nodes(u)} == {id(updates[0].grad_fn)}
        gradients = torch.autograd.grad(sum(u.sum() for u in updates), [*rates, *decays], allow_unused=True)
        assert watch.orders == [Order.FORWARD, Order.VJP_WITH_COEFS]
    assert all(x.dtype == F64 for x in gradients if x is not None)
    watch.ran()


@each_maker
def test_numbers_stay_numbers(make: Any) -> None:
    """Without anything to learn there is no graph, and one call in place."""
    tx, p, g = make([0.1, torch.tensor(0.2), 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]), draw(0), draw(1)
    with watched() as watch:
        updates, _ = tx.update(g, tx.init(p), p, inplace=True)
    watch.ran()
    assert watch.orders == [Order.FORWARD]
    assert not any(u.requires_grad for u in updates)


@each_maker
@pytest.mark.parametrize('prefix', [False, True])
def test_equals_plain_torch(make: Any, prefix: bool) -> None:
    def outcome() -> Any:
        p, g = [draw(0), draw(1)], [draw(2), [None, *draw(3)[1:]]]
        values = learned(0.1, 0.2), learned(0.5, 0.6)
        inputs = [*values[0], *values[1]]
        if not prefix:
            values = tuple([[v] * 4, [w, w, v, w]] for v, w in values)
        tx = make(*values)
        state = tx.init(p)
        for _ in range(2):
            updates, state = tx.update(g, state, p)
            p = torchopt.apply_updates(p, updates, inplace=False)
        loss = sum((x**2).sum() for x in tree.leaves(p))
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum((x**2).sum() for x in first), inputs)
        return [*tree.leaves(p), *tree.leaves(state), *first, *second]

    with watched() as watch:
        found = outcome()
    watch.ran(Order.FORWARD, Order.VJP_WITH_COEFS)
    with plain_torch():
        wanted = outcome()
    assert len(found) == len(wanted)
    for x, y in zip(found, wanted):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_leaves_below_the_same_values_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, step = [], dispatch.step

    def spy(*args: Any, rows: Any = None, **options: Any) -> Any:
        seen.append(rows)
        return step(*args, rows=rows, **options)

    monkeypatch.setattr(dispatch, 'step', spy)
    p = {'a': draw(0), 'b': draw(1)}
    tx = torchopt.adam({'a': 0.1, 'b': 0.2}, b1={'a': 0.5, 'b': [0.5, 0.6, 0.6, 0.5]})
    tx.update(p, tx.init(p))
    assert (seen[0].number, seen[0].of_leaf) == (5, [0, 0, 0, 0, 1, 2, 3, 4])
    tx = torchopt.adam({'a': 0.1, 'b': 0.2})
    tx.update(p, tx.init(p))
    assert (seen[1].number, seen[1].of_leaf) == (2, [0, 0, 0, 0, 1, 1, 1, 1])
    torchopt.adam(0.1).update(p, torchopt.adam(0.1).init(p))
    assert seen[2] is None


def test_rates_of_each_element_run_in_plain_torch() -> None:
    p, g = draw(0), draw(1)
    tx = torchopt.adam([torch.full_like(x, 0.1) for x in p])
    with watched() as watch:
        tx.update(g, tx.init(p))
    assert not watch.orders
    forced = torchopt.adam([torch.full_like(x, 0.1) for x in p], use_accelerated_op=True)
    with pytest.raises(RuntimeError, match='a hyper-parameter has the shape of its parameter'):
        forced.update(g, forced.init(p))


# --- decay that takes parameters for constants ------------------------------------------------------------------------

RATE = torch.tensor(0.3, dtype=F64, requires_grad=True)
HALF = torch.tensor(0.5, dtype=F64, requires_grad=True)
DECAY = transform.add_decayed_weights
TWO_DECAYS = {
    'nothing between': [DECAY(0.1), DECAY(0.2), transform.scale(-0.5)],
    'a number between': [DECAY(0.1), transform.scale(0.5), DECAY(0.2)],
    'a learned rate between': [DECAY(0.1), transform.scale(RATE), DECAY(0.2)],
    'a learned rate before': [transform.scale(RATE), DECAY(0.1), DECAY(0.2)],
    'around a rule': [DECAY(0.1), transform.scale_by_adam(), DECAY(0.2)],
    'around a learned rule': [DECAY(0.1), transform.scale_by_adam(b1=HALF), DECAY(0.2)],
    'a learned decay first': [DECAY(RATE), transform.scale_by_adam(), DECAY(0.2)],
    'masks apart': [DECAY(0.1, [True, False]), transform.scale(RATE), DECAY(0.2, [False, True])],
    'masks that meet': [DECAY(0.1, [True, False]), transform.scale(RATE), DECAY(0.2, [True, True])],
    'around a rule learned here and there': [DECAY(0.1), transform.scale_by_adam(b1=[HALF, 0.5]), DECAY(0.2)],
    'after a rule learned here and there': [transform.scale_by_adam(b1=[HALF, 0.5]), DECAY(0.2)],
    'after a rate learned here and there': [transform.scale([RATE, 0.5]), DECAY(0.1), DECAY(0.2)],
}


@pytest.mark.parametrize('gradient_has_graph', [False, True])
@pytest.mark.parametrize('moments_have_graph', [False, True])
@pytest.mark.parametrize('name', TWO_DECAYS)
def test_several_decays(name: str, moments_have_graph: bool, gradient_has_graph: bool) -> None:
    """Each decay asks on its own whether this is plain training, as it does in plain torch."""

    def gradients() -> list[Tensor]:
        p = [torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True), torch.tensor(3.0, dtype=F64, requires_grad=True)]
        tx = torchopt.chain(*TWO_DECAYS[name])
        state = tx.init(p)
        if moments_have_graph:
            state = tree.map(lambda x: x.requires_grad_() if x.is_floating_point() else x, state)
        g = [torch.tensor([0.5, 1.5], dtype=F64), torch.tensor(0.7, dtype=F64)]
        g = [x.requires_grad_() for x in g] if gradient_has_graph else g
        updates, _ = tx.update(g, state, p)
        if not any(u.requires_grad for u in updates):
            return [*updates]
        loss = sum((u**2).sum() for u in updates if u.requires_grad)
        found = torch.autograd.grad(loss, [*p, RATE, HALF], allow_unused=True)
        return [*updates, *(torch.zeros(()) if x is None else x for x in found)]

    found = gradients()
    with plain_torch():
        wanted = gradients()
    assert len(found) == len(wanted)
    for x, y in zip(found, wanted):
        torch.testing.assert_close(x.double().sum(), y.double().sum(), rtol=1e-12, atol=1e-12)


def test_two_decays_that_agree_run_natively() -> None:
    p = [torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)]
    g = [torch.tensor([0.5, 1.5], dtype=F64, requires_grad=True)]
    for members in ('nothing between', 'around a rule', 'a learned rate before'):
        tx = torchopt.chain(*TWO_DECAYS[members])
        with watched() as watch:
            tx.update(g, tx.init(p), p)
        watch.ran(Order.FORWARD)


def test_affine_rules_do_nothing_by_the_coefficients_that_say_so() -> None:
    g, p = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert torch.equal(rules.scale(g, factor=AFFINE[rules.scale])[0], g)
    assert torch.equal(rules.add_params(g, p, weight=AFFINE[rules.add_params])[0], g)
