# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters that are float32 tensors, beside parameters in double precision: nothing is rounded to float32."""

from __future__ import annotations

import pytest
import torch

import torchopt
from torchopt import alias, contrib, tree

F32, F64 = torch.float32, torch.float64


def number(x):
    return torch.tensor(x, dtype=F32)


# Each with some number at which products of two coefficients are no numbers of float32.
MADE = {
    'sgd, decay': lambda x: torchopt.sgd(0.1, weight_decay=x(0.3)),
    'sgd, decay and rate': lambda x: torchopt.sgd(x(0.1), weight_decay=x(0.3)),
    'sgd, momentum': lambda x: torchopt.sgd(0.1, momentum=x(0.9), dampening=x(0.3), nesterov=False),
    'sgd, nesterov': lambda x: torchopt.sgd(0.1, momentum=x(0.9), nesterov=True),
    'adam': lambda x: torchopt.adam(0.1, betas=(x(0.9), x(0.99)), eps=x(1e-3)),
    'adam, eps_root': lambda x: torchopt.adam(0.1, eps=x(1e-3), eps_root=x(1e-2)),
    'adamw': lambda x: torchopt.adamw(0.1, weight_decay=x(0.3)),
    'nadam': lambda x: torchopt.nadam(0.1, b1=x(0.9), b2=x(0.99), eps=x(1e-3)),
    'radam': lambda x: torchopt.radam(0.1, betas=(x(0.9), x(0.9)), eps=x(1e-3)),
    'amsgrad': lambda x: torchopt.amsgrad(0.1, b1=x(0.9), b2=x(0.99), eps=x(1e-3)),
    'adabelief': lambda x: torchopt.adabelief(0.1, b1=x(0.9), b2=x(0.99), eps=x(1e-3)),
    'yogi': lambda x: torchopt.yogi(0.1, b1=x(0.9), b2=x(0.99), eps=x(1e-3)),
    'adamax': lambda x: torchopt.adamax(0.1, betas=(x(0.9), x(0.99)), eps=x(1e-3)),
    'rmsprop': lambda x: torchopt.rmsprop(0.1, alpha=x(0.9), eps=x(1e-3), momentum=x(0.7)),
    'adadelta': lambda x: torchopt.adadelta(0.1, rho=x(0.9), eps=x(1e-3)),
    'adagrad': lambda x: torchopt.adagrad(0.1, eps=x(1e-3)),
    'lion': lambda x: torchopt.lion(0.1, b1=x(0.9), b2=x(0.99), weight_decay=x(0.3)),
    'adan': lambda x: alias.adan(0.1, b1=x(0.9), b2=x(0.8), b3=x(0.7)),
    'fromage': lambda x: alias.fromage(x(0.1)),
    'optimistic_gradient_descent': lambda x: alias.optimistic_gradient_descent(0.1, x(0.3), x(0.7)),
    'madgrad': lambda x: contrib.madgrad(0.1, momentum=x(0.9), eps=x(1e-3)),
    'ademamix': lambda x: contrib.ademamix(0.1, b1=x(0.9), b2=x(0.99)),
}


def train(tx):
    params = [torch.linspace(-1.0, 1.0, 5, dtype=F64), torch.tensor(0.3, dtype=F64)]
    state = tx.init(params)
    for t in range(4):
        grads = tree.map(lambda p, t=t: torch.sin(3.0 * p + t), params)
        updates, state = tx.update(grads, state, params)
        params = torchopt.apply_updates(params, updates)
    return params


@pytest.mark.parametrize('learned', [False, True])
@pytest.mark.parametrize('make', MADE.values(), ids=MADE)
def test_tensors_in_float32_do_as_the_same_numbers(make, learned):
    found = train(make(lambda x: number(x).requires_grad_(learned)))
    wanted = train(make(lambda x: number(x).item()))
    torch.testing.assert_close(tree.map(torch.Tensor.detach, found), wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize('kind', [number, lambda x: number(x).requires_grad_()], ids=['tensors', 'learned'])
def test_trees_of_tensors(kind):
    found = train(torchopt.adamw([0.1, kind(0.2)], weight_decay=[kind(0.3), 0.4], eps=[kind(1e-3), 1e-2]))
    exact = [number(x).item() for x in (0.2, 0.3, 1e-3)]
    wanted = train(torchopt.adamw([0.1, exact[0]], weight_decay=[exact[1], 0.4], eps=[exact[2], 1e-2]))
    torch.testing.assert_close(tree.map(torch.Tensor.detach, found), wanted, rtol=1e-13, atol=1e-14)
