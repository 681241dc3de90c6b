# SPDX-License-Identifier: Apache-2.0
"""A native step has the values of the plain one: rules, dtypes, options, trees, in place and out of place."""

from __future__ import annotations

import math

import pytest
import torch

import torchopt
from tests import cases as optimizers
from tests._C.cases import (
    AFFINES,
    BY_NAME,
    CASES,
    SHAPES,
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
from tests.snapshot import Snapshot
from torchopt import rules, tree
from torchopt._C import plans

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPES = [F32, F64, BF16, F16]
# Of gradient, moments and parameter.
MIXES = [(BF16, F32, BF16), (F16, F32, F32), (F32, F64, F32), (BF16, BF16, F32), (F64, F32, F16), (BF16, F16, BF16)]
TOLERANCES = {F32: 1e-6, F64: 1e-14}


def lattice(x: torch.Tensor) -> torch.Tensor:
    """Numbers of 16 bits as integers: neighbours differ by one."""
    bits = x.contiguous().view(torch.int16).to(torch.int32)
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def assert_rounded_once(actual, wanted):
    """Within rounding of what the same arithmetic gives in a wider type; of 16 bits, the last."""
    for x, y in zip(actual, wanted, strict=True):
        assert x.shape == y.shape
        if x.dtype in TOLERANCES:
            assert_same([x.double()], [y.double()], TOLERANCES[x.dtype])
        elif x.numel():
            assert (lattice(x) - lattice(y.to(x.dtype))).abs().max() <= 1


def dtypes_after(g, moments, p, onto):
    """Of the results: the widest of the leaf, or that of the parameter; moments keep theirs."""
    first = []
    for i, x in enumerate(g):
        kind = x.dtype
        for column in [*moments, *([] if p is None else [p])]:
            kind = torch.promote_types(kind, column[i].dtype)
        first.append(p[i].dtype if onto else kind)
    return [first, *([m.dtype for m in column] for column in moments)]


def check(case, affine, shapes, dtypes=F64, *, layouts=('contiguous',), active=None, inplace=False):
    g, moments, p = columns(case, shapes, dtypes, layouts=layouts, params=affine.reads_params)
    partials, onto = affine.around(case.partials()), affine.onto_params
    kinds = dtypes_after(g, moments, p, onto)
    # Arithmetic is in float32, and in float64 where anything of a leaf is.
    wide = F64 if F64 in (dtypes if isinstance(dtypes, tuple) else (dtypes,)) else F32
    up = [[x.to(wide) for x in c] for c in (g, *moments, p or [])]
    wanted = plain(partials, up[0], up[1:-1], up[-1] if p else None, active=active, onto=onto)
    before = Snapshot(g, moments, p)
    versions = [x._version for x in before.leaves if x is not None]
    moved = native(partials, g, moments, p, active=active, inplace=inplace, onto=onto)
    assert [[x.dtype for x in c] for c in moved] == kinds
    assert_rounded_once(flat(moved), flat(wanted))
    if inplace:
        written = [p, *moments] if onto else moments
        for new, old in zip(moved[0 if onto else 1 :], written, strict=True):
            assert all(x is y for x, y in zip(new, old, strict=True))
        if onto:
            assert [x._version for x in p] == [1] * len(p)
        assert [x._version for c in moments for x in c] == [1] * (len(moments) * len(g))
        assert [x._version for x in g] == [0] * len(g)
    else:
        before.check()
        assert [x._version for x in before.leaves if x is not None] == versions


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)
def test_rules_in_every_dtype(case, dtype, inplace):
    for affine in AFFINES.values():
        check(case, affine, SHAPES['mixed'], dtype, inplace=inplace)


@pytest.mark.parametrize('dtypes', MIXES, ids=str)
@pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)
def test_moments_and_parameters_of_other_dtypes(case, dtypes):
    for affine in ('descent', 'everything'):
        for inplace in (False, True):
            check(case, AFFINES[affine], [(3,), (), (1030,)], dtypes, inplace=inplace)


@pytest.mark.parametrize('shapes', SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)
def test_trees(case, shapes):
    if not shapes:
        assert native(case.partials(), [], [[] for _ in case.moments], None) == [[]] * (1 + len(case.moments))
        return
    check(case, AFFINES['everything'], shapes, F32)
    check(case, AFFINES['descent'], shapes, F32, inplace=True)


