# SPDX-License-Identifier: Apache-2.0
"""The table of methods in place, under transforms, compiled, differentiated, with missing gradients, and saved."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import torchopt
from tests.contrib.contrib_cases import OURS, ROWS, THEIRS, Row, run_ours
from tests.oracle import assert_trees_close
from torchopt import tree

F64 = torch.float64
START = [[0.5, -1.0], [2.0, 0.1]]


def rows(which: Any) -> Any:
    """Rows with some properties."""
    return pytest.mark.parametrize('row', [row for row in ROWS if which(row)], ids=str)


def whole(row: Row) -> bool:
    """Whether it is an optimizer that takes every tree, and no part of one that does."""
    return row.whole and not row.name.startswith('scale_by')


def run_steps(tx: Any, params: Any, steps: int, value: bool = False) -> Any:
    state = tx.init(params)
    for t in range(steps):
        grads = tree.map(lambda p, t=t: torch.cos(3.0 * p + t), params)
        extra = {'value': tree.norm(params, squared=True) + 1.0} if value else {}
        updates, state = tx.update(grads, state, params, **extra)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params


@pytest.mark.parametrize('row', ROWS, ids=str)
def test_in_place_is_the_same(row: Row) -> None:
    params = row.params(F64)
    pure, state = run_ours(row.make(OURS), params, 5, value=row.value)
    written, written_state = run_ours(row.make(OURS), params, 5, value=row.value, inplace=True)
    assert_trees_close(written, pure, 1e-13)
    assert_trees_close([*tree.leaves(written_state), torch.ones(1)], [*tree.leaves(state), torch.ones(1)], 1e-13)


@pytest.mark.parametrize('row', ROWS, ids=str)
def test_the_caller_keeps_what_it_passed(row: Row) -> None:
    """Out of place nothing is written to, and the state holds no alias of the parameters."""
    params = row.params(F64)
    before = tree.map(torch.clone, params)
    tx = row.make(OURS)
    state = tx.init(params)
    kept = [x.clone() for x in tree.leaves(state)]
    extra = {'value': torch.tensor(2.0)} if row.value else {}
    grads = tree.map(torch.cos, params)
    tx.update(grads, state, params, **extra)
    assert all(map(torch.equal, tree.leaves(state), kept))
    tree.map(lambda p: p.zero_(), params)
    assert all(map(torch.equal, tree.leaves(state), kept))
    assert all(map(torch.equal, tree.leaves(grads), tree.leaves(tree.map(torch.cos, before))))


@rows(whole)
def test_vmap(row: Row) -> None:
    """Two problems at once are each one alone; the state is mapped over as a whole."""
    tx = row.make(OURS)
    few = torch.tensor(START, dtype=F64)
    both = torch.stack([few, 3.0 * few.flip(0)])
    together = torch.func.vmap(lambda p: run_steps(tx, {'w': p}, 4, row.value)['w'])(both)
    for i in range(2):
        assert_trees_close([together[i]], [run_steps(tx, {'w': both[i]}, 4, row.value)['w']], 1e-9)


@rows(lambda row: row.first and row.whole)
def test_compile_without_graph_breaks(row: Row) -> None:
    torch.compiler.reset()
    tx = row.make(OURS)
    params = {'w': torch.tensor(START, dtype=F64), 'b': torch.tensor([0.3, -0.7], dtype=F64)}
    state = tx.init(params)

    @torch.compile(fullgraph=True, backend='eager')
    def compiled(grads: Any, state: Any, params: Any, extra: Any) -> Any:
        return tx.update(grads, state, params, **extra)

    own = state
    for t in range(2):
        grads = tree.map(lambda p, t=t: torch.cos(3.0 * p + t), params)
        extra = {'value': tree.norm(params, squared=True) + 1.0} if row.value else {}
        updates, state = compiled(grads, state, params, extra)
        wanted, own = tx.update(grads, own, params, **extra)
        assert_trees_close(updates, wanted, 1e-9)
        params = torchopt.apply_updates(params, wanted, inplace=False)


@pytest.mark.long
@pytest.mark.parametrize('row', [row for row in ROWS if 'axes' in row.name or row.name == 'scale_by_muon'], ids=str)
def test_compile_with_dimension_numbers(row: Row) -> None:
    torch.compiler.reset()
    tx, params = row.make(OURS), row.params(F64)
    state = tx.init(params)
    compiled = torch.compile(tx.update, fullgraph=True, backend='eager')
    assert_trees_close(compiled(params, state, params)[0], tx.update(params, state, params)[0], 1e-9)


@rows(whole)
def test_meta_gradients(row: Row) -> None:
    """Derivatives of a few steps in where they start: by torch.func.grad, autograd and finite differences."""
    tx = row.make(OURS)
    start = torch.tensor(START, dtype=F64)

    def final(p: torch.Tensor) -> torch.Tensor:
        return run_steps(tx, {'w': p}, 3, row.value)['w'].square().sum()

    by_func = torch.func.grad(final)(start)
    leaf = (start * 1.0).requires_grad_()
    (by_autograd,) = torch.autograd.grad(final(leaf * 1.0), leaf)
    torch.testing.assert_close(by_func, by_autograd, rtol=1e-9, atol=1e-10)
    direction = torch.tensor([[0.3, -0.2], [0.5, 0.7]], dtype=F64)
    h = 1e-6
    exact = (final(start + h * direction) - final(start - h * direction)) / (2 * h)
    torch.testing.assert_close((by_func * direction).sum(), exact, rtol=1e-5, atol=1e-6)


@rows(lambda row: whole(row) and row.by_jax and row.twin and row.first)
def test_meta_gradients_are_those_of_jax(row: Row) -> None:
    ours, theirs = row.make(OURS), row.make(THEIRS)

    def final(p: torch.Tensor) -> torch.Tensor:
        return run_steps(ours, {'w': p}, 3, row.value)['w'].square().sum()

    def their_final(p: Any) -> Any:
        params = {'w': p}
        state = theirs.init(params)
        for t in range(3):
            grads = {'w': jnp.cos(3.0 * params['w'] + t)}
            extra = {'value': (params['w'] ** 2).sum() + 1.0} if row.value else {}
            updates, state = theirs.update(grads, state, params, **extra)
            params = {'w': params['w'] + updates['w']}
        return (params['w'] ** 2).sum()

    found = torch.func.grad(final)(torch.tensor(START, dtype=F64))
    wanted = np.asarray(jax.grad(their_final)(jnp.asarray(START)))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=row.double, atol=row.double)


@rows(lambda row: row.whole and row.local)
def test_missing_gradients_leave_parameters_alone(row: Row) -> None:
    tx = row.make(OURS)
    params = {'b': torch.ones(2, 2, dtype=F64), 'w': torch.tensor(START, dtype=F64)}
    alone = {'w': params['w']}
    state, own = tx.init(params), tx.init(alone)
    first = state
    extra = {'value': torch.tensor(3.0, dtype=F64)} if row.value else {}
    for t in range(4):
        g = torch.cos(params['w'] + t)
        updates, state = tx.update({'b': None, 'w': g}, state, params, **extra)
        wanted, own = tx.update({'w': g}, own, alone, **extra)
        assert updates['b'] is None
        torch.testing.assert_close(updates['w'], wanted['w'])
    at_b = [x for path, x in tree.flatten_with_path(state) if "['b']" in path]
    at_first = [x for path, x in tree.flatten_with_path(first) if "['b']" in path]
    assert len(at_b) == len(at_first)
    assert all(torch.equal(x, y) for x, y in zip(at_b, at_first))


@pytest.mark.parametrize('row', ROWS, ids=str)
def test_pickle_copy_and_save(row: Row) -> None:
    tx = row.make(OURS)
    params = row.params(F64)
    _, state = run_ours(tx, params, 2, value=row.value)
    again = copy.deepcopy(pickle.loads(pickle.dumps(tx)))
    assert repr(again) == repr(tx)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = copy.deepcopy(torch.load(file, weights_only=True))
    extra = {'value': torch.tensor(3.0)} if row.value else {}
    found, wanted = (t.update(params, s, params, **extra)[0] for t, s in ((again, loaded), (tx, state)))
    assert_trees_close(found, wanted, 1e-14)


@rows(lambda row: row.first)
def test_plain_training_grows_no_graph(row: Row) -> None:
    """Weights that require grad, gradients without a graph: neither updates nor states carry one."""
    params = tree.map(lambda p: p.requires_grad_(), row.params(torch.float32))
    start = tree.map(lambda p: p.detach().clone(), params)
    tx = row.make(OURS)
    state = tx.init(params)
    for step in range(3):
        grads = tree.map(lambda p, s=step: torch.cos(p.detach() + s), params)
        extra = {'value': tree.norm(params)} if row.value else {}  # as people pass the loss, with its graph
        updates, state = tx.update(grads, state, params, **extra)
        assert not any(x.requires_grad for x in [*tree.leaves(updates), *tree.leaves(state)])
        params = torchopt.apply_updates(params, updates)
    assert all(p.is_leaf and p.requires_grad for p in tree.leaves(params))
    assert any(not torch.equal(p.detach(), q) for p, q in zip(tree.leaves(params), tree.leaves(start)))


@rows(lambda row: row.first)
def test_the_state_of_another_is_refused(row: Row) -> None:
    params = row.params(F64)
    tx = row.make(OURS)
    if not tree.leaves(tx.init(params)):
        return
    with pytest.raises((ValueError, TypeError), match='state'):
        tx.update(params, torchopt.adagrad(0.1).init(params)[0], params, **({'value': 1.0} if row.value else {}))


@rows(lambda row: row.first)
def test_half_precision_keeps_its_dtype(row: Row) -> None:
    params = {'w': torch.ones(3, 2, dtype=torch.bfloat16)} if row.whole else row.params(torch.bfloat16)
    tx = row.make(OURS)
    state = tx.init(params)
    extra = {'value': 1.0} if row.value else {}
    updates, new = tx.update(params, state, params, **extra)
    assert {u.dtype for u in tree.leaves(updates)} == {torch.bfloat16}
    assert [x.dtype for x in tree.leaves(new)] == [x.dtype for x in tree.leaves(state)]
    assert all(u.isfinite().all() for u in tree.leaves(updates))


@rows(lambda row: row.whole and row.first)
def test_the_object_faces_take_the_same_steps(row: Row) -> None:
    """``Optimizer`` in place, ``MetaOptimizer``'s way out of place, and the functional face."""
    if row.value:
        return
    params = row.params(F64)
    wanted = run_steps(row.make(OURS), params, 3)
    leaves, spec = tree.flatten(params)
    weights = [p.clone().requires_grad_() for p in leaves]
    optimizer = torchopt.Optimizer(weights, row.make(OURS))
    functional = torchopt.FuncOptimizer(row.make(OURS))
    moved = tuple(p.clone() for p in leaves)
    for t in range(3):
        loss = sum(torch.sin(3.0 * p + t).sum() / 3.0 for p in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved = tuple(p.detach().requires_grad_() for p in moved)
        moved = functional.step(sum(torch.sin(3.0 * p + t).sum() / 3.0 for p in moved), moved)
    assert_trees_close(tree.unflatten(spec, [p.detach() for p in weights]), wanted, 1e-9)
    assert_trees_close(tree.unflatten(spec, [p.detach() for p in moved]), wanted, 1e-9)


@rows(lambda row: row.first)
def test_copies_of_the_parameters_in_a_state_are_found(row: Row) -> None:
    """``tree.map_params`` changes all that has the structure of the parameters, and nothing else."""
    params = row.params(F64)
    tx = row.make(OURS)
    state = tx.init(params)
    moved = tree.map_params(tx, lambda x: x + 1.0, state)
    assert tree.structure(moved) == tree.structure(state)
    names = {f"['{name}']" for name in params}
    for (path, x), y in zip(tree.flatten_with_path(moved), tree.leaves(state)):
        assert torch.equal(x, y + 1.0 if any(name in path for name in names) else y), path


@rows(whole)
def test_no_step_waits_for_a_device(row: Row) -> None:
    """Tensors without data: who read a value from them would fail."""
    params = {'w': torch.empty(3, 2, device='meta'), 'b': torch.empty(4, device='meta')}
    tx = row.make(OURS)
    state = tx.init(params)
    extra = {'value': torch.empty((), device='meta')} if row.value else {}
    for _ in range(3):
        updates, state = tx.update(params, state, params, **extra)
    assert all(u.device.type == 'meta' for u in tree.leaves(updates))
