# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels: values and derivatives are those of the CPU's, for all rules, dtypes, layouts and large trees."""

from __future__ import annotations

import pytest
import torch

import torchopt
from tests._C.cases import AFFINES, BY_NAME, CASES, SHAPES, assert_same, columns, draw, flat, native, plain, watched
from tests._C.device import DEVICE, assert_same_there, needs_cuda, on_device

pytestmark = needs_cuda
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
TOLERANCES = {F32: 2e-6, F64: 1e-13, BF16: 8e-3, F16: 1e-3}
each_case = pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)


def same_values(case, affine, shapes, dtype, *, layouts=('contiguous',), active=None):
    onto, partials = affine.onto_params, affine.around(case.partials())
    for inplace in (False, True):
        g, moments, p = columns(case, shapes, dtype, layouts=layouts, params=affine.reads_params)
        there = on_device(g, moments, p)
        found = native(partials, *there, active=active, inplace=inplace, onto=onto)
        wanted = native(partials, g, moments, p, active=active, onto=onto)
        assert [x.dtype for x in flat(found)] == [x.dtype for x in flat(wanted)]
        for x, y in zip(flat(found), flat(wanted), strict=True):
            assert_same_there([x], [y], TOLERANCES[x.dtype])
        if inplace:
            written = [there[2], *there[1]] if onto else there[1]
            assert all(x is y for x, y in zip(flat(found[0 if onto else 1 :]), flat(written), strict=True))
            assert all(x._version == 2 for x in flat(written)), 'the copy, and the step'


@pytest.mark.parametrize('dtype', [F32, F64, BF16, F16, (BF16, F32, BF16), (F32, F64, F32)], ids=str)
@each_case
def test_values(case, dtype):
    for affine in ('the rule alone', 'everything'):
        same_values(case, AFFINES[affine], [*SHAPES['mixed'], (1025,), (70_001,)], dtype)


@each_case
def test_layouts_and_masks(case):
    affine = AFFINES['everything']
    for layouts in (('transposed',), ('unaligned',), ('unaligned', 'contiguous')):
        same_values(case, affine, [(3, 4), (70, 71), ()], F32, layouts=layouts)
    active = [[True, False, True], None, *[None] * len(case.rules), None, [False, True, True], None]
    same_values(case, affine, [(3,), (), (2000,)], F32, active=active)


@pytest.mark.parametrize('leaves', [1, 400, 2500])
def test_many_leaves(leaves):
    """More than the parameters of one kernel launch hold."""
    shapes = [(i % 7, 3) if i % 5 else () for i in range(leaves)]
    for name in ('identity', 'adam', 'stddev+trace'):
        same_values(BY_NAME[name], AFFINES['everything'], shapes, F32)


def test_a_leaf_of_more_than_two_to_the_thirty_one_bytes():
    n = 2**29 + 3
    if torch.cuda.mem_get_info()[0] < 5 * 4 * n:
        pytest.skip('the device has too little free memory')
    g = torch.ones(n, device=DEVICE)
    native(BY_NAME['identity'].partials(), [g], [], None)
    p = torch.zeros(n, device=DEVICE)
    native(AFFINES['a whole step'].around([]), [g], [], [p], inplace=True, onto=True)
    assert p.min() == p.max() == torch.tensor(-0.1)


# --- derivatives ----------------------------------------------------------------------------------------------------