@pytest.mark.parametrize('name', ['identity', 'adam', 'stddev+trace'])
def test_a_thousand_leaves(name):
    shapes = [(i % 4, 2) if i % 5 else () for i in range(1000)]
    check(BY_NAME[name], AFFINES['everything'], shapes, F32)
    check(BY_NAME[name], AFFINES['everything'], shapes, F32, inplace=True)


LAYOUTS = [
    ('transposed',),
    ('sliced',),
    ('unaligned',),
    ('expanded',),
    ('contiguous', 'transposed', 'sliced', 'expanded', 'unaligned'),
    ('expanded', 'contiguous'),
    ('transposed', 'contiguous'),
]


@pytest.mark.parametrize('layouts', LAYOUTS, ids=','.join)
@pytest.mark.parametrize('dtypes', [F32, (BF16, F32, BF16)], ids=str)
def test_layouts(layouts, dtypes):
    for case in CASES:
        check(case, AFFINES['everything'], [(3, 4), (5,), (), (2, 3, 4)], dtypes, layouts=layouts)


@pytest.mark.parametrize('gradient', ['transposed', 'sliced', 'expanded', 'unaligned'])
def test_layouts_of_gradients_in_place(gradient):
    for case in CASES:
        layouts = (gradient, *['contiguous'] * (1 + len(case.moments)))
        check(case, AFFINES['everything'], [(3, 4), (5,), ()], F32, layouts=layouts, inplace=True)


def test_in_place_keeps_the_layout_of_what_is_written():
    for case in CASES:
        layouts = ('contiguous', *['transposed'] * (1 + len(case.moments)))
        check(case, AFFINES['everything'], [(3, 4), (2, 3, 4)], F32, layouts=layouts, inplace=True)


@pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)
def test_masks(case):
    """Affine transformations that apply to some leaves only; leaves with the same flags share coefficients."""
    affine = AFFINES['everything']
    shapes = [(3,), (), (2, 2), (4,), (0,)]
    none = [None] * len(case.rules)
    for first, last in (([1, 0, 1, 0, 1], [0, 0, 1, 1, 1]), ([0] * 5, [1] * 5), ([1, 0, 0, 0, 0], [1] * 5)):
        active = [[bool(f) for f in first], None, *none, None, [bool(f) for f in last], None]
        for inplace in (False, True):
            check(case, affine, shapes, F64, active=active, inplace=inplace)


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 0.0, 1e-30, 1e30])
def test_special_values_come_out_as_in_plain_torch(case, value, inplace):
    """One column at a time; whatever plain torch makes of it, the engine makes too."""
    partials = [*case.partials(), scale(-0.1)]
    for k in range(1 + len(case.moments)):
        g, moments, _ = columns(case, [(3,), (40,)], F32, seed=5, params=False)
        [g, *moments][k][1][17] = value
        if value < 0 and k and case.moments[k - 1] == '+':
            continue
        if value == 1e30 and 'stddev' in case.name and k < 2:
            continue  # inf - m * m, where the product overflows too unless it is added before it is rounded
        wanted = plain(partials, g, moments, None)
        moved = native(partials, g, moments, None, inplace=inplace)
        for o, (x, y) in enumerate(zip(flat(moved), flat(wanted), strict=True)):
            torch.testing.assert_close(x, y, rtol=2e-6, atol=2e-6, equal_nan=True, msg=lambda m: f'{k}, {o}: {m}')  # noqa: B023


