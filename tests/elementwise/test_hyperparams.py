# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters that are trees: every leaf is updated as by an optimizer of its own, and every tensor is learned."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt import transform, tree

F64 = torch.float64
STEPS = 3


def draw(seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=F64)

    return {'w': leaf(2, 3), 'b': leaf(3), 'deep': [leaf(2), leaf()]}


PARAMS, GRADS = draw(0), [draw(seed + 1) for seed in range(STEPS)]
LABELS = {'w': 'w', 'b': 'b', 'deep': 'deep'}
PATHS = tuple(LABELS)


class Case(NamedTuple):
    """An optimizer, three values for each of its hyper-parameters, and what else it is told."""

    make: Callable[..., Any]
    values: dict[str, tuple[float, float, float]]
    options: dict[str, Any] = {}  # noqa: RUF012  # nobody writes to it

    def of_one(self, i: int, values: dict[str, tuple[Any, ...]] | None = None) -> Any:
        return self.make(**{name: own[i] for name, own in (values or self.values).items()}, **self.options)

    def of_all(self, values: dict[str, tuple[Any, ...]] | None = None) -> Any:
        trees = {name: dict(zip(PATHS, own)) for name, own in (values or self.values).items()}
        return self.make(**trees, **self.options)


RATES, LOW, HIGH, SMALL = (0.1, 0.2, 0.05), (0.5, 0.8, 0.3), (0.9, 0.7, 0.95), (1e-3, 1e-1, 1e-2)
MASK = {'w': True, 'b': False, 'deep': True}
CASES = {
    'sgd': Case(torchopt.sgd, {'lr': RATES}),
    'momentum': Case(torchopt.sgd, {'lr': RATES, 'momentum': LOW, 'dampening': SMALL, 'weight_decay': SMALL}),
    'nesterov': Case(torchopt.sgd, {'momentum': LOW}, {'lr': 0.1, 'nesterov': True, 'maximize': True}),
    'adam': Case(
        torchopt.adam, {'lr': RATES, 'b1': LOW, 'b2': HIGH, 'eps': SMALL, 'eps_root': SMALL, 'weight_decay': SMALL}
    ),
    'adam: b1 alone': Case(torchopt.adam, {'b1': LOW}, {'lr': 0.1, 'nesterov': True}),
    'adam: without the engine': Case(torchopt.adam, {'b1': LOW}, {'lr': 0.1, 'use_accelerated_op': False}),
    'adamw': Case(torchopt.adamw, {'lr': RATES, 'b1': LOW, 'weight_decay': SMALL}),
    'adamax': Case(torchopt.adamax, {'lr': RATES, 'b1': LOW, 'b2': HIGH, 'eps': SMALL}),
    'radam': Case(torchopt.radam, {'lr': RATES, 'b1': LOW, 'b2': LOW, 'eps': SMALL}),
    'nadamw': Case(torchopt.nadamw, {'learning_rate': RATES, 'b1': LOW, 'b2': HIGH, 'weight_decay': SMALL}),
    'amsgrad': Case(torchopt.amsgrad, {'learning_rate': RATES, 'b1': LOW, 'b2': HIGH, 'eps': SMALL, 'eps_root': SMALL}),
    'yogi': Case(torchopt.yogi, {'learning_rate': RATES, 'b1': LOW, 'b2': HIGH, 'eps': SMALL}),
    'adabelief': Case(torchopt.adabelief, {'learning_rate': RATES, 'b1': LOW, 'b2': HIGH, 'eps': SMALL}),
    'adabelief: nesterov': Case(
        torchopt.adabelief, {'b1': LOW, 'eps_root': SMALL}, {'learning_rate': 0.1, 'nesterov': True}
    ),
    'lion': Case(torchopt.lion, {'learning_rate': RATES, 'b1': LOW, 'b2': HIGH, 'weight_decay': SMALL}),
    'smooth lion': Case(transform.scale_by_lion, {'b1': LOW, 'b2': HIGH}, {'mode': 'smooth'}),
    'rmsprop': Case(torchopt.rmsprop, {'lr': RATES, 'alpha': LOW, 'eps': SMALL, 'momentum': LOW}),
    'rmsprop: centered': Case(torchopt.rmsprop, {'alpha': HIGH, 'eps': SMALL}, {'centered': True, 'eps_in_sqrt': True}),
    'rmsprop: corrected': Case(torchopt.rmsprop, {'lr': RATES, 'alpha': LOW}, {'bias_correction': True}),
    'adagrad': Case(torchopt.adagrad, {'lr': RATES, 'eps': SMALL, 'weight_decay': SMALL}),
    'adadelta': Case(torchopt.adadelta, {'lr': RATES, 'rho': LOW, 'eps': SMALL}),
    'scale': Case(transform.scale, {'step_size': (1.0, -2.0, 0.5)}),
    'decay': Case(transform.add_decayed_weights, {'weight_decay': SMALL}),
}
each_case = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def run(tx: Any, params: Any = PARAMS, grads: Any = GRADS, *, inplace: bool = False) -> Any:
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params, inplace=inplace)
        params = torchopt.apply_updates(params, updates, inplace=inplace)
    return params


