# SPDX-License-Identifier: Apache-2.0
"""Derivatives of native steps: against torch's on the plain step, and against finite differences in float64."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck

from tests._C.cases import AFFINES, BY_NAME, CASES, assert_same, columns, flat, native, plain, watched
from torchopt import rules
from torchopt._C import dispatch

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
SHAPES = [(2, 3), (), (0,), (5,)]
FORWARD, VJP, VJP_WITH_COEFS, VJP_OF_VJP, JVP = range(5)
each_case = pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)
# The step is discontinuous nowhere but in lion's sign, whose derivative is zero.
each_affine = pytest.mark.parametrize('affine', AFFINES.values(), ids=AFFINES)


@pytest.fixture(autouse=True)
def kernels_only(monkeypatch):
    """Gradient descent runs in kernels too; ``test_descent.py`` is about the operations of torch that replace them."""
    monkeypatch.setattr(dispatch, '_descend', lambda *args: None)


def setup(case, affine, shapes=SHAPES, dtype=F64, *, seed=0, layouts=('contiguous',)):
    """Flat inputs that require grad, and the step as a function of them, natively and in plain torch."""
    g, moments, p = columns(case, shapes, dtype, seed=seed, params=affine.reads_params, layouts=layouts)
    inputs = [x.detach().requires_grad_() for x in flat([g, *moments, p or []])]
    partials, n = affine.around(case.partials()), len(shapes)

    def step(take, *tensors, partials=partials):
        cut = [list(tensors[i * n : (i + 1) * n]) for i in range(len(tensors) // n)]
        p = cut.pop() if affine.reads_params else None
        return tuple(flat(take(partials, cut[0], cut[1:], p, onto=affine.onto_params)))

    return inputs, functools.partial(step, native), functools.partial(step, plain)


def random_like(tensors, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator, dtype=F64).to(x.dtype) for x in tensors]


def gradients(step, inputs, cs, ds):
    """Of first order with cotangents ``cs``, and of second with ``ds``: in the inputs, and in ``cs``."""
    cs = [c if c is None else c.detach().requires_grad_() for c in cs]
    ys, cs = zip(*[(y, c) for y, c in zip(step(*inputs), cs) if c is not None and y.requires_grad])
    first = grad(ys, inputs, cs, create_graph=True, allow_unused=True)
    moving = [(x, d) for x, d in zip(first, ds) if x is not None and d is not None and x.requires_grad]
    if not moving:
        return [*first]
    targets = [*inputs, *cs]
    second = grad([x for x, _ in moving], targets, [d for _, d in moving], allow_unused=True)
    return [*first, *second]


def assert_same_gradients(actual, wanted, tolerance):
    assert len(actual) == len(wanted)
    for x, y in zip(actual, wanted):
        if x is None or y is None:
            present = y if x is None else x
            assert present is None or not present.detach().any()
        else:
            assert x.dtype == y.dtype
            assert_same([x], [y], tolerance)


@each_affine
@each_case
def test_first_and_second_order(case, affine):
    inputs, engine, torchs = setup(case, affine)
    cs = random_like(torchs(*inputs), 1)
    ds = random_like(inputs, 2)
    with watched() as watch:
        found = gradients(engine, inputs, cs, ds)
    watch.ran(FORWARD, VJP, VJP_OF_VJP)
    assert_same_gradients(found, gradients(torchs, inputs, cs, ds), 1e-11)


@each_case
def test_some_cotangents_absent(case):
    """For the outputs, and for the gradients of first order: whole columns, and single leaves."""
    inputs, engine, torchs = setup(case, AFFINES['everything'])
    n = len(SHAPES)
    outputs = torchs(*inputs)
    for k in range(n + len(outputs) // n):
        # Only column k; or only leaf k of every column.
        cs = random_like(outputs, 3)
        kept = [i % n == k if k < n else i // n == k - n for i in range(len(outputs))]
        cs = [c if flag else None for c, flag in zip(cs, kept)]
        ds = [d if i % 3 != k % 3 else None for i, d in enumerate(random_like(inputs, 4))]
        if not any(y.requires_grad and c is not None for y, c in zip(outputs, cs)):
            continue
        with watched() as watch:
            found = gradients(engine, inputs, cs, ds)
        watch.ran(FORWARD, VJP)
        assert_same_gradients(found, gradients(torchs, inputs, cs, ds), 1e-11)


@pytest.mark.parametrize('unknown', ['gradients', 'moments', 'parameters', 'one leaf'])
@each_case
def test_gradients_in_some_inputs_only(case, unknown):
    inputs, engine, torchs = setup(case, AFFINES['everything'])
    n = len(SHAPES)
    chosen = {
        'gradients': range(n),
        'moments': range(n, len(inputs) - n),
        'parameters': range(len(inputs) - n, len(inputs)),
        'one leaf': [3],
    }[unknown]
    for i, x in enumerate(inputs):
        x.requires_grad_(i in chosen)
    if not chosen:
        return
    outputs = torchs(*inputs)
    wanted = [inputs[i] for i in chosen]
    results = []
    for step in (engine, torchs):
        ys = step(*inputs)
        pairs = [(y, c) for y, c in zip(ys, random_like(outputs, 1)) if y.requires_grad]
        results.append(grad([y for y, _ in pairs], wanted, [c for _, c in pairs], allow_unused=True))
    assert_same_gradients(*results, 1e-11)


@pytest.mark.parametrize('layouts', [('transposed',), ('expanded', 'contiguous'), ('sliced', 'transposed')], ids=str)
@each_case
def test_strided_and_expanded(case, layouts):
    inputs, engine, torchs = setup(case, AFFINES['everything'], [(3, 4), (2, 3, 2)], layouts=layouts)
    cs = [c.mT for c in random_like([y.mT for y in torchs(*inputs)], 1)]
    ds = [d[:1].expand(d.shape) for d in random_like(inputs, 2)]
    with watched() as watch:
        found = gradients(engine, inputs, cs, ds)
    watch.ran(FORWARD, VJP, VJP_OF_VJP)
    assert_same_gradients(found, gradients(torchs, inputs, cs, ds), 1e-11)


@pytest.mark.parametrize('dtypes', [F32, BF16, (BF16, F32, BF16), (F32, F64, F32)], ids=str)
@each_case
def test_gradients_keep_dtypes(case, dtypes):
    """Of float32, and of 16 bits, computed in float32 and rounded once."""
    inputs, engine, torchs = setup(case, AFFINES['everything'], [(40,)], dtypes)
    cs, ds = random_like(engine(*inputs), 1), random_like(inputs, 2)
    with watched() as watch:
        found = grad(engine(*inputs), inputs, cs)
    watch.ran(FORWARD, VJP)
    assert [x.dtype for x in found] == [x.dtype for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    wanted = grad(torchs(*wide), wide, [c.double() for c in cs])
    for x, y in zip(found, wanted):
        assert_same([x.double()], [y], 8e-3 if x.dtype is BF16 else 2e-4)
    with watched() as watch:
        second = gradients(engine, inputs, cs, ds)
    watch.ran(VJP_OF_VJP)
    assert all(x is None or x.isfinite().all() for x in second)


@each_case
def test_jvp(case):
    for affine in AFFINES.values():
        inputs, engine, torchs = setup(case, affine)
        tangents = random_like(inputs, 1)
        with watched() as watch:
            found = torch.func.jvp(engine, tuple(inputs), tuple(tangents))
        watch.ran(FORWARD, JVP)
        wanted = torch.func.jvp(torchs, tuple(inputs), tuple(tangents))
        assert_same(flat(found), flat(wanted), 1e-11)


@pytest.mark.parametrize('leave_out', [0, 1, 2, 3])
def test_dual_numbers_with_some_tangents(leave_out):
    inputs, engine, torchs = setup(BY_NAME['adam eps_root'], AFFINES['everything'], [(3,), (2, 2)])
    tangents = random_like(inputs, 1)
    results = []
    for step in (engine, torchs):
        with forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(x.detach(), t) if i // 2 != leave_out else x.detach()
                for i, (x, t) in enumerate(zip(inputs, tangents))
            ]
            results.append([forward_ad.unpack_dual(y).tangent for y in step(*duals)])
    assert_same_gradients(*results, 1e-11)


# --- finite differences ---------------------------------------------------------------------------------------------


def small(case, affine_name='everything'):
    inputs, engine, _ = setup(case, AFFINES[affine_name], [(2,), ()], seed=3)
    return inputs, lambda *x: tuple(y for y in engine(*x) if y.requires_grad or y.is_floating_point())


@each_case
def test_gradcheck(case):
    inputs, step = small(case)
    with watched() as watch:
        assert gradcheck(step, inputs, check_forward_ad=True)
    watch.ran(FORWARD, VJP, JVP)


@each_case
def test_gradgradcheck(case):
    inputs, step = small(case)
    with watched() as watch:
        assert gradgradcheck(step, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)
    watch.ran(FORWARD, VJP, VJP_OF_VJP)


@each_case
def test_third_order(case):
    """gradgradcheck of the gradients."""
    g, moments, p = columns(case, [(2,)], seed=3)
    inputs = [x.requires_grad_() for x in flat([g, *moments, p])]
    cs = random_like([*inputs[:-1]], 1)

    def pulled(*tensors):
        first, *rest = tensors
        moved = native(AFFINES['everything'].around(case.partials()), [first], [[m] for m in rest[:-1]], [rest[-1]])
        return grad(flat(moved), tensors, cs, create_graph=True, materialize_grads=True)

    assert gradgradcheck(pulled, inputs, atol=1e-4)


# --- coefficients that are learned ----------------------------------------------------------------------------------


@each_case
def test_gradients_of_coefficients(case):
    """In all of them, beside those of the leaves; of first and second order."""
    for affine in ('descent', 'everything'):
        partials, coefs = case.learned()
        around = []
        for part in (*AFFINES[affine].before, *partials, *AFFINES[affine].after):
            if part not in partials:
                name, value = next(iter(part.keywords.items()))
                coefs.append(torch.tensor(value, dtype=F64, requires_grad=True))
                part = functools.partial(part.func, **{name: coefs[-1]})
            around.append(part)
        inputs, engine, torchs = setup(case, AFFINES[affine])
        engine, torchs = (functools.partial(step, partials=around) for step in (engine, torchs))
        # Learned coefficients of exactly zero are no longer left out, which only moves the sign of zeros.
        cs, ds = random_like(torchs(*inputs), 1), random_like([*coefs, *inputs], 2)
        results = []
        with watched() as watch:
            for step in (engine, torchs):
                pairs = [(y, c) for y, c in zip(step(*inputs), cs) if y.requires_grad]
                ys, own = zip(*pairs)
                targets = [*coefs, *inputs]
                first = grad(ys, targets, own, create_graph=True, allow_unused=True)
                moving = [(x, d) for x, d in zip(first, ds) if x is not None and x.requires_grad]
                second = grad([x for x, _ in moving], targets, [d for _, d in moving], allow_unused=True)
                results.append([*first, *second])
        watch.ran(FORWARD, VJP_WITH_COEFS)
        assert_same_gradients(*results, 1e-10)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('name', ['adam eps_root', 'rms+trace', 'adamax', 'adadelta'])
def test_gradcheck_of_coefficients(name, masked):
    case = BY_NAME[name]
    _, coefs = case.learned()
    g, moments, p = columns(case, [(2,), (), (1,)], seed=3)
    active = [*[None] * len(case.rules), [True, False, True] if masked else None, None]

    def step(*values):
        supply = iter(values)
        partials = [functools.partial(rule, **{k: next(supply) for k in own}) for rule, own in case.rules]
        tail = [functools.partial(rules.add_params, weight=next(supply))]
        tail += [functools.partial(rules.scale, factor=next(supply))]
        return tuple(flat(native([*partials, *tail], g, moments, p, active=active)))

    more = [torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.3, -0.1)]
    coefs = [c.detach().clamp(min=0.05).requires_grad_() for c in coefs] + more
    assert gradcheck(step, coefs, check_forward_ad=True)
    assert gradgradcheck(step, coefs)
