# SPDX-License-Identifier: Apache-2.0
"""torch.func over native steps: grad, vjp, jvp, vmap, jacobians, Hessians, ensembles; against plain torch."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.func import (
    functional_call,
    functionalize,
    grad as func_grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

import torchopt
from tests import cases as optimizers
from tests._C.cases import (
    AFFINES,
    CASES,
    assert_same,
    columns,
    draw,
    flat,
    native,
    no_kernels,
    plain,
    plain_torch,
    watched,
)
from torchopt import tree

F64 = torch.float64
each_case = pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)


def both(compute, *orders, absent=True):
    """The same natively, where kernels of these orders have to run, in plain torch, and without kernels."""
    with watched() as watch:
        found = tree.leaves(compute())
    if orders:
        watch.ran(*orders)
    with plain_torch():
        wanted = tree.leaves(compute())
    assert_same(found, wanted, 1e-9)
    if absent:
        with no_kernels():
            assert_same(tree.leaves(compute()), wanted, 1e-9)


def inner_loop(tx, start, steps=2):
    """The outer loss after some steps, by ``torch.func.grad``."""

    def loss(params):
        return sum((torch.sin(2 * p) + p**2).sum() for p in tree.leaves(params))

    params, state = start, tx.init(start)
    for _ in range(steps):
        updates, state = tx.update(func_grad(loss)(params), state, params)
        params = torchopt.apply_updates(params, updates)
    return sum((p**3).sum() for p in tree.leaves(params))


def start(*batch):
    return {'w': draw('~', (*batch, 2, 2), 1), 'b': draw('~', batch, 2)}


LOOPS = {
    'grad': func_grad,
    'jvp': lambda f: lambda x: jvp(f, (x,), (x,)),
    'vmap of grad': lambda f: lambda x: vmap(func_grad(f))(tree.map(lambda y: torch.stack([y, y / 2, -y]), x)),
    'vjp of grad': lambda f: lambda x: vjp(func_grad(f), x)[1](x),
    'jvp of grad': lambda f: lambda x: jvp(func_grad(f), (x,), (x,)),
}


# Of each optimizer the case with the most options.
OPTIMIZERS = {c.alias: c for c in sorted(optimizers.CASES, key=lambda c: len(c.options))}


@pytest.mark.parametrize('transform', LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize('case', OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_transforms_of_inner_loops(case, transform):
    outer = functools.partial(inner_loop, case.make())
    both(lambda: transform(outer)(start()), 0, absent=case.alias == 'adam')


ADAM = torchopt.adam(0.1, betas=(0.7, 0.9), eps=1e-2, eps_root=1e-3, weight_decay=0.1)


JACOBIANS = {
    'jacrev': jacrev,
    'jacfwd': jacfwd,
    'hessian': hessian,
    'jacrev of jacrev': lambda f: jacrev(jacrev(f)),
    'jacfwd of jacfwd': lambda f: jacfwd(jacfwd(f)),
    'jacrev of jacfwd': lambda f: jacrev(jacfwd(f)),
    'vmap of hessian': lambda f: lambda x: vmap(hessian(f))(tree.map(lambda y: torch.stack([y, -y]), x)),
}


@pytest.mark.parametrize('transform', JACOBIANS.values(), ids=JACOBIANS)
def test_jacobians_and_hessians(transform):
    both(lambda: transform(functools.partial(inner_loop, ADAM))(start()))


THIRD = {
    'grad of grad of grad': lambda f: func_grad(func_grad(func_grad(f))),
    'jacfwd of grad of grad': lambda f: jacfwd(func_grad(func_grad(f))),
    'jvp of hessian': lambda f: lambda x: jvp(hessian(f), (x,), (x,)),
    'autograd over grad': lambda f: lambda x: torch.autograd.functional.hessian(func_grad(f), x),
}


@pytest.mark.parametrize('transform', THIRD.values(), ids=THIRD)
def test_third_order(transform):
    outer = functools.partial(inner_loop, ADAM, steps=1)

    def scalar(x):
        return outer({'w': x.expand(2) * 1.0, 'b': x * 0.5})

    both(lambda: transform(scalar)(torch.tensor(0.4, dtype=F64)))


@each_case
def test_vmap_of_one_step(case):
    """Batches in some of the columns, along other dimensions; all else is shared."""
    affine = AFFINES['everything']
    g, moments, p = columns(case, [(2, 3), (3,)])
    batched = columns(case, [(4, 2, 3), (4, 3)], seed=50)
    batch = flat([batched[0], *batched[1], batched[2]])
    single = flat([g, *moments, p])

    def step(take, *tensors):
        cut = [list(tensors[2 * i : 2 * i + 2]) for i in range(len(tensors) // 2)]
        partials = affine.around(case.partials())
        return tuple(flat(take(partials, cut[0], cut[1:-1], cut[-1], onto=True)))

    for pattern in range(5):
        in_dims, arguments = [], []
        for i, (x, b) in enumerate(zip(single, batch)):
            dim = (0, None, 1, 0, -1)[(i // 2 + pattern) % 5]
            in_dims.append(dim)
            arguments.append(x if dim is None else b.movedim(0, dim))
        if all(d is None for d in in_dims):
            continue
        with watched() as watch:
            found = vmap(functools.partial(step, native), tuple(in_dims))(*arguments)
        watch.ran(0)
        wanted = vmap(functools.partial(step, plain), tuple(in_dims))(*arguments)
        assert_same(flat([found]), flat([wanted]), 1e-12)


@each_case
def test_vmap_of_derivatives_of_one_step(case):
    """Nested: over cotangents, over samples, and over both."""
    affine = AFFINES['everything']
    g, moments, p = columns(case, [(2, 2, 3)])
    tensors = flat([g, *moments, p])
    outputs = plain(affine.around(case.partials()), g, moments, p, onto=True)
    cs = tuple(draw('~', (4, *y[0].shape), 7 + i) for i, y in enumerate(outputs))

    def pulled(take, *arguments):
        n = len(tensors)

        def step(g, *rest):
            moved = take(affine.around(case.partials()), [g], [[m] for m in rest[:-1]], [rest[-1]], onto=True)
            return tuple(flat(moved))

        return vjp(step, *arguments[:n])[1](tuple(arguments[n:]))

    over_samples = [0] * len(tensors)
    for in_dims, nested in (([None] * len(tensors) + [0] * len(cs), False), (over_samples + [1] * len(cs), True)):
        results = []
        for take in (native, plain):
            f = functools.partial(pulled, take)
            if nested:
                f = vmap(f, tuple([None] * len(tensors) + [0] * len(cs)))
            results.append(vmap(f, tuple(in_dims))(*tensors, *cs))
        assert_same(*results, 1e-11)


RATES, BETAS = torch.tensor([0.0, 0.05, 0.3], dtype=F64), torch.tensor([0.5, 0.9, 0.95], dtype=F64)
SHARED, BATCH = start(), start(3)


def by_rate(lr, x):
    return inner_loop(torchopt.adam(lr), x)


def by_decay(beta, x):
    return inner_loop(torchopt.adam(0.1, betas=(0.8, beta)), x)


HYPER = {
    'vmap': lambda: vmap(by_rate, (0, None))(RATES, SHARED),
    'vmap of both': lambda: vmap(by_rate)(RATES, BATCH),
    'vmap of grad': lambda: vmap(func_grad(by_rate), (0, None))(RATES, SHARED),
    'vmap of grad in parameters': lambda: vmap(func_grad(by_rate, argnums=1))(RATES, BATCH),
    'grad': lambda: func_grad(by_rate, argnums=(0, 1))(RATES[1], SHARED),
    'grad of grad': lambda: func_grad(func_grad(by_rate))(RATES[1], SHARED),
    'jacfwd': lambda: jacfwd(by_rate)(RATES[1], SHARED),
    'hessian': lambda: hessian(by_rate)(RATES[1], SHARED),
    'vmap of vmap': lambda: vmap(vmap(by_rate, (0, None)), (None, 0))(RATES, BATCH),
    'vmap over decay': lambda: vmap(by_decay, (0, None))(BETAS, SHARED),
    'vmap of grad over decay': lambda: vmap(func_grad(by_decay, argnums=(0, 1)))(BETAS, BATCH),
    'jvp in all': lambda: jvp(by_decay, (BETAS[1], SHARED), (BETAS[0], SHARED)),
}


@pytest.mark.parametrize('compute', HYPER.values(), ids=HYPER)
def test_hyper_parameters(compute):
    both(compute)


def test_a_state_that_vmap_made():
    """init and update under vmap: every sample has its own step count."""
    tx = torchopt.adam(0.1)

    def steps(x):
        state = tx.init(x)
        for k in range(3):
            u, state = tx.update(torch.sin(x + k), state, x)
        return u, state

    both(lambda: vmap(steps)(draw('~', (3, 2), 0)), 0)

    def again(x, state):
        return tx.update(torch.sin(x), state, x)

    batch = draw('~', (3, 2), 0)
    state = vmap(tx.init)(batch)
    both(lambda: vmap(again)(batch, state))


def test_ensembles():
    """Several models trained side by side by functional_call, as each would be alone."""
    models = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double() for _ in range(3)]
    params, _ = stack_module_state(models)
    params = {k: p.detach() for k, p in params.items()}
    x, y = draw('~', (3, 8, 3), 1), draw('~', (3, 8, 1), 2)
    tx = torchopt.adamw(0.05)

    def loss(params, x, y):
        return (functional_call(models[0], params, (x,)) - y).square().mean()

    def train(params, x, y):
        state = tx.init(params)
        for _ in range(4):
            updates, state = tx.update(func_grad(loss)(params, x, y), state, params)
            params = torchopt.apply_updates(params, updates)
        return params

    with watched() as watch:
        together = vmap(train)(params, x, y)
    watch.ran(0)
    with plain_torch():
        for i in range(3):
            alone = train({k: p[i] for k, p in params.items()}, x[i], y[i])
            assert_same([p[i] for p in together.values()], [*alone.values()], 1e-12)
    both(lambda: vmap(func_grad(lambda p, x, y: loss(train(p, x, y), x, y)))(params, x, y), 0, 1)


def test_functionalize():
    def two_steps(x):
        state = ADAM.init(x)
        for _ in range(2):
            updates, state = ADAM.update(torch.sin(x), state, x)
            x = torchopt.apply_updates(x, updates)
        return x

    x = draw('~', (3,), 0)
    both(lambda: functionalize(two_steps)(x))
    both(lambda: functionalize(func_grad(lambda x: two_steps(x).sum()))(x))


def test_forward_mode_of_an_inner_loop():
    """Dual numbers without torch.func, and forward over reverse."""
    from torch.autograd import forward_ad

    def compute():
        with forward_ad.dual_level():
            x = forward_ad.make_dual(draw('~', (3,), 0), draw('~', (3,), 1))
            state = ADAM.init(x)
            for _ in range(3):
                updates, state = ADAM.update(torch.sin(2 * x), state, x)
                x = torchopt.apply_updates(x, updates)
            return [forward_ad.unpack_dual(x).tangent, forward_ad.unpack_dual(state[1].mu).tangent]

    both(compute)

    def over_reverse():
        with forward_ad.dual_level():
            a = draw('~', (3,), 0).requires_grad_()
            x = forward_ad.make_dual(a, draw('~', (3,), 1))
            updates, _ = ADAM.update(torch.sin(2 * x), ADAM.init(x), x)
            (slope,) = torch.autograd.grad((x + updates).pow(3).sum(), a, create_graph=True)
            return [slope, forward_ad.unpack_dual(slope).tangent]

    both(over_reverse)
