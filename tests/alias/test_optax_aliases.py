# SPDX-License-Identifier: Apache-2.0
"""The optimizers that only Optax has: 20 steps, states, signatures."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from tests.cases import FALLING, mixed_tree, optax_falling
from tests.oracle import assert_close_by_dtype, assert_trees_close, run_optax, run_torchopt
from torchopt import alias

F64 = torch.float64


RATE = object()  # stands for a schedule

# name, arguments after the rate, whether Optax copes with 0-d leaves
CASES: list[tuple[str, Any, dict[str, Any], bool]] = [
    ('adamaxw', 0.1, {}, True),
    ('adamaxw', RATE, {'b1': 0.5, 'b2': 0.8, 'weight_decay': 0.3}, True),
    ('adan', 0.1, {}, True),
    ('adan', RATE, {'b1': 0.5, 'b3': 0.8, 'weight_decay': 0.3}, True),
    ('fromage', 0.1, {}, True),
    ('fromage', RATE, {'min_norm': 0.5}, True),
    ('lamb', 0.1, {}, True),
    ('lamb', RATE, {'b2': 0.9, 'eps_root': 0.1, 'weight_decay': 0.3}, True),
    ('lars', 0.1, {'trust_coefficient': 0.3}, True),
    ('lars', RATE, {'weight_decay': 0.1, 'eps': 0.1, 'trust_coefficient': 0.5, 'nesterov': True}, True),
    (
        'lars',
        0.1,
        {'trust_ratio_mask': {'double': {'encoder': [True, False], 'scale': False, 'head': True}, 'single': True}},
        True,
    ),
    ('noisy_sgd', 0.1, {'eta': 0.0, 'key': 0}, True),
    ('novograd', 0.1, {}, True),
    ('novograd', RATE, {'b1': 0.5, 'weight_decay': 0.2}, True),
    ('optimistic_gradient_descent', 0.1, {}, True),
    ('optimistic_gradient_descent', RATE, {'alpha': 0.7, 'beta': 0.2}, True),
    ('optimistic_adam_v2', 0.1, {}, True),
    ('optimistic_adam_v2', RATE, {'alpha': 0.7, 'beta': 0.2, 'b1': 0.5, 'nesterov': False}, True),
    ('rprop', 0.1, {}, True),
    ('rprop', 0.1, {'eta_minus': 0.3, 'max_step_size': 0.2}, True),
    ('sign_sgd', 0.1, {}, True),
    ('signum', 0.1, {}, True),
    ('signum', RATE, {'beta': 0.5}, True),
    ('sm3', 0.1, {}, False),
    ('sm3', 0.1, {'momentum': 0.5}, False),
]
each_case = pytest.mark.parametrize(
    ('name', 'rate', 'options', 'scalars'), CASES, ids=lambda x: x if isinstance(x, str) else ''
)


def entries(state: Any) -> dict[str, Any]:
    """All entries of a state by name, without those that have no leaves."""
    found: dict[str, Any] = {}
    if isinstance(state, tuple):
        for member in state:
            found |= entries(member)
        for name in getattr(state, '_fields', ()):
            value = getattr(state, name)
            if not hasattr(value, '_fields') and jax.tree.leaves(value):
                found[name] = value
    return found


@each_case
def test_equals_optax(name: str, rate: Any, options: dict[str, Any], scalars: bool) -> None:
    """In both dtypes at once, parameters and state, in place too; and once more when pickled."""
    params: Any = {'double': mixed_tree(F64), 'single': mixed_tree(torch.float32)}
    if not scalars:
        params = {key: {**part, 'scale': part['scale'].reshape(1)} for key, part in params.items()}
    ours = getattr(alias, name)(FALLING if rate is RATE else rate, **options)
    theirs = getattr(optax, name)(optax_falling if rate is RATE else rate, **options)
    found, state = run_torchopt(ours, params, 20)
    wanted, their_state = run_optax(theirs, params, 20)
    assert_close_by_dtype(found, wanted)
    states, their_states = entries(state), entries(their_state)
    assert states.keys() == their_states.keys()
    for key in states.keys() - {'rng_key'}:
        assert_close_by_dtype(states[key], their_states[key])
    written, _ = run_torchopt(ours, params, 20, inplace=True)
    assert_close_by_dtype(written, found)
    if rate is not RATE:
        again = pickle.loads(pickle.dumps(ours))
        assert_trees_close(run_torchopt(again, params, 3)[0], run_torchopt(ours, params, 3)[0], 1e-14)


@pytest.mark.parametrize('name', sorted({name for name, *_ in CASES} | {'optimistic_adam', 'polyak_sgd'}))
def test_arguments_are_optaxs(name: str) -> None:
    def arguments(function: Any) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    newer = {'weight_decay', 'weight_decay_mask'} if name == 'adabelief' else set()  # than the Optax installed
    own = [argument for argument in arguments(getattr(alias, name)) if argument[0] not in newer]
    assert own == arguments(getattr(optax, name))


def test_the_old_optimistic_adam() -> None:
    params = mixed_tree(F64)
    for options in ({}, {'optimism': 0.3, 'nesterov': False}):
        with pytest.warns(DeprecationWarning, match='optimistic_adam_v2'):
            ours = alias.optimistic_adam(0.1, **options)
        with pytest.warns(DeprecationWarning):
            theirs = optax.optimistic_adam(0.1, **options)
        assert_trees_close(run_torchopt(ours, params, 20)[0], run_optax(theirs, params, 20)[0], 1e-8)
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match='schedule'):
        alias.optimistic_adam(lambda t: 0.1)


@pytest.mark.parametrize(
    'options', [{}, {'scaling': 0.5, 'eps': 0.1}, {'max_learning_rate': 0.3, 'variant': 'sps+', 'f_min': 0.1}], ids=str
)
def test_polyak_equals_optax(options: dict[str, Any]) -> None:
    ours, theirs = alias.polyak_sgd(**options), optax.polyak_sgd(**options)
    p = torch.tensor([1.0, -2.0, 0.3], dtype=F64)
    q = jnp.asarray(p.numpy())
    state, their_state = ours.init([p]), theirs.init([q])
    for _ in range(20):
        (u,), state = ours.update([p**3], state, [p], value=(p**4).sum() / 4)
        (v,), their_state = theirs.update([q**3], their_state, [q], value=(q**4).sum() / 4)
        p, q = p + u, q + v
    np.testing.assert_allclose(p.numpy(), np.asarray(q), rtol=1e-8)


@pytest.mark.parametrize('name', sorted({name for name, *_ in CASES} - {'sm3', 'rprop'}))
def test_a_learned_rate_has_its_gradient(name: str) -> None:
    start = torch.tensor([[0.5, -1.0], [2.0, 0.1]], dtype=F64)

    def final(rate: torch.Tensor) -> torch.Tensor:
        tx = getattr(alias, name)(rate)
        params = [start]
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update([params[0].cos()], state, params)
            params = [params[0] + updates[0]]
        return params[0].square().sum()

    rate = torch.tensor(0.05, dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(final(rate), rate)
    h = 1e-6
    exact = (final(torch.tensor(0.05 + h, dtype=F64)) - final(torch.tensor(0.05 - h, dtype=F64))) / (2 * h)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-7)


def test_fromage_keeps_plain_training_free_of_graphs() -> None:
    weights = torch.ones(3, requires_grad=True)
    for name in ('fromage', 'lars', 'lamb', 'novograd'):
        tx = getattr(alias, name)(0.1)
        updates, _ = tx.update([torch.ones(3)], tx.init([weights]), [weights])
        assert not updates[0].requires_grad
    with pytest.raises(ValueError, match='Parameters are required'):
        tx = alias.fromage(0.1)
        tx.update([torch.ones(3)], tx.init([weights]))
