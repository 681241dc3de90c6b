# SPDX-License-Identifier: Apache-2.0
"""Batches of the old vmap behind torch.autograd: no autograd Function sees them, and plain torch takes them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import torchopt
from tests._C.cases import AFFINES, CASES, assert_same, columns, draw, flat, native, plain, plain_torch

each_case = pytest.mark.parametrize('case', CASES, ids=lambda c: c.name)


@each_case
def test_gradcheck_batched(case):
    g, moments, p = columns(case, [(2,), ()], seed=3)
    inputs = [x.requires_grad_() for x in flat([g, *moments, p])]

    def step(*x):
        cut = [list(x[i : i + 2]) for i in range(0, len(x), 2)]
        return tuple(flat(native(AFFINES['everything'].around(case.partials()), cut[0], cut[1:-1], cut[-1])))

    assert gradcheck(step, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(step, inputs, check_batched_grad=True)


@pytest.mark.parametrize('strategy', ['reverse-mode', 'forward-mode'])
@each_case
def test_vectorized_jacobians(case, strategy):
    g, moments, p = columns(case, [(2,)])
    g[0].requires_grad_()

    def step(take, *tensors):
        moved = take(AFFINES['decay after'].around(case.partials()), g, [[m] for m in tensors[:-1]], [tensors[-1]])
        return tuple(flat(moved))

    results = []
    for take in (native, plain):
        inputs = tuple(x.requires_grad_() for x in (*flat(moments), *p))
        rows = torch.autograd.functional.jacobian(
            functools.partial(step, take), inputs, vectorize=True, strategy=strategy
        )
        results.append(flat(rows))
    assert_same(*results, 1e-12)


@pytest.mark.parametrize('strategy', ['reverse-mode', 'forward-mode'])
def test_vectorized_jacobian_of_an_optimizer(strategy):
    """The decay of AdamW is part of it."""
    tx, p = torchopt.adamw(0.1, weight_decay=0.5), draw('~', (3,), 0)

    def update(p):
        return tx.update([torch.sin(p)], tx.init([p]), [p])[0][0]

    def jacobian():
        return torch.autograd.functional.jacobian(update, p, vectorize=True, strategy=strategy)

    found = jacobian()
    with plain_torch():
        wanted = jacobian()
    assert wanted.diagonal().abs().min() > 0.04
    assert_same([found], [wanted], 1e-12)