def leaf_by_leaf(case: Case, values: Any = None) -> Any:
    return run(transform.partition({label: case.of_one(i, values) for i, label in enumerate(PATHS)}, LABELS))


def assert_alike(found: Any, wanted: Any, tolerance: float = 1e-13) -> None:
    assert tree.structure(found) == tree.structure(wanted)
    for x, y in zip(tree.leaves(found), tree.leaves(wanted)):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@each_case
def test_numbers(case: Case) -> None:
    assert_alike(run(case.of_all()), leaf_by_leaf(case))


@each_case
def test_numbers_in_place(case: Case) -> None:
    params, grads = copy.deepcopy((PARAMS, GRADS))
    assert_alike(run(case.of_all(), params, grads, inplace=True), leaf_by_leaf(case))


def learned(case: Case) -> dict[str, tuple[Tensor, ...]]:
    return {
        name: tuple(torch.tensor(x, dtype=F64, requires_grad=True) for x in own) for name, own in case.values.items()
    }


@each_case
def test_tensors_and_their_gradients(case: Case) -> None:
    def gradients(runner: Callable[..., Any]) -> Any:
        values = learned(case)
        inputs = [x for own in values.values() for x in own]
        new = runner(case, values)
        loss = sum((x**2).sum() for x in tree.leaves(new))
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        second = torch.autograd.grad(sum((x**2).sum() for x in first), inputs, allow_unused=True)
        return new, first, [torch.zeros((), dtype=F64) if x is None else x for x in second]

    found, wanted = gradients(lambda case, values: run(case.of_all(values))), gradients(leaf_by_leaf)
    for x, y in zip(found, wanted):
        assert_alike(x, y, 1e-10)


