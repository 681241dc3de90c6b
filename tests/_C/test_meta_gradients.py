# SPDX-License-Identifier: Apache-2.0
"""Through whole inner loops: meta-gradients, gradients of hyper-parameters, where g = v = 0, and what is kept."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import grad

import torchopt
from tests import cases as optimizers
from tests._C.cases import AFFINES, BY_NAME, CASES, assert_same, draw, flat, native, plain, plain_torch, watched
from torchopt import tree
from torchopt.update import update_params

F64 = torch.float64


def both(compute):
    """The same natively and in plain torch; and what ran."""
    with watched() as watch:
        found = compute()
    with plain_torch():
        wanted = compute()
    return found, wanted, watch


def trees():
    return {'a': [draw('~', (2, 3), 1), draw('~', (), 2)], 'none': None, 'b': draw('~', (4,), 3)}


def inner_loop(make, params, steps=3):
    """Steps on a loss that is no polynomial, differentiable in where it began."""
    tx = make() if callable(make) else make
    state = tx.init(params)
    for _ in range(steps):
        loss = sum((torch.sin(2 * p) + p**2).sum() for p in tree.leaves(params))
        leaves, spec = tree.flatten(params)
        grads = iter(grad(loss, [p for p in leaves if p is not None], create_graph=True))
        grads = tree.unflatten(spec, [None if p is None else next(grads) for p in leaves])
        updates, state = tx.update(grads, state, params)
        params = torchopt.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize('case', optimizers.CASES, ids=lambda c: c.name)
def test_meta_gradients_of_optimizers(case):
    """First, second and (through an outer product) third derivatives in the initial parameters."""

    def compute():
        start = tree.map(lambda p: p.clone().requires_grad_(), trees())
        variables = [p for p in tree.leaves(start) if p is not None]
        params, state = inner_loop(case.make, start)
        outer = sum((p**3).sum() for p in tree.leaves((params, state)) if p.requires_grad)
        first = grad(outer, variables, create_graph=True)
        second = grad(sum((x**2).sum() for x in first), variables)
        return [*first, *second]

    found, wanted, watch = both(compute)
    watch.ran(0, 1, 3)
    assert_same(found, wanted, 1e-9)


@pytest.mark.parametrize('case', optimizers.CASES, ids=lambda c: c.name)
def test_outer_loss_of_one_leaf(case):
    """The other leaves have no cotangents, in the first derivative and in the second."""

    def compute():
        start = tree.map(lambda p: p.clone().requires_grad_(), trees())
        variables = [p for p in tree.leaves(start) if p is not None]
        params, _ = inner_loop(case.make, start, steps=2)
        first = grad((params['b'] ** 3).sum(), variables, create_graph=True, materialize_grads=True)
        return [*first, *grad((first[-1] ** 2).sum(), variables, materialize_grads=True)]

    found, wanted, _ = both(compute)
    assert_same(found, wanted, 1e-9)


LEARNED = {
    'sgd': ({'momentum': 0.8}, lambda lr, a, b, c: {'lr': lr, 'momentum': a, 'weight_decay': b, 'dampening': c}),
    'adam': ({}, lambda lr, a, b, c: {'lr': lr, 'betas': (a, b), 'eps': c, 'eps_root': c}),
    'adamw': ({}, lambda lr, a, b, c: {'lr': lr, 'betas': (a, b), 'weight_decay': c}),
    'adamax': ({}, lambda lr, a, b, c: {'lr': lr, 'betas': (a, b), 'eps': c}),
    'radam': ({}, lambda lr, a, b, c: {'lr': lr, 'betas': (a, b), 'eps': c}),
    'adadelta': ({}, lambda lr, a, b, c: {'lr': lr, 'rho': a, 'eps': c}),
    'adagrad': ({}, lambda lr, a, b, c: {'lr': lr, 'eps': c, 'initial_accumulator_value': 0.1}),
    'rmsprop': ({}, lambda lr, a, b, c: {'lr': lr, 'alpha': a, 'eps': c, 'momentum': b, 'centered': True}),
}


@pytest.mark.parametrize('name', LEARNED)
def test_gradients_of_hyper_parameters(name):
    """The learning rate, decay rates and epsilon as tensors, together with the initial parameters."""

    def compute():
        start = tree.map(lambda p: p.clone().requires_grad_(), trees())
        values = [torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.1, 0.7, 0.8, 0.05)]
        params, _ = inner_loop(lambda: getattr(torchopt, name)(**LEARNED[name][1](*values)), start)
        targets = [*values, *(p for p in tree.leaves(start) if p is not None)]
        outer = sum((p**3).sum() for p in tree.leaves(params))
        first = grad(outer, targets, create_graph=True, materialize_grads=True)
        return [*first, *grad(sum((x**2).sum() for x in first), targets, materialize_grads=True)]

    found, wanted, watch = both(compute)
    watch.ran(0, 2)
    assert found[0] != 0
    assert_same(found, wanted, 1e-8)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_a_float32_learning_rate_gets_its_gradient_in_float32(dtype):
    lr = torch.tensor(0.1, dtype=dtype, requires_grad=True)
    start = tree.map(lambda p: p.float().requires_grad_(), trees())
    params, _ = inner_loop(lambda: torchopt.adam(lr), start)
    (own,) = grad(sum(p.sum() for p in tree.leaves(params)), lr)
    assert own.dtype == dtype
    assert own.shape == ()
    assert own.abs() > 0.1


DECAYS = {
    'after the rule': lambda trace, decay, scale: (trace, decay, scale),
    'before the rule': lambda trace, decay, scale: (scale, decay, trace),
}


@pytest.mark.parametrize('order', DECAYS.values(), ids=DECAYS)
def test_decay_where_only_the_moments_have_a_graph(order):
    """The gradient of a linear loss is constant: decay is differentiated where what it is added to has a graph."""

    def compute():
        p, m = ([draw('~', (3,), i).requires_grad_()] for i in range(2))
        transform = torchopt.transform
        tx = torchopt.chain(*order(transform.trace(0.9), transform.add_decayed_weights(0.3), transform.scale(-1.0)))
        state = list(tx.init(p))
        at = next(i for i, s in enumerate(state) if hasattr(s, 'trace'))
        state[at] = state[at]._replace(trace=m)
        updates, _ = tx.update([torch.ones(3, dtype=F64)], tuple(state), p)
        return grad(updates[0].sum(), [*m, *p], materialize_grads=True)

    found, wanted, watch = both(compute)
    watch.ran(0)
    assert_same(found, wanted, 1e-12)


# --- where the gradient and its second moment are zero --------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float32, F64], ids=str)
@pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)
def test_zero_gradient_and_zero_moments(case, dtype):
    """Values and derivatives of first and second order are finite, and those of the reference."""
    if case.name == 'rms eps in the root':
        case = case._replace(rules=((case.rules[0][0], {**case.rules[0][1], 'shift': 0.0, 'offset': 1e-3}),))
    affine = AFFINES['decay after']
    results = []
    for step in (native, plain):
        zeros = [torch.zeros(3, dtype=dtype, requires_grad=True) for _ in range(2 + len(case.moments))]
        g, *moments, p = zeros
        ys = flat(step(affine.around(case.partials()), [g], [[m] for m in moments], [p]))
        cs = [torch.full_like(y, 0.7 + i, requires_grad=True) for i, y in enumerate(ys)]
        pairs = [(y, c) for y, c in zip(ys, cs) if y.requires_grad]
        first = grad([y for y, _ in pairs], zeros, [c for _, c in pairs], create_graph=True, materialize_grads=True)
        moving = [x for x in first if x.requires_grad]
        second = grad(sum(((i + 1) * x).sum() for i, x in enumerate(moving)), [*zeros, *cs], materialize_grads=True)
        results.append([*ys, *first, *second])
    assert all(x.isfinite().all() for x in results[0])
    assert_same(*results, 1e-5 if dtype is torch.float32 else 1e-12)


def test_zero_gradient_with_the_usual_epsilon():
    """The derivative of Adam's first update in the gradient is 1 / eps, what the quotient itself says."""
    g = torch.zeros(3, dtype=F64, requires_grad=True)
    tx = torchopt.transform.scale_by_adam(eps=1e-8)
    (u,), _ = tx.update([g], tx.init([g]))
    (slope,) = grad(u.sum(), g)
    assert_same([u, slope * 1e-8], [torch.zeros_like(g), torch.ones_like(g)], 1e-9)


