# SPDX-License-Identifier: Apache-2.0
"""Fifty steps of every optimizer equal those of torch.optim and of Optax."""

from __future__ import annotations

import pytest
import torch

import torchopt
from tests.cases import CASES as NATIVE, MAXIMIZING, WITHOUT_KERNEL, Case, mixed_tree
from tests.oracle import assert_trees_close, named_entries, run_optax, run_torch, run_torchopt
from torchopt import tree

CASES = NATIVE + WITHOUT_KERNEL
STEPS = 50
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6}
DTYPES = list(TOLERANCE)


def ids(case: Case) -> str:
    return case.name


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('case', [c for c in CASES if c.torch is not None], ids=ids)
def test_equals_torch_optim(case, dtype):
    params = mixed_tree(dtype)
    ours, _ = run_torchopt(case.make(), params, STEPS)
    assert_trees_close(ours, run_torch(case, params, STEPS), TOLERANCE[dtype])


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('case', [c for c in CASES if c.optax is not None], ids=ids)
def test_equals_optax_in_parameters_and_state(case, dtype):
    params = mixed_tree(dtype)
    ours, state = run_torchopt(case.make(), params, STEPS)
    theirs, their_state = run_optax(case.optax(), params, STEPS)
    assert_trees_close(ours, theirs, TOLERANCE[dtype])
    entries, their_entries = named_entries(state), named_entries(their_state)
    common = entries.keys() & their_entries.keys()
    assert their_entries.keys() - common <= {'e_g', 'e_x'}
    if case.alias == 'rmsprop' and 'trace' in common:
        # Optax lets the momentum follow the learning rate, torch and we let it go before.
        entries['trace'] = tree.map(lambda b: -case.options['lr'] * b, entries['trace'])
    for name in common:
        assert_trees_close(entries[name], their_entries[name], TOLERANCE[dtype])


@pytest.mark.parametrize('alias', MAXIMIZING)
def test_maximize_equals_torch_optim(alias):
    case = Case(alias, {'lr': 0.01, 'weight_decay': 0.1, 'maximize': True}, MAXIMIZING[alias])
    params = mixed_tree(torch.float64)
    ours, _ = run_torchopt(case.make(), params, STEPS)
    assert_trees_close(ours, run_torch(case, params, STEPS), 1e-12)


@pytest.mark.parametrize('case', CASES, ids=ids)
def test_in_place_equals_out_of_place_and_reuses_the_state(case):
    params = mixed_tree(torch.float64)
    tx = case.make()
    pure, pure_state = run_torchopt(tx, params, 5)
    state = tx.init(params)
    storage = [m.data_ptr() for m in tree.leaves(state) if m.dim() > 0]
    grads = tree.map(torch.ones_like, params)
    before = tree.map(torch.clone, grads)
    _, new = tx.update(grads, state, params, inplace=True)
    assert [m.data_ptr() for m in tree.leaves(new) if m.dim() > 0] == storage
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(before), tree.leaves(grads)))
    into, into_state = run_torchopt(tx, params, 5, inplace=True)
    for a, b in ((pure, into), (pure_state, into_state)):
        assert all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b)))


@pytest.mark.parametrize('case', CASES, ids=ids)
def test_update_is_pure(case):
    params = mixed_tree(torch.float64)
    tx = case.make()
    state = tx.init(params)
    inputs = (tree.map(torch.ones_like, params), state, params)
    before = tree.map(torch.clone, inputs)
    first = tx.update(*inputs)
    second = tx.update(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(before), tree.leaves(inputs)))
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(first), tree.leaves(second)))


@pytest.mark.parametrize('case', CASES, ids=ids)
def test_none_gradient_leaves_parameter_and_moments_alone(case):
    params = {'a': torch.ones(3, dtype=torch.float64), 'b': torch.ones(2, dtype=torch.float64)}
    tx = case.make()
    state = tx.init(params)
    grads = {'a': torch.ones(3, dtype=torch.float64), 'b': torch.ones(2, dtype=torch.float64)}
    _, state = tx.update(grads, state, params)
    updates, new = tx.update({'a': grads['a'], 'b': None}, state, params)
    assert updates['b'] is None
    kept = [(path, x) for path, x in tree.flatten_with_path(new) if path.endswith("['b']")]
    old = dict(tree.flatten_with_path(state))
    assert all(torch.equal(x, old[path]) for path, x in kept)
    again, _ = tx.update(grads, new, params)
    assert again['b'].isfinite().all()
    assert (again['b'] != 0).all()


@pytest.mark.parametrize('empty', [(), [], {}, {'a': None}], ids=str)
@pytest.mark.parametrize('case', CASES, ids=ids)
def test_empty_trees(case, empty):
    tx = case.make()
    updates, _ = tx.update(empty, tx.init(empty), empty)
    assert torchopt.apply_updates(empty, updates) == empty
