# SPDX-License-Identifier: Apache-2.0
"""Adafactor: against Optax, and what it keeps in factors."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

import torchopt
from tests.cases import FALLING, optax_falling
from tests.oracle import assert_trees_close, run_optax, run_torchopt
from torchopt import alias, transform, tree

F64 = torch.float64
RATE = 'a schedule'  # stands for one

CASES: list[dict[str, Any]] = [
    {},
    {'learning_rate': 0.1},
    {'learning_rate': RATE, 'min_dim_size_to_factor': 3},
    {'learning_rate': 0.1, 'min_dim_size_to_factor': 2, 'momentum': 0.9, 'clipping_threshold': None},
    {'learning_rate': 0.1, 'min_dim_size_to_factor': 2, 'multiply_by_parameter_scale': False, 'decay_rate': 0.5},
    {'learning_rate': 0.1, 'factored': False, 'weight_decay_rate': 0.01, 'eps': 1e-3, 'clipping_threshold': 2.0},
    {
        'learning_rate': 0.1,
        'min_dim_size_to_factor': 2,
        'weight_decay_rate': 0.1,
        'weight_decay_mask': {'matrix': True, 'cube': False, 'vector': True, 'scalar': False, 'wide': [True, False]},
        'decay_offset': -3,
    },
]


def parameters(dtype: torch.dtype) -> Any:
    rng = np.random.default_rng(0)
    shapes: dict[str, Any] = {'matrix': (4, 3), 'cube': (3, 5, 2), 'vector': (6,), 'scalar': ()}
    params = {name: torch.as_tensor(rng.standard_normal(shape)).to(dtype) for name, shape in shapes.items()}
    # The largest dimension first, last, and twice.
    return {**params, 'wide': [torch.as_tensor(rng.standard_normal(s)).to(dtype) for s in ((2, 3, 4), (3, 3))]}


@pytest.mark.parametrize('options', CASES, ids=str)
def test_equals_optax(options: dict[str, Any]) -> None:
    """Parameters and all entries of the state; Optax computes the decay rates in single precision."""
    ours, theirs = dict(options), {**options, 'dtype_momentum': 'float64'}
    if options.get('learning_rate') is RATE:
        ours['learning_rate'], theirs['learning_rate'] = FALLING, optax_falling
    ours['dtype_momentum'] = F64
    params = parameters(F64)
    found, state = run_torchopt(alias.adafactor(**ours), params, 20)
    wanted, their_state = run_optax(optax.adafactor(**theirs), params, 20)
    assert_trees_close(found, wanted, 2e-6)
    assert_trees_close(tree.leaves(state), jax.tree.leaves(their_state), 2e-6)
    for x, y in zip(tree.leaves(state), jax.tree.leaves(their_state)):
        assert tuple(x.shape) == y.shape
    written, _ = run_torchopt(alias.adafactor(**ours), params, 20, inplace=True)
    assert_trees_close(written, found, 1e-12)


def test_arguments_are_optaxs() -> None:
    for ours, theirs in (
        (alias.adafactor, optax.adafactor),
        (transform.scale_by_factored_rms, optax.scale_by_factored_rms),
    ):
        found, wanted = (inspect.signature(f).parameters for f in (ours, theirs))
        assert list(found) == list(wanted)
        for name in set(found) - {'dtype_momentum', 'decay_rate_fn'}:
            assert found[name].default == wanted[name].default
    assert inspect.signature(alias.adafactor).parameters['dtype_momentum'].default == torch.float32


def test_a_matrix_is_kept_in_factors() -> None:
    params = [torch.ones(200, 300), torch.ones(100, 300), torch.ones(500), torch.ones(3, 150, 128)]
    state = transform.scale_by_factored_rms().init(params)
    assert [tuple(x.shape) for x in state.v_row] == [(200,), (1,), (1,), (3, 128)]
    assert [tuple(x.shape) for x in state.v_col] == [(300,), (1,), (1,), (3, 150)]
    assert [tuple(x.shape) for x in state.v] == [(1,), (100, 300), (500,), (1,)]


def test_what_has_rank_one_loses_nothing() -> None:
    """Of squares that are a product of a row and a column, the factors say all."""
    row, col = torch.tensor([1.0, 4.0, 0.5], dtype=F64), torch.tensor([2.0, 3.0], dtype=F64)
    params = torch.zeros(3, 2, dtype=F64)
    tx = [transform.scale_by_factored_rms(factored, min_dim_size_to_factor=2) for factored in (True, False)]
    states = [x.init(params) for x in tx]
    for scale in (1.0, 3.0, 0.2):
        g = scale * row[:, None] * col
        (found, states[0]), (wanted, states[1]) = (x.update(g, s, params) for x, s in zip(tx, states))
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.complex64])
def test_dtypes_and_zeros(dtype: torch.dtype) -> None:
    """In half precision 1e-30 would be zero; zero gradients have zero updates all the same."""
    params = parameters(dtype)
    tx = alias.adafactor(0.1, min_dim_size_to_factor=2)
    state = tx.init(params)
    for scale in (0.0, 1.0, 0.0):
        updates, state = tx.update(tree.map(lambda p, s=scale: s * p, params), state, params)
        assert {u.dtype for u in tree.leaves(updates)} == {dtype}
        assert all(u.isfinite().all() for u in tree.leaves(updates))
        assert all((u == 0).all() == (scale == 0.0) for u in tree.leaves(updates))
    assert not any(v.is_complex() for v in tree.leaves(state[0]))


def test_derivatives_at_zero_are_finite() -> None:
    for factored in (True, False):
        g = torch.tensor([[0.0, 1.0], [0.0, 2.0]], requires_grad=True)
        tx = transform.scale_by_factored_rms(factored, min_dim_size_to_factor=2)
        params = torch.ones(2, 2)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(g, state, params)
        (found,) = torch.autograd.grad(updates.sum(), g)
        assert found.isfinite().all()


def test_messages_and_pickling() -> None:
    tx, p = transform.scale_by_factored_rms(step_offset=5), torch.ones(2)
    with pytest.raises(ValueError, match=r'is 0, less than step_offset=5.*step_offset=0'):
        tx.update(p, tx.init(p), p)
    with pytest.raises(ValueError, match='Parameters are required for factored second moments'):
        tx.update(p, tx.init(p))
    with pytest.raises(ValueError, match='expected a FactoredState'):
        tx.update(p, torchopt.base.EmptyState(), p)
    with pytest.raises(ValueError, match='epsilon'):
        alias.adafactor(eps=-1.0)
    again = pickle.loads(pickle.dumps(alias.adafactor(0.1)))
    found, wanted = (run_torchopt(x, parameters(F64), 3)[0] for x in (again, alias.adafactor(0.1)))
    assert_trees_close(found, wanted, 1e-15)


def test_a_learned_rate_has_its_gradient() -> None:
    params = parameters(F64)

    def final(rate: torch.Tensor) -> torch.Tensor:
        found, _ = run_torchopt(alias.adafactor(rate, min_dim_size_to_factor=2), params, 3)
        return sum(p.square().sum() for p in tree.leaves(found))

    rate, h = torch.tensor(0.05, dtype=F64, requires_grad=True), 1e-6
    (found,) = torch.autograd.grad(final(rate), rate)
    with torch.no_grad():
        exact = (final(rate + h) - final(rate - h)) / (2 * h)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)
