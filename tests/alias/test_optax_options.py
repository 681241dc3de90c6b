# SPDX-License-Identifier: Apache-2.0
"""Options of Optax: weight decay by a schedule, and RMSProp with corrected means."""

from __future__ import annotations

import inspect
import math
from typing import Any

import optax
import pytest
import torch

import torchopt
from tests._C.cases import plain_torch
from tests.cases import mixed_tree
from tests.oracle import assert_trees_close, named_entries, run_optax, run_torchopt
from torchopt import schedule, transform

F64 = torch.float64
FALLING = schedule.polynomial_schedule(0.5, 0.1, 2.0, 12)


def falling(count: Any) -> Any:
    return optax.polynomial_schedule(0.5, 0.1, 2.0, 12)(count.astype(float))


MASK = {'encoder': [True, False], 'scale': True, 'head': False}
DECAYING = {
    'adamw': (lambda **o: torchopt.adamw(0.1, **o), lambda **o: optax.adamw(0.1, **o)),
    'nadamw': (lambda **o: torchopt.nadamw(0.1, **o), lambda **o: optax.nadamw(0.1, **o)),
    'lion': (lambda **o: torchopt.lion(0.02, **o), lambda **o: optax.lion(0.02, **o)),
    'sgd': (
        lambda **o: torchopt.chain(transform.add_decayed_weights(**o), torchopt.sgd(0.1)),
        lambda **o: optax.chain(optax.add_decayed_weights(**o), optax.sgd(0.1)),
    ),
}


@pytest.mark.parametrize('mask', [None, MASK], ids=['everywhere', 'masked'])
@pytest.mark.parametrize('name', DECAYING)
def test_decay_by_a_schedule_equals_optax(name: str, mask: Any) -> None:
    ours, theirs = DECAYING[name]
    params = mixed_tree(F64)
    found, state = run_torchopt(ours(weight_decay=FALLING, mask=mask), params, 20)
    wanted, their_state = run_optax(theirs(weight_decay=falling, mask=mask), params, 20)
    assert_trees_close(found, wanted, 1e-12)
    assert [int(x) for x in counts(state)] == [int(x) for x in counts(their_state)]
    assert int(named_entries(state)['count']) == 20
    with plain_torch():
        assert_trees_close(run_torchopt(ours(weight_decay=FALLING, mask=mask), params, 20)[0], wanted, 1e-12)


def counts(state: Any) -> list[Any]:
    """All counts in a state, in their order."""
    if not isinstance(state, tuple):
        return []
    own = [state.count] if 'count' in getattr(state, '_fields', ()) else []
    return own + [x for member in state for x in counts(member)]


@pytest.mark.parametrize('name', ['sgd', 'adam', 'rmsprop', 'adagrad', 'adadelta', 'radam', 'adamax'])
def test_the_l2_penalty_may_follow_a_schedule_too(name: str) -> None:
    params = mixed_tree(F64)
    tx = getattr(torchopt, name)(lr=0.1, weight_decay=FALLING)
    apart = torchopt.chain(transform.add_decayed_weights(FALLING), getattr(torchopt, name)(lr=0.1))
    constant = getattr(torchopt, name)(lr=0.1, weight_decay=lambda t: 0.3)
    assert_trees_close(run_torchopt(tx, params, 5)[0], run_torchopt(apart, params, 5)[0], 1e-14)
    wanted = run_torchopt(getattr(torchopt, name)(lr=0.1, weight_decay=0.3), params, 5)[0]
    assert_trees_close(run_torchopt(constant, params, 5)[0], wanted, 1e-14)


@pytest.mark.parametrize('mask', [None, [True]])
def test_a_decay_that_is_no_number_is_refused_before_anything_is_changed(mask: Any) -> None:
    tx = torchopt.chain(torchopt.sgd(0.1, 0.9), transform.add_decayed_weights(lambda t: math.nan, mask))
    params = [torch.tensor([1.0, 2.0])]
    state = tx.init(params)
    with pytest.raises(ValueError, match='schedule returned nan at step 0'):
        tx.update([torch.ones(2)], state, params, inplace=True)
    assert not state[0].trace[0].any()
    decay = transform.add_decayed_weights(FALLING, mask)
    with pytest.raises(ValueError, match='Parameters are required for weight decay'):
        decay.update([torch.ones(2)], decay.init(params))
    with pytest.raises(ValueError, match='WeightDecaySchedule' if mask is None else 'MaskedState'):
        decay.update([torch.ones(2)], torchopt.base.EmptyState(), params)
    chained = torchopt.chain(decay, torchopt.sgd(0.1))
    with pytest.raises(ValueError, match='WeightDecaySchedule' if mask is None else 'MaskedState'):
        chained.update([torch.ones(2)], (torchopt.base.EmptyState(), torchopt.base.EmptyState()), params)


def test_a_learned_decay_by_a_schedule() -> None:
    weight = torch.tensor(0.5, dtype=F64, requires_grad=True)
    params = [torch.tensor([1.0, 2.0], dtype=F64)]
    tx = torchopt.adamw(1.0, weight_decay=lambda t: weight / (t + 1))
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    updates, _ = tx.update(params, state, params)
    (gradient,) = torch.autograd.grad(updates[0].sum(), weight)
    torch.testing.assert_close(gradient, torch.tensor(-1.5, dtype=F64))


RMSPROP = {
    'plain': {},
    'eps outside the root': {'eps_in_sqrt': False, 'eps': 1e-3},
    'centered': {'centered': True, 'eps': 1e-2},
    'with momentum': {'momentum': 0.8, 'initial_scale': 0.2},
}


@pytest.mark.parametrize('dtype', [F64, torch.float32], ids=str)
@pytest.mark.parametrize('name', RMSPROP)
def test_rmsprop_with_corrected_means_equals_optax(name: str, dtype: torch.dtype) -> None:
    options = RMSPROP[name]
    params = mixed_tree(dtype)
    ours = torchopt.rmsprop(0.01, 0.9, bias_correction=True, **{'eps_in_sqrt': True, **options})
    theirs = optax.rmsprop(0.01, 0.9, bias_correction=True, **options)
    found, state = run_torchopt(ours, params, 20)
    # In single precision Optax loses digits of the centered mean, more than the tolerance.
    wanted, their_state = run_optax(theirs, mixed_tree(F64), 20)
    tolerance = 1e-12 if dtype == F64 else 1e-5
    assert_trees_close(found, wanted, tolerance)
    entries, their_entries = named_entries(state), named_entries(their_state)
    for entry in ('nu', *(['mu'] if 'centered' in options else [])):
        assert_trees_close(entries[entry], their_entries[entry], tolerance)


def test_nothing_is_corrected_by_default() -> None:
    for factory in (torchopt.rmsprop, transform.scale_by_rms, transform.scale_by_stddev):
        assert inspect.signature(factory).parameters['bias_correction'].default is False


@pytest.mark.parametrize('options', [{}, {'centered': True}], ids=['plain', 'centered'])
def test_derivatives_of_corrected_means(options: Any) -> None:
    def final(g: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        tx = torchopt.rmsprop(0.1, alpha, eps=1e-2, bias_correction=True, **options)
        state = tx.init([g])
        for factor in (1.0, -2.0, 0.5):
            updates, state = tx.update([factor * g.sin()], state)
        return updates[0]

    g = torch.tensor([0.3, -1.2, 0.7], dtype=F64, requires_grad=True)
    alpha = torch.tensor(0.8, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(final, (g, alpha), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(final, (g, alpha))