def test_terms_with_the_coefficient_zero_are_left_out():
    """``0 * inf`` makes no NaN, for parameters as for moments."""
    affine = AFFINES['descent']
    for case in CASES:
        g, moments, p = columns(case, [(4,)], F32)
        p[0][1] = math.inf
        partials = affine.around(case.partials())
        assert torch.equal(native(partials, g, moments, p)[0][0], native(partials, g, moments, None)[0][0])
    forget = BY_NAME['adam'].partials(b1=0.0, d1=1.0, b2=0.0, d2=1.0)
    g, m = draw('~', (3,), 0), torch.full((3,), math.inf, dtype=F64)
    assert_same(flat(native(forget, [g], [[m], [m]], None)), flat(plain(forget, [g], [[m], [m]], None)), 1e-14)
    for name in ('adam', 'amsgrad', 'yogi', 'belief', 'rms', 'stddev', 'trace'):
        case = BY_NAME[name]
        zeros = dict.fromkeys({'b2', 'd2', 'keep', 'take'} & case.rules[0][1].keys(), 0.0)
        g, moments, _ = columns(case, [(4,)], F64)
        nothing = case.partials(**zeros)
        assert_same(flat(native(nothing, g, moments, None)), flat(plain(nothing, g, moments, None)), 1e-14)
    waits = BY_NAME['radam unrectified'].partials()
    g = draw('~', (3,), 0)
    v = torch.full((3,), 1e308, dtype=F64) * 10
    wanted = plain(waits, [g], [[g], [v]], None)
    assert wanted[0][0].isfinite().all()
    assert_same(native(waits, [g], [[g], [v]], None)[0], wanted[0], 1e-14)


def test_a_step_in_place_is_seen_by_autograd():
    """A moment, or a parameter, that was saved for backward was written to: that must not go unnoticed."""
    case, affine = BY_NAME['adam'], AFFINES['a whole step']
    for written in range(3):
        g, moments, p = columns(case, [(3,), ()])
        w = torch.ones(3, dtype=F64, requires_grad=True)
        y = (w * [*moments, p][written][0]).sum()
        native(affine.around(case.partials()), g, moments, p, inplace=True, onto=True)
        with pytest.raises(RuntimeError, match='modified by an inplace operation'):
            y.backward()


def test_a_refused_step_in_place_changes_nothing():
    case = BY_NAME['adam']
    g, moments, p = columns(case, [(3,), (4,)])
    g[1] = g[1].to(torch.complex128)
    before = Snapshot(g, moments, p)
    from torchopt._C import dispatch

    partials = [*case.partials(), scale(-0.1)]
    assert isinstance(
        dispatch.step(partials, [None] * 2, g, moments, p, inplace=True, onto_params=True), dispatch.Unsupported
    )
    before.check()
    assert all(x._version == 0 for x in before.leaves)


# --- every optimizer, with the engine and without -------------------------------------------------------------------


def grown(leaves):
    """A tree with None leaves and a tensor shared by nobody, of so many leaves."""
    shapes = [(2, 3), (), (4,), (0,), (1, 2)]
    return {'a': [draw('~', shapes[i % 5], i) for i in range(leaves)], 'none': None, 'b': (None, draw('~', (2,), 1))}


def run(tx, params, inplace, steps=3):
    params = tree.map(torch.clone, params)
    state = tx.init(params)
    for k in range(steps):
        grads = tree.map(lambda p, k=k: torch.sin(3 * p + k), params)
        updates, state = tx.update(grads, state, params, inplace=inplace)
        params = torchopt.apply_updates(params, updates, inplace=inplace)
    return params, state


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('case', optimizers.CASES, ids=lambda c: c.name)
def test_optimizers(case, inplace):
    params = {'tree': optimizers.mixed_tree(F64), 'more': grown(2)}
    with watched() as watch:
        case.make().update(params, case.make().init(params), params, inplace=False)
    assert watch.orders == [0], 'one kernel call for a chain'
    with watched() as watch:
        here, state = run(case.make(), params, inplace)
    watch.ran(0)
    with plain_torch():
        there, plain_state = run(case.make(), params, inplace)
    assert tree.structure(state) == tree.structure(plain_state)
    assert_same(tree.leaves((here, state)), tree.leaves((there, plain_state)), 1e-12)
    assert [x.dtype for x in tree.leaves(state)] == [x.dtype for x in tree.leaves(plain_state)]


@pytest.mark.parametrize('leaves', [1, 2, 1000])
def test_large_trees(leaves):
    for name in ('adam', 'adamw'):
        tx = getattr(torchopt, name)(lr=0.1, use_accelerated_op=True)
        here = run(tx, grown(leaves), False)
        there = run(getattr(torchopt, name)(lr=0.1, use_accelerated_op=False), grown(leaves), False)
        assert tree.structure(here) == tree.structure(there)
        assert_same(tree.leaves(here), tree.leaves(there), 1e-12)


def test_every_rule_has_a_case():
    assert {rule for case in CASES for rule, _ in case.rules} - set(plans.AFFINE) == set(rules.RULES)