# --- what is kept for backward --------------------------------------------------------------------------------------


def in_two(tx, grads, state, params):
    updates, state = tx.update(grads, state, params)
    return torchopt.apply_updates(params, updates), state


def in_one(tx, grads, state, params):
    return update_params(tx, grads, state, params, inplace=False)


each_way = pytest.mark.parametrize('step', [in_one, in_two])


def kept_by(tx, step, steps, leaves=3):
    """What is saved for backward by steps whose gradients themselves save nothing; and the parameters."""
    params = [torch.randn(4, dtype=F64).requires_grad_() for _ in range(leaves)]
    saved, met, state = [], list(params), tx.init(params)

    def pack(x):
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), watched() as watch:
        for _ in range(steps):
            params, state = step(tx, [p * 2.0 for p in params], state, params)
            met += params
    watch.ran(0)
    return [x.data_ptr() for x in saved], {x.data_ptr() for x in met}, (saved, met)


@each_way
@pytest.mark.parametrize('steps', [1, 5])
def test_an_adam_step_keeps_three_tensors_per_leaf(steps, step):
    saved, _, keep_alive = kept_by(torchopt.adam(0.1), step, steps)
    assert len(saved) == len(set(saved)) == 3 * 3 * steps
    assert keep_alive


@each_way
def test_parameters_are_kept_only_where_there_is_decay(step):
    for tx, decays in (
        (torchopt.adam(0.1), False),
        (torchopt.sgd(0.1, momentum=0.9), False),
        (torchopt.adamw(0.1), False),  # decoupled, linear in the parameters
        (torchopt.adam(0.1, weight_decay=0.1), True),
    ):
        saved, met, keep_alive = kept_by(tx, step, 3)
        assert bool(set(saved) & met) == decays
        assert keep_alive


def test_a_step_is_one_node():
    p = [torch.randn(4, requires_grad=True) for _ in range(5)]
    tx = torchopt.adam(0.1, weight_decay=0.1)
    updates, _ = tx.update([x * 2 for x in p], tx.init(p), p)
    assert len({u.grad_fn for u in updates}) == 1


def test_backward_twice_and_after_release():
    case, affine = BY_NAME['adam'], AFFINES['descent']
    g = draw('~', (3,), 0).requires_grad_()
    u, *_ = flat(native(affine.around(case.partials()), [g], [[draw('~', (3,), 1)], [draw('+', (3,), 2)]], None))
    (first,) = grad(u.sum(), g, retain_graph=True)
    (again,) = grad(u.sum(), g)
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match='second time'):
        grad(u.sum(), g)