def derivatives(case, device, dtype=F64):
    """First and second order in everything, the coefficients too, and tangents."""
    affine = AFFINES['everything']
    g, moments, p = columns(case, [(2, 3), (), (0,), (1500,)], dtype)
    g, moments, p = on_device(g, moments, p, device)
    inputs = [x.requires_grad_() for x in flat([g, *moments, p])]
    n = len(g)

    def step(*tensors, partials=None):
        cut = [list(tensors[i * n : (i + 1) * n]) for i in range(len(tensors) // n)]
        return tuple(flat(native(affine.around(partials or case.partials()), cut[0], cut[1:-1], cut[-1], onto=True)))

    def loss(ys):
        return sum((y.sin() * (1 + i % 5)).sum() for i, y in enumerate(ys))

    found = [*step(*inputs)]
    first = torch.autograd.grad(loss(found), inputs, create_graph=True, materialize_grads=True)
    second = torch.autograd.grad(loss(first), inputs, materialize_grads=True)
    tangents = tuple(torch.cos(3 * x.detach()) for x in inputs)
    pushed = torch.func.jvp(step, tuple(x.detach() for x in inputs), tangents)[1]
    partials, coefs = case.learned()
    own = torch.autograd.grad(
        loss(step(*inputs, partials=partials)), [*coefs, *inputs], create_graph=True, materialize_grads=True
    )
    again = torch.autograd.grad(loss(own), [*coefs, *inputs], materialize_grads=True)
    assert all(x.device.type == torch.device(device).type for x in (*first, *second, *pushed))
    assert all(x.device.type == 'cpu' for x in own[: len(coefs)]), 'where the coefficients are'
    return [x.detach().cpu() for x in (*found, *first, *second, *pushed, *own, *again)]


@each_case
def test_derivatives(case):
    with watched() as watch:
        found = derivatives(case, DEVICE)
    watch.ran(0, 1, 3, 4, *([2] if case.name != 'identity' else []))
    assert_same(found, derivatives(case, 'cpu'), 1e-9)


@pytest.mark.parametrize('name', ['adam eps_root', 'rms+trace'])
def test_derivatives_in_float32(name):
    assert_same(derivatives(BY_NAME[name], DEVICE, F32), derivatives(BY_NAME[name], 'cpu', F32), 5e-3)


@each_case
def test_gradcheck(case):
    g, moments, p = on_device(*columns(case, [(2,), ()], seed=3))
    inputs = [x.requires_grad_() for x in flat([g, *moments, p])]

    def step(*x):
        cut = [list(x[i : i + 2]) for i in range(0, len(x), 2)]
        return tuple(flat(native(AFFINES['everything'].around(case.partials()), cut[0], cut[1:-1], cut[-1])))

    assert torch.autograd.gradcheck(step, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(step, inputs)


def meta_gradients(device, lr_device):
    lr = torch.tensor(0.1, dtype=F64, device=lr_device, requires_grad=True)
    start = [draw('~', (40,), 1).to(device).requires_grad_(), draw('~', (), 2).to(device).requires_grad_()]
    tx = torchopt.adam(lr, eps_root=1e-3)
    p, state = start, tx.init(start)
    for _ in range(3):
        updates, state = tx.update([torch.sin(3 * x) for x in p], state, p)
        p = torchopt.apply_updates(p, updates)
    return torch.autograd.grad(sum((x**3).sum() for x in p), [lr, *start])


@pytest.mark.parametrize('lr_device', ['cpu', DEVICE])
def test_learning_rates_on_either_device(lr_device):
    with watched() as watch:
        found = meta_gradients(DEVICE, lr_device)
    watch.ran(0, 2)
    assert found[0].device.type == torch.device(lr_device).type
    assert_same([x.cpu() for x in found], meta_gradients('cpu', 'cpu'), 1e-10)


@pytest.mark.parametrize('lr_device', ['cpu', DEVICE])
@pytest.mark.parametrize('is_learned', [False, True])
def test_learning_rates_of_parameters_on_either_device(is_learned, lr_device):
    def outcome(device, rate_device):
        values = [torch.tensor(x, dtype=F64, device=rate_device, requires_grad=is_learned) for x in (0.1, 0.2)]
        b2 = torch.tensor(0.9, device=rate_device)
        tx = torchopt.adam([values[0], 0.3, values[1]], b1=[0.5, 0.6, 0.7], b2=b2, eps=[0.1, values[0], 0.2])
        p = [draw('~', shape, i, F64).to(device) for i, shape in enumerate([(3,), (2, 2), ()])]
        state = tx.init(p)
        with watched() as watch:
            updates, state = tx.update(p, state, p)
            updates, _ = tx.update(p, state, p)
        watch.ran()
        found = torch.autograd.grad(sum(u.sum() for u in updates), values) if is_learned else []
        return [x.detach().cpu() for x in (*updates, *found)]

    for x, y in zip(outcome(DEVICE, lr_device), outcome('cpu', 'cpu'), strict=True):
        assert_same([x], [y], 1e-12)


def test_results_are_the_same_every_time():
    """Sums over elements, too, to the bit."""
    runs = [derivatives(BY_NAME['adam'], DEVICE, F32) for _ in range(3)]
    for other in runs[1:]:
        assert all(map(torch.equal, runs[0], other))


def test_plain_torch_agrees_there():
    for case in CASES:
        g, moments, p = on_device(*columns(case, [(1000,), ()], F64))
        partials = AFFINES['everything'].around(case.partials())
        assert_same_there(
            flat(native(partials, g, moments, p, onto=True)), flat(plain(partials, g, moments, p, onto=True)), 1e-13
        )
