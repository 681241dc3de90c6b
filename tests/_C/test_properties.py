# SPDX-License-Identifier: Apache-2.0
"""Random trees, rules, chains and hyper-parameters through both: the engine has the values and derivatives of torch."""

from __future__ import annotations

import functools
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

import torchopt
from tests._C.cases import (
    AFFINES,
    CASES,
    LAYOUTS,
    add_params,
    assert_same,
    columns,
    draw,
    flat,
    native,
    plain,
    plain_torch,
    scale,
    watched,
)
from torchopt import tree

F32, F64 = torch.float32, torch.float64
ALIKE = settings(max_examples=40, deadline=None, derandomize=True)

SHAPE = st.lists(st.integers(0, 4), max_size=3).map(tuple)
SHAPES = st.lists(SHAPE, min_size=1, max_size=5)
LAYOUT = st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=1, max_size=5)
FACTOR = st.sampled_from([-2.0, -1.0, -0.1, 0.0, 0.5, 1.0, 3.0])
PART = st.one_of(FACTOR.map(scale), st.sampled_from([0.0, 0.1, 1.5]).map(add_params))
PARTS = st.lists(PART, max_size=3)


def hyper(case: Any, numbers: list[float]) -> list[Any]:
    """The rules with other coefficients: between 0 and 1 like those of the table, zeros stay zero."""
    supply = iter(numbers)
    return [functools.partial(rule, **{k: v and next(supply) for k, v in coefs.items()}) for rule, coefs in case.rules]


NUMBERS = st.lists(st.floats(0.05, 0.95), min_size=16, max_size=16)


@ALIKE
@given(
    case=st.sampled_from(CASES),
    numbers=NUMBERS,
    before=PARTS,
    after=PARTS,
    onto=st.booleans(),
    shapes=SHAPES,
    layouts=LAYOUT,
    dtype=st.sampled_from([F32, F64]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_chains(case, numbers, before, after, onto, shapes, layouts, dtype, seed, data):
    partials = [*before, *hyper(case, numbers), *after]
    g, moments, p = columns(case, shapes, dtype, layouts=layouts, seed=seed)
    active: list[Any] = [None] * len(partials)
    for i, rule in enumerate(partials):
        if rule.func.__name__ in ('scale', 'add_params') and data.draw(st.booleans()):
            active[i] = data.draw(st.lists(st.booleans(), min_size=len(g), max_size=len(g)))
    if case.name.startswith('stddev'):
        # With any coefficients a variance could be tiny, and its root ill-conditioned.
        moments = [[m * 0 if k == 0 else m + 1 for m in column] for k, column in enumerate(moments)]
        g = [x * 0.5 for x in g]
    up_g, *up_moments, up_p = [[x.double() for x in column] for column in (g, *moments, p)]
    wanted = plain(partials, up_g, up_moments, up_p, active=active, onto=onto)
    moved = native(partials, g, moments, p, active=active, onto=onto)
    assert_same([x.double() for x in flat(moved)], flat(wanted), 1e-11 if dtype is F64 else 2e-5)


@ALIKE
@given(
    case=st.sampled_from(CASES),
    affine=st.sampled_from(list(AFFINES.values())),
    shapes=SHAPES,
    layouts=LAYOUT,
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_derivatives(case, affine, shapes, layouts, seed, data):
    """Any of the inputs require grad, any of the outputs have cotangents; first and second order."""
    g, moments, p = columns(case, shapes, layouts=layouts, seed=seed, params=affine.reads_params)
    inputs = [x.detach() for x in flat([g, *moments, p or []])]
    flags = data.draw(st.lists(st.booleans(), min_size=len(inputs), max_size=len(inputs)))
    flags[0] = True
    n, partials = len(shapes), affine.around(case.partials())
    some = data.draw(st.lists(st.booleans(), min_size=n * (1 + len(moments)), max_size=n * (1 + len(moments))))
    results = []
    for take in (native, plain):
        # No leaves, so that decay does not take parameters for those of plain training.
        variables = [x.clone().requires_grad_() for x in inputs]
        made = [(v * 1.0 if f else x) for v, x, f in zip(variables, inputs, flags)]
        cut = [made[i * n : (i + 1) * n] for i in range(len(made) // n)]
        ys = flat(take(partials, cut[0], cut[1 : 1 + len(moments)], cut[-1] if p else None, onto=affine.onto_params))
        loss = sum((y.sin() * (1 + i)).sum() for i, (y, keep) in enumerate(zip(ys, some)) if keep or not i)
        targets = [v for v, f in zip(variables, flags) if f]
        first = [*ys]
        if loss.requires_grad:
            first += torch.autograd.grad(loss, targets, create_graph=True, materialize_grads=True)
            again = sum((x.cos() * (i + 1)).sum() for i, x in enumerate(first[len(ys) :]))
            if again.requires_grad:
                first += torch.autograd.grad(again, targets, materialize_grads=True)
        results.append(first)
    assert_same(*results, 1e-9)


LEAF = st.one_of(st.none(), st.builds(draw, st.just('~'), SHAPE, st.integers(0, 1000)))
TREE = st.recursive(
    LEAF,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text('ab', min_size=1), inner, max_size=3)),
    max_leaves=6,
).filter(lambda params: any(x is not None for x in tree.leaves(params)))
RATE, DECAY, EPS = st.floats(0.0, 0.5), st.floats(0.0, 0.95), st.floats(1e-4, 0.1)
PENALTY = st.sampled_from([0.0, 0.1, 1.0])
OPTIMIZERS = st.one_of(
    st.builds(functools.partial, st.just(torchopt.sgd), lr=RATE, momentum=DECAY, weight_decay=PENALTY),
    st.builds(
        functools.partial,
        st.sampled_from([torchopt.adam, torchopt.adamw]),
        lr=RATE,
        betas=st.tuples(DECAY, DECAY),
        eps=EPS,
        eps_root=st.sampled_from([0.0, 1e-2]),
        weight_decay=PENALTY,
        maximize=st.booleans(),
    ),
    st.builds(functools.partial, st.just(torchopt.adamax), lr=RATE, betas=st.tuples(DECAY, DECAY), eps=EPS),
    st.builds(functools.partial, st.just(torchopt.radam), lr=RATE, betas=st.tuples(DECAY, DECAY), eps=EPS),
    st.builds(functools.partial, st.just(torchopt.adadelta), lr=RATE, rho=DECAY, eps=EPS, weight_decay=PENALTY),
    st.builds(functools.partial, st.just(torchopt.adagrad), lr=RATE, eps=EPS, lr_decay=DECAY),
    st.builds(functools.partial, st.just(torchopt.rmsprop), lr=RATE, alpha=DECAY, eps=EPS, momentum=DECAY),
)


@ALIKE
@given(params=TREE, make=OPTIMIZERS, inplace=st.booleans())
def test_optimizers(params, make, inplace):
    def run():
        now = tree.map(torch.clone, params)
        tx = make()
        state = tx.init(now)
        for k in range(3):
            grads = tree.map(lambda p, k=k: torch.sin(3 * p + k), now)
            updates, state = tx.update(grads, state, now, inplace=inplace)
            now = torchopt.apply_updates(now, updates)
        return now, state

    with watched() as watch:
        found = run()
    watch.ran(0)
    with plain_torch():
        wanted = run()
    assert tree.structure(found) == tree.structure(wanted)
    assert_same(
        [x for x in tree.leaves(found) if x is not None], [x for x in tree.leaves(wanted) if x is not None], 1e-10
    )
