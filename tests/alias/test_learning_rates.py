# SPDX-License-Identifier: Apache-2.0
"""Every schedule is a learning rate of every optimizer, and so are numbers, tensors and functions of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import torchopt
from torchopt import schedule, tree

TWO_VOCABULARIES = ['sgd', 'adam', 'adamw', 'adamax', 'adadelta', 'adagrad', 'radam', 'rmsprop']
OPTIMIZERS = TWO_VOCABULARIES + ['nadam', 'nadamw', 'amsgrad', 'lion', 'yogi', 'adabelief']
RATES = {
    'constant': schedule.constant_schedule(0.3),
    'linear': schedule.linear_schedule(0.5, 0.1, 3, 1),
    'polynomial': schedule.polynomial_schedule(0.5, 0.1, 2.0, 4),
    'exponential': schedule.exponential_decay(0.5, 0.8, transition_steps=2, staircase=True, end_value=0.1),
    'inverse time': schedule.inverse_time_decay(0.5, 0.1),
    'piecewise': schedule.piecewise_constant_schedule(0.5, {2: 0.5, 4: 0.1}),
    'cosine': schedule.cosine_decay_schedule(0.5, 5, alpha=0.1),
    'warmup cosine': schedule.warmup_cosine_decay_schedule(0.0, 0.5, 2, 6),
    'warmup': schedule.warmup_constant_schedule(0.0, 0.5, 3),
    'joined': schedule.join_schedules([schedule.constant_schedule(0.5), schedule.linear_schedule(0.5, 0.0, 3)], [2]),
    'a function of one integer': lambda count: 0.5 / (1 + int(count)),
    'a function with math': lambda count: 0.5 * math.cos(0.1 * count),
    'a function with torch': lambda count: 0.5 * torch.cos(0.1 * count.double()),
    'a number': 0.3,
    'a NumPy number': np.float64(0.3),
    'a tensor': torch.tensor(0.3, dtype=torch.float64),
    'a learned tensor': torch.tensor(0.3, dtype=torch.float64, requires_grad=True),
}


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('rate', RATES.values(), ids=RATES)
def test_updates_are_those_of_rate_one_times_the_rate(name, rate):
    """The rate is the last factor of every update, taken at the number of steps before it."""
    params = {'w': torch.tensor([1.0, -2.0], dtype=torch.float64), 'b': torch.tensor(0.5, dtype=torch.float64)}
    scaled, one = getattr(torchopt, name)(rate), getattr(torchopt, name)(1.0)
    state, state_of_one = scaled.init(params), one.init(params)
    for step in range(8):
        grads = tree.map(lambda p, step=step: (p + step).cos(), params)
        updates, state = scaled.update(grads, state, params)
        base, state_of_one = one.update(grads, state_of_one, params)
        value = (
            rate(torch.tensor(step))
            if torchopt.checks.is_schedule(rate)
            else torch.as_tensor(rate, dtype=torch.float64).detach()
        )
        wanted = tree.map(lambda u, value=value: u * float(value), base)
        for key in params:
            torch.testing.assert_close(updates[key].detach(), wanted[key], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize('name', TWO_VOCABULARIES)
def test_both_vocabularies(name):
    params = [torch.tensor([1.0, -2.0], dtype=torch.float64)]
    factory = getattr(torchopt, name)
    seconds = {'learning_rate': 0.3}
    firsts = {'lr': 0.3}
    if name in {'adam', 'adamw', 'adamax', 'radam'}:
        seconds.update(b1=0.5, b2=0.7)
        firsts.update(betas=(0.5, 0.7))
    if name == 'rmsprop':
        seconds.update(decay=0.7)
        firsts.update(alpha=0.7)
    ours, theirs = factory(**firsts), factory(**seconds)
    states = ours.init(params), theirs.init(params)
    for _ in range(3):
        (u, s), (v, t) = (tx.update(params, state, params) for tx, state in zip((ours, theirs), states))
        states = s, t
    assert torch.equal(u[0], v[0])
    with pytest.raises(TypeError, match="both 'lr' and 'learning_rate'"):
        factory(lr=0.1, learning_rate=0.1)
    with pytest.raises(TypeError, match='learning_rate'):
        factory(0.1, learning_rate=0.1)


@pytest.mark.parametrize(
    'make',
    [
        lambda v: torchopt.rmsprop(0.1, initial_scale=v),
        lambda v: torchopt.rmsprop(0.1, initial_scale=v, centered=True, momentum=0.5),
        lambda v: torchopt.adagrad(0.1, initial_accumulator_value=v),
    ],
)
def test_a_learned_start_of_a_moment_has_its_gradient(make: Callable[[Any], torchopt.GradientTransformation]) -> None:
    params = [torch.tensor([1.0, -2.0], dtype=torch.float64)]

    def steps(start: Any) -> torch.Tensor:
        transform = make(start)
        state, total = transform.init(params), torch.zeros((), dtype=torch.float64)
        for scale in (1.0, 0.5):
            updates, state = transform.update([scale * params[0].sin()], state, params)
            total = total + updates[0].square().sum()
        return total

    start = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(steps, start)
    torch.testing.assert_close(steps(start), steps(0.3))
    torch.testing.assert_close(torch.func.grad(steps)(start.detach()), torch.autograd.grad(steps(start), start)[0])
