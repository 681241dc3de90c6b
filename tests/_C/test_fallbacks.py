# SPDX-License-Identifier: Apache-2.0
"""What the engine cannot read never crashes it: it takes the plain path, or raises what that raises."""

from __future__ import annotations

import pytest
import torch

import torchopt
from tests._C.alike import MAKERS, assert_alike, each_maker, outcome, steps
from tests._C.cases import BY_NAME, assert_same, draw, flat, native, no_kernels, plain, plain_torch, scale, watched
from torchopt import tree
from torchopt._C import dispatch

F32, F64 = torch.float32, torch.float64


class Tagged(torch.Tensor):
    """A subclass that only changes the type."""


class Logged(torch.Tensor):
    """A subclass that sees every operation."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


# Gradients (or parameters) that are no plain dense real floating tensors.
ODD = {
    'complex': lambda x: torch.complex(x, x + 1),
    'subclass': lambda x: x.as_subclass(Tagged),
    'logging subclass': lambda x: x.as_subclass(Logged),
    'meta': lambda x: x.to('meta'),
    'parameter': torch.nn.Parameter,
    'buffer': torch.nn.Buffer,
    'conjugate view': lambda x: torch.complex(x, x + 1).conj(),
}


@each_maker
@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('odd', ODD.values(), ids=ODD)
def test_odd_tensors(odd, make, inplace):
    for shape in [(), (3,), (2, 3)]:
        x = odd(draw('~', shape, 0, F32))
        params = {'odd': x.detach() if inplace else x, 'plain': draw('~', (2,), 1, F32).to(x.device)}
        assert_alike(lambda: steps(make, params, tree.map(lambda p: p.detach() * 2, params), inplace))  # noqa: B023


NEGATED = {
    'imaginary part': lambda x: torch.complex(x, -x).conj().imag,
    '_neg_view': lambda x: torch._neg_view(x.clone()),
    'zero tensor': lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
}


@pytest.mark.parametrize('shape', [(), (1,), (3,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize('view', NEGATED.values(), ids=NEGATED)
def test_lazily_negated_and_zero_tensors(view, shape):
    """As gradient, moment and parameter, tracked and not, in place where they can be written to."""
    case = BY_NAME['adam eps_root']
    for position in range(4):
        kinds = '~~+~'
        made = [draw(kind, shape, i) for i, kind in enumerate(kinds)]
        if position == 2:
            made[2] = -made[2]
        made[position] = view(made[position])
        g, m, v, p = ([x] for x in made)
        partials = [*case.partials(), scale(-0.1)]
        wanted = plain(partials, g, [m, v], p, onto=True)
        for tracked in (False, True):
            first = g[0].clone().requires_grad_() if tracked and position else g[0]
            moved = dispatch.step(partials, [None] * 2, [first], [m, v], p, inplace=False, onto_params=True)
            if not isinstance(moved, dispatch.Unsupported):
                assert_same(flat(moved), flat(wanted), 1e-14)
    g, p = view(draw('~', shape, 0, F32)), draw('~', shape, 1, F32)
    assert_alike(lambda: steps(MAKERS['adam'], [p], [g]))
    assert_alike(lambda: steps(MAKERS['adam'], [p], [g], inplace=True))
    x = draw('~', shape, 2, F32).requires_grad_()

    def tracked_gradient():
        updates = steps(MAKERS['adam'], [p], [torch._neg_view(x * 1.0)])[1]
        return torch.autograd.grad(updates[0].sum(), x)

    assert_alike(tracked_gradient, tolerance=1e-5)


BAD = {
    'integer': lambda x: x.long(),
    'boolean': lambda x: x > 0,
    'another shape': lambda x: torch.cat([x, x]),
    'that would broadcast': lambda x: x[:1],
    'sparse': lambda x: x.to_sparse(),
    'sparse rows': lambda x: x.to_sparse_csr(),
    'quantized': lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    'no tensor': lambda x: 1.0,
    'on another device': lambda x: x.to('meta'),
    'a nested tensor': lambda x: torch.nested.nested_tensor([x, x]),
}


@pytest.mark.filterwarnings('ignore:Sparse CSR:UserWarning', 'ignore:.*nested tensors:UserWarning')
@pytest.mark.filterwarnings('ignore:.*quantize.*:DeprecationWarning', 'ignore:.*quantize.*:UserWarning')
@pytest.mark.parametrize('inplace', [False, True])
@each_maker
@pytest.mark.parametrize('bad', BAD.values(), ids=BAD)
def test_bad_gradients_raise_as_in_plain_torch(bad, make, inplace):
    params = [draw('~', (2, 3), 0, F32), draw('~', (2, 3), 1, F32)]
    grads = [params[0] * 2, bad(params[1])]
    if bad is BAD['on another device']:
        found = outcome(lambda: steps(make, [p.clone() for p in params], grads, inplace))
        assert isinstance(found, (tuple, list))  # torch mixes 0-d devices as it pleases; here nothing may crash
        return
    assert_alike(lambda: steps(make, [p.clone() for p in params], grads, inplace), raises=True)


def test_moments_that_share_memory_or_are_expanded():
    """Two leaves in one storage; elements that are several times the same: as in plain torch."""
    case = BY_NAME['trace']
    for make in (
        lambda: [torch.zeros(4)] * 2,
        lambda: [*torch.zeros(6).unfold(0, 4, 2)],
        lambda: [*torch.zeros(4, 2).unbind(1)],
        lambda: [torch.zeros(1).expand(4), torch.zeros(4)],
        lambda: [torch.zeros(16, 10**6)[:, 0][:4], torch.zeros(4)],
    ):
        g = [draw('~', (4,), 0, F32), draw('~', (4,), 1, F32)]

        def act(make=make, g=g):
            moments = make()
            tx = torchopt.transform.trace(0.9)
            state = tx.init(g)._replace(trace=moments)
            updates, state = tx.update(g, state, inplace=True)
            return updates, state

        assert_alike(act)
        if make() is not None:
            native(case.partials(), g, [make()], None)  # out of place they are only read


@pytest.mark.parametrize('n', [9, 5000])
@pytest.mark.parametrize('shift', [-1, 0, 1, 700])
def test_gradients_in_the_memory_of_moments(shift, n):
    """A gradient that is its own moment, or overlaps it with an offset: what is read must not have been written."""
    if abs(shift) >= n:
        return
    x, k = draw('~', (n,), 0), abs(shift)

    def act():
        y = x.clone()
        early, late = y[: n - k], y[k:]
        g, m = (early, late) if shift > 0 else (late, early)
        tx = torchopt.transform.trace(0.5)
        return tx.update([g], tx.init([g])._replace(trace=[m]), inplace=True)

    assert_alike(act)


@pytest.mark.parametrize('n', [3, 3000])
def test_gradients_in_the_memory_of_other_parameters(n):
    """As in the game min max xy, whose gradients are the other player's parameters."""

    def act():
        x, y = draw('~', (n,), 0).requires_grad_(), draw('~', (n,), 1).requires_grad_()
        x.grad, y.grad = y.data, x.data
        torchopt.SGD([x, y], lr=0.1).step()
        return [x.detach(), y.detach()]

    assert_alike(act)


