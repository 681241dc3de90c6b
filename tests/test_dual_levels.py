# SPDX-License-Identifier: Apache-2.0
"""Forward mode by ``torch.autograd.forward_ad`` around code that uses plain autograd.

Inside of a ``dual_level`` a backward pass that records no graph (``create_graph=False``) moves tangents all the same,
and so does a step of plain training, whose parameters are leaves.  What detaches a tensor, or shares the memory of a
tangent, is silently wrong there.
"""

import pytest
import torch
from torch.autograd import forward_ad

import torchopt
from tests import test_late_pullbacks as pullbacks
from tests.test_late_pullbacks import flat, normal, same, vectors
from torchopt import contrib, transform

OPTIMIZERS = {
    'sgd': lambda: torchopt.sgd(0.1, momentum=0.9),
    'sgd, decay': lambda: torchopt.sgd(0.1, weight_decay=0.2),
    'adamw': lambda: torchopt.adamw(0.1, weight_decay=0.2),
    'adamw, plain torch': lambda: torchopt.adamw(0.1, weight_decay=0.2, use_accelerated_op=False),
    'two decays': lambda: torchopt.chain(
        transform.add_decayed_weights(0.1), transform.add_decayed_weights(0.2), torchopt.sgd(0.1)
    ),
    'lion': lambda: torchopt.lion(0.1, weight_decay=0.2),
    'lamb': lambda: torchopt.lamb(0.1, weight_decay=0.1),
    'lars': lambda: torchopt.lars(0.1, weight_decay=0.1),
    'adafactor': lambda: torchopt.adafactor(0.1),
    'trust ratio': transform.scale_by_trust_ratio,
    'distance over gradients': lambda: transform.scale_by_distance_over_gradients(0.1, param_dtype=None),
    'madgrad': lambda: contrib.madgrad(0.1, momentum=0.5),
    'cocob': lambda: contrib.cocob(alpha=10.0),
    'dog': lambda: contrib.dog(init_step=('heuristic', 0.1)),
    'dowg': lambda: contrib.dowg(init_estim_sq_dist=0.1),
    'prodigy': lambda: contrib.prodigy(estim_lr0=0.1),
    'mechanize': lambda: contrib.mechanize(torchopt.sgd(0.1), eps=1e-2, s_init=0.1),
    'schedule_free_sgd': lambda: contrib.schedule_free_sgd(0.1),
    'schedule_free_adamw': lambda: contrib.schedule_free_adamw(0.1, weight_decay=0.2),
    'sam': lambda: contrib.sam(torchopt.sgd(0.1), torchopt.chain(contrib.normalize(), torchopt.sgd(0.05))),
}

REVERSE = {
    **pullbacks.TABLE,
    **{name: pullbacks.steps(lambda lr, make=make: make()) for name, make in OPTIMIZERS.items()},
}
# Forward mode inside of forward mode is refused by torch.
del REVERSE['solve_lu of a jvp']


def tangent(x):
    moved = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if moved is None else moved


@pytest.mark.parametrize('name', REVERSE)
def test_reverse_within_a_dual_level(name):
    fun, *args = REVERSE[name]
    fun = flat(fun)
    args = [x.detach() for x in args]
    c, c_dot = vectors(fun(*args).numel())
    directions = [normal(*x.shape, seed=20 + i) for i, x in enumerate(args)]

    def pulled(c, *args):
        return torch.func.vjp(fun, *args)[1](c)

    expected = torch.func.jvp(pulled, (c, *args), (c_dot, *directions))[1]
    for create_graph in (False, True):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x.clone().requires_grad_(), t.clone()) for x, t in zip(args, directions)]
            grads = torch.autograd.grad(
                fun(*duals),
                duals,
                forward_ad.make_dual(c, c_dot.clone()),
                create_graph=create_graph,
                allow_unused=True,
                materialize_grads=True,
            )
            found = [tangent(g) for g in grads]
        same(found, expected)


def loss(p):
    return (torch.sin(p) * p + 0.2 * p**3).sum()


def two_steps(make, p, gradient, *, inplace=False, renew=lambda p: p):
    tx = make()
    state = tx.init(p)
    for _ in range(2):
        updates, state = tx.update(gradient(p), state, p, inplace=bool(inplace))
        p = renew(torchopt.apply_updates(p, updates, inplace=inplace))
    return p


def as_leaf(p):
    """The parameters as a leaf that requires grad and has a tangent, as in plain training."""
    with torch.no_grad():
        return p.view_as(p).requires_grad_()


def plain_gradient(p):
    p = as_leaf(p)
    return torch.autograd.grad(loss(p), p)[0]


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_steps_of_plain_training_keep_tangents(name):
    make, x, v = OPTIMIZERS[name], normal(3), normal(3, seed=1)
    gradient = torch.func.grad(loss)
    expected = torch.func.jvp(lambda x: two_steps(make, x, gradient), (x,), (v,))[1]
    same([torch.func.jvp(lambda x: two_steps(make, x.clone(), gradient, inplace=True), (x,), (v,))[1]], [expected])
    with forward_ad.dual_level():

        def start():
            return forward_ad.make_dual(x.clone(), v.clone())

        ends = [
            two_steps(make, start(), plain_gradient),
            two_steps(make, as_leaf(start()), plain_gradient, renew=as_leaf),
            two_steps(make, as_leaf(start()), plain_gradient, inplace=None),
            two_steps(make, start().requires_grad_(), plain_gradient, inplace=True),
        ]
        for p in ends:
            same([tangent(p).detach()], [expected])


@pytest.mark.parametrize('differentiable', [True, False])
def test_func_optimizer_keeps_tangents(differentiable):
    def train(p):
        optimizer = torchopt.FuncOptimizer(torchopt.adamw(0.1, weight_decay=0.3), differentiable=differentiable)
        for _ in range(3):
            p = optimizer.step(loss(p), p)
        return p

    x, v, h = normal(3), normal(3, seed=1), 1e-5
    ends = [train((x + s * h * v).requires_grad_()).detach() for s in (1, -1)]
    with forward_ad.dual_level():
        found = tangent(train(as_leaf(forward_ad.make_dual(x.clone(), v.clone()))))
    torch.testing.assert_close(found.detach(), (ends[0] - ends[1]) / (2 * h), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('renew', [lambda p: p, as_leaf], ids=['constants', 'leaves'])
def test_lookahead_keeps_tangents(renew):
    def train(start, gradient):
        tx, params = transform.lookahead(torchopt.sgd(0.1), 2, 0.5), transform.LookaheadParams.init_synced(start)
        state = tx.init(params)
        for _ in range(4):
            updates, state = tx.update(gradient(params.fast), state, params)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return params

    x, v = normal(3), normal(3, seed=1)
    expected = torch.func.jvp(lambda x: train(x, torch.func.grad(loss)), (x,), (v,))[1]
    with forward_ad.dual_level():
        ends = train(renew(forward_ad.make_dual(x.clone(), v.clone())), plain_gradient)
        same([tangent(p).detach() for p in ends], expected)
