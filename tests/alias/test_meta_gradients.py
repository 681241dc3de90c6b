# SPDX-License-Identifier: Apache-2.0
"""Derivatives through five steps equal those of the papers' equations, and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchopt
from tests.cases import CASES, WITHOUT_KERNEL
from tests.oracle import DECOUPLED, unrolled

STEPS = 5
# A learning rate that can be differentiated; schedules have no place here.
TRAINABLE = [c for c in CASES + WITHOUT_KERNEL if not callable(c.options['lr'])]
IDS = [c.name for c in TRAINABLE]


def gradient_of(p, phi):
    """Gradient of an inner loss, nonlinear in the parameters and in the meta-parameter."""
    return (p * phi).sin() + 0.3 * p**3 - phi


def start():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4, generator=generator, dtype=torch.float64) + 0.5
    phi = torch.rand(4, generator=generator, dtype=torch.float64) + 0.2
    return p.requires_grad_(), phi.requires_grad_()


def by_functional_face(case, p, phi, lr):
    tx = case.make(lr=lr)
    params = {'p': p}
    state = tx.init(params)
    for _ in range(STEPS):
        grads = {'p': gradient_of(params['p'], phi)}
        updates, state = tx.update(grads, state, params)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params['p']


@pytest.mark.parametrize('case', TRAINABLE, ids=IDS)
def test_equal_the_equations(case):
    p, phi = start()
    lr = torch.tensor(case.options['lr'], dtype=torch.float64, requires_grad=True)
    options = {k: v for k, v in case.options.items() if k != 'lr'}
    ours = by_functional_face(case, p, phi, lr)
    theirs = unrolled(case.alias, lambda q: gradient_of(q, phi), p, lr, STEPS, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    found = torch.autograd.grad((weights * ours).sum(), (p, phi, lr), create_graph=True)
    wanted = torch.autograd.grad((weights * theirs).sum(), (p, phi, lr), create_graph=True)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    second = torch.autograd.grad(found[1].sum(), (p, phi, lr))
    wanted_second = torch.autograd.grad(wanted[1].sum(), (p, phi, lr))
    torch.testing.assert_close(second, wanted_second, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('case', TRAINABLE, ids=IDS)
def test_equal_finite_differences(case):
    # Two elements, since the differences take a time in proportion to the square of their number.
    p, phi = (x.detach()[:2].requires_grad_() for x in start())
    lr = torch.tensor(case.options['lr'], dtype=torch.float64, requires_grad=True)

    def final(p, phi, lr):
        return by_functional_face(case, p, phi, lr)

    assert torch.autograd.gradcheck(final, (p, phi, lr), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(final, (p, phi, lr))


class Inner(nn.Module):
    """A module whose loss has the gradient above: sum of cos and powers, integrated by hand."""

    def __init__(self, p):
        super().__init__()
        self.p = nn.Parameter(p.detach().clone())

    def loss(self, phi):
        return (-(self.p * phi).cos() / phi + 0.075 * self.p**4 - phi * self.p).sum()


@pytest.mark.parametrize('case', TRAINABLE, ids=IDS)
def test_meta_face_equals_functional_face(case):
    p, phi = start()
    inner = Inner(p)
    first = inner.p
    options = {k: v for k, v in case.options.items() if k != 'lr'}
    lr = torch.tensor(case.options['lr'], dtype=torch.float64, requires_grad=True)
    names = {c.alias.__name__: c for c in META_CLASSES}
    if case.alias in names:
        optimizer = names[case.alias](inner, lr=lr, **{**DEFAULTS.get(case.alias, {}), **options})
    else:
        optimizer = torchopt.MetaOptimizer(inner, case.make(lr=lr))
    for _ in range(STEPS):
        optimizer.step(inner.loss(phi))
    ours = by_functional_face(case, p, phi, lr)
    torch.testing.assert_close(inner.p, ours, rtol=1e-11, atol=1e-12)
    found = torch.autograd.grad(inner.p.square().sum(), (first, phi, lr))
    wanted = torch.autograd.grad(ours.square().sum(), (p, phi, lr))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


META_CLASSES = [
    torchopt.MetaSGD,
    torchopt.MetaAdam,
    torchopt.MetaAdamW,
    torchopt.MetaAdaMax,
    torchopt.MetaAdaDelta,
    torchopt.MetaAdaGrad,
    torchopt.MetaRAdam,
    torchopt.MetaRMSProp,
]
# The classes have torch's defaults, which differ from those of the functions.
DEFAULTS = {'radam': {'eps': 1e-6}, 'adamax': {'eps': 1e-6}}


@pytest.mark.parametrize('alias', sorted({c.alias for c in CASES} - {'sgd'}))
def test_gradients_of_zero_give_finite_derivatives(alias):
    """A dead unit: its gradient is exactly zero, at all steps, and so is its second moment."""
    p, phi = start()
    dead = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    tx = getattr(torchopt, alias)(0.1)
    params, state = [p], tx.init([p])
    for _ in range(3):
        updates, state = tx.update([dead * gradient_of(params[0], phi)], state, params)
        params = torchopt.apply_updates(params, updates, inplace=False)
    first = torch.autograd.grad(params[0].square().sum(), (p, phi), create_graph=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), (p, phi))
    assert all(x.isfinite().all() for x in (*first, *second))
    if alias not in DECOUPLED:
        torch.testing.assert_close(first[0][1::2], 2 * params[0][1::2])


def test_derivative_at_zero_is_the_limit():
    """With v = 0 the update is g / (|g| + eps) at the first step, whose slope at 0 is 1 / eps."""
    tx = torchopt.transform.scale_by_adam(eps=1e-3)
    g = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (u,), _ = tx.update([g], tx.init([g]))
    (slope,) = torch.autograd.grad(u, g)
    torch.testing.assert_close(slope, torch.tensor([1e3], dtype=torch.float64))