def test_channels_last_stays_native_and_keeps_its_strides():
    w = draw('~', (4, 3, 3, 3), 0, F32).to(memory_format=torch.channels_last)
    g = draw('~', (4, 3, 3, 3), 1, F32)
    for grads in ([g], [g.to(memory_format=torch.channels_last)]):
        for inplace in (False, True):
            with watched() as watch:
                params, _, state = steps(MAKERS['adam'], [w.clone()], grads, inplace)
            watch.ran(0)
            assert all(x.stride() == w.stride() for x in [*params, *tree.leaves(state)[-1:]])
            with plain_torch():
                wanted = steps(MAKERS['adam'], [w.clone()], grads, inplace)
            assert_same(params, wanted[0], 1e-6)


def test_moments_that_require_grad():
    tx = torchopt.adam(0.1, moment_requires_grad=True)

    def act():
        p = [draw('~', (3,), 0)]
        state = tx.init(p)
        learned = [x for x in tree.leaves(state) if x.requires_grad]
        updates, after = tx.update([draw('~', (3,), 1)], state, p)
        return [*updates, *torch.autograd.grad(updates[0].sum() + sum(x.sum() for x in tree.leaves(after)), learned)]

    assert len(assert_alike(act, tolerance=1e-12)) == 3


def test_accelerated_op_says_why_it_cannot():
    tx = MAKERS['adam'](use_accelerated_op=True)
    p = [draw('~', (3,), 0, F32)]
    with watched() as watch:
        steps(lambda: tx, p, p)
    watch.ran(0)
    for odd, words in ((ODD['complex'], 'float32'), (ODD['subclass'], ''), (ODD['meta'], '')):
        x = [odd(p[0])]
        with pytest.raises(RuntimeError, match=f'use_accelerated_op=True.*{words}'):
            steps(lambda: tx, x, x)
    with no_kernels(), pytest.raises(RuntimeError, match='use_accelerated_op=True'):
        steps(lambda: tx, p, p)
    with watched() as watch:
        found = steps(lambda: MAKERS['adam'](use_accelerated_op=False), p, p, count=1)
    assert 0 not in watch.orders[:1] or len(watch.orders) == 1, 'the rule itself is plain'
    assert_same(found[0], steps(lambda: tx, p, p, count=1)[0], 1e-6)