@pytest.mark.parametrize('name', ['momentum', 'adam', 'adamw', 'rmsprop: centered', 'adabelief: nesterov'])
def test_finite_differences(name: str) -> None:
    case = CASES[name]
    inputs = [x for own in learned(case).values() for x in own]

    def final(*xs: Tensor) -> tuple[Tensor, ...]:
        values = {name: xs[3 * i : 3 * i + 3] for i, name in enumerate(case.values)}
        return tuple(tree.leaves(run(case.of_all(values))))

    assert torch.autograd.gradcheck(final, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(final, inputs)


def test_numbers_and_tensors_side_by_side() -> None:
    rate = torch.tensor(0.2, dtype=torch.float32, requires_grad=True)
    new = run(torchopt.adam({'w': 0.1, 'b': rate, 'deep': [torch.tensor(0.3), 0.4]}))
    wanted = run(torchopt.adam({'w': 0.1, 'b': float(rate.detach()), 'deep': [float(torch.tensor(0.3)), 0.4]}))
    assert_alike(tree.map(Tensor.detach, new), wanted)
    (gradient,) = torch.autograd.grad(new['b'].sum(), rate)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite()


def test_dicts_of_all_kinds_fit_one_another() -> None:
    rates = {'w': 0.1, 'b': 0.2, 'deep': 0.3}
    turned = OrderedDict((name, PARAMS[name]) for name in ('deep', 'w', 'b'))
    assert_alike(dict(run(torchopt.sgd(rates), turned)), run(torchopt.sgd(OrderedDict(rates))))


def test_what_has_no_gradient_stays() -> None:
    tx = torchopt.sgd({'w': 0.1, 'b': 0.2, 'deep': 0.3}, momentum={'w': 0.5, 'b': 0.6, 'deep': 0.7})
    grads = [{**g, 'w': None, 'deep': [g['deep'][0], None]} for g in GRADS]
    new, whole = run(tx, grads=grads), run(tx)
    assert new['w'] is PARAMS['w']
    assert new['deep'][1] is PARAMS['deep'][1]
    assert_alike([new['b'], new['deep'][0]], [whole['b'], whole['deep'][0]])


def test_masked_leaves_need_no_value_that_fits() -> None:
    inner = torchopt.sgd({'w': 0.5, 'b': torch.tensor([9.0, 9.0]), 'deep': 0.25})
    tx = transform.masked(inner, MASK)
    updates, _ = tx.update(GRADS[0], tx.init(PARAMS))
    assert_alike(
        updates, {'w': -0.5 * GRADS[0]['w'], 'b': GRADS[0]['b'], 'deep': [-0.25 * g for g in GRADS[0]['deep']]}
    )


@pytest.mark.parametrize('decay', [0.1, {'w': 0.1, 'b': 0.2, 'deep': 0.3}], ids=['number', 'tree'])
@pytest.mark.parametrize('is_learned', [False, True])
def test_decay_behind_a_mask(decay: Any, is_learned: bool) -> None:
    rates = {'w': 0.1, 'b': 0.2, 'deep': 0.3}
    if is_learned:
        rates, decay = tree.map(lambda x: torch.tensor(x, dtype=F64, requires_grad=True), (rates, decay))
    new = run(torchopt.adamw(rates, weight_decay=decay, mask=MASK))
    value = (lambda name: decay[name]) if isinstance(decay, dict) else lambda name: decay
    wanted = {
        name: run(
            torchopt.adamw(rates[name], weight_decay=value(name) if MASK[name] else 0.0),
            PARAMS[name],
            [g[name] for g in GRADS],
        )
        for name in PATHS
    }
    assert_alike(new, wanted)


# --- a rate of each element -------------------------------------------------------------------------------------------


def test_rates_of_each_element() -> None:
    """Meta-SGD: the update is the elementwise product of rates and gradient."""
    rates = {'w': torch.rand(2, 3, dtype=F64).requires_grad_(), 'b': torch.rand(3, dtype=F64), 'deep': 0.5}
    tx = torchopt.sgd(rates)
    updates, _ = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    g = GRADS[0]
    wanted = {'w': -rates['w'] * g['w'], 'b': -rates['b'] * g['b'], 'deep': [-0.5 * x for x in g['deep']]}
    assert_alike(updates, wanted)
    assert_alike(torch.autograd.grad(updates['w'].sum(), rates['w'])[0], -g['w'])
    with torch.no_grad():
        assert_alike(run(tx, *copy.deepcopy((PARAMS, GRADS)), inplace=True), run(tx))


def test_rates_of_each_element_after_a_rule() -> None:
    rates = {'w': torch.full((2, 3), 0.1), 'b': torch.full((3,), 0.1), 'deep': 0.1}
    assert_alike(run(torchopt.adam(rates)), run(torchopt.adam(float(torch.tensor(0.1)), eps=1e-8)), 1e-7)


# --- transforms, compilation, copies ----------------------------------------------------------------------------------


def moved(x: Tensor) -> Any:
    return run(torchopt.adam({'w': x, 'b': 0.1, 'deep': x}, b1={'w': 0.5, 'b': x, 'deep': 0.7}, eps=1e-2))


def test_function_transforms() -> None:
    x = torch.tensor([0.2, 0.3], dtype=F64)
    batch = torch.func.vmap(moved)(x)
    for i in range(2):
        assert_alike(tree.map(lambda y, i=i: y[i], batch), moved(x[i]))
    forward, reverse = torch.func.jacfwd(moved)(x[0]), torch.func.jacrev(moved)(x[0])
    assert_alike(forward, reverse, 1e-10)
    h = 1e-6
    slope = tree.map(lambda up, down: (up - down) / (2 * h), moved(x[0] + h), moved(x[0] - h))
    assert_alike(forward, slope, 1e-7)


def test_compilation() -> None:
    x = torch.tensor(0.2, dtype=F64)
    compiled = torch.compile(moved, backend='eager', fullgraph=True)
    assert_alike(compiled(x), moved(x))


def test_copies_and_pickles() -> None:
    tx = torchopt.adam({'w': 0.1, 'b': torch.tensor(0.2), 'deep': 0.3}, b1={'w': 0.5, 'b': 0.6, 'deep': 0.7})
    assert_alike(run(pickle.loads(pickle.dumps(tx))), run(tx))
    assert "'b': tensor(0.2000)" in repr(tx)
    state = tx.init(PARAMS)
    assert_alike(tree.map_params(tx, lambda x: x + 1.0, state)[0].mu, tree.map(torch.ones_like, PARAMS))


# --- errors -----------------------------------------------------------------------------------------------------------

MISFITS = {
    'an entry is missing': ({'w': 0.1, 'b': 0.1}, ["params['deep']", 'no value is given']),
    'an entry too many': ({'w': 0.1, 'b': 0.1, 'deep': 0.1, 'c': 0.1}, ["params['c']", 'there is nothing']),
    'a list too short': ({'w': 0.1, 'b': 0.1, 'deep': [0.1]}, ["params['deep'][1]", 'no value is given']),
    'a list for a tensor': ({'w': [0.1, 0.2], 'b': 0.1, 'deep': 0.1}, ["params['w']", 'has a list and params has']),
    'another kind': ([0.1, 0.1, 0.1], ['at params,', 'has a list and params has a dict']),
}


@pytest.mark.parametrize('name', MISFITS)
def test_trees_that_do_not_fit(name: str) -> None:
    """They are refused by init, and by every step, before anything is changed."""
    value, words = MISFITS[name]
    for make, argument in ((torchopt.sgd, 'learning_rate'), (lambda x: torchopt.adam(b1=x), 'b1')):
        tx, scalar = make(value), make(0.1)
        chained = torchopt.chain(transform.trace(0.9), torchopt.clip_grad_norm(1.0), tx)
        moments = torchopt.chain(transform.trace(0.9), torchopt.clip_grad_norm(1.0), scalar).init(PARAMS)
        before = copy.deepcopy((PARAMS, moments))
        for act in (
            lambda tx=tx: tx.init(PARAMS),
            lambda chained=chained, moments=moments: chained.update(GRADS[0], moments, PARAMS, inplace=True),
        ):
            with pytest.raises(ValueError, match=f'{argument} does not fit params') as caught:
                act()
            for word in (*words, f'Pass {argument} as one number'):
                assert word in str(caught.value)
        assert_alike((PARAMS, moments), before, 0.0)
        with pytest.raises(ValueError, match=f'{argument} does not fit updates'):
            chained.update(GRADS[0], moments)


def test_shapes_that_do_not_fit() -> None:
    tx = torchopt.sgd({'w': torch.ones(3, 2), 'b': 0.1, 'deep': 0.1})
    with pytest.raises(ValueError, match=r"params\['w'\] has shape \(2, 3\), but its learning_rate has shape \(3, 2\)"):
        tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"updates\['w'\]"):
        tx.update(GRADS[0], torchopt.sgd(0.1).init(PARAMS))
