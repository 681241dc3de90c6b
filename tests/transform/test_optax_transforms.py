# SPDX-License-Identifier: Apache-2.0
"""The table of Optax's transformations: 20 steps against Optax, under transforms, compiled, in place; signatures."""

from __future__ import annotations

import inspect
import io
import pickle
from typing import Any

import jax
import optax
import pytest
import torch

import torchopt
from tests.cases import mixed_tree
from tests.oracle import assert_close_by_dtype, assert_trees_close, named_entries, run_optax, run_torchopt
from tests.transform.optax_cases import OURS, ROWS, Row
from torchopt import transform, tree

F64 = torch.float64


each_row = pytest.mark.parametrize('row', ROWS, ids=str)


def rows(which: Any) -> Any:
    """Rows with some properties."""
    return pytest.mark.parametrize('row', [row for row in ROWS if which(row)], ids=str)


def params_for(row: Row, dtype: torch.dtype) -> Any:
    params = mixed_tree(dtype)
    return params if row.scalars else {**params, 'scale': params['scale'].reshape(1)}


def entries(state: Any) -> dict[str, Any]:
    """All entries by name, lists of lists and all; what has no leaves is left out."""
    return {name: x for name, x in named_entries(state).items() if jax.tree.leaves(x)}


def both_dtypes(row: Row) -> list[Any]:
    """Parameters of both dtypes, in one tree where that makes no difference."""
    double, single = params_for(row, F64), params_for(row, torch.float32)
    if not row.stable:
        return [double]
    return [{'double': double, 'single': single}] if row.alone else [double, single]


# Gradients at random make pairs without curvature, which Optax's L-BFGS keeps; `test_lbfgs.py` compares on objectives.
@rows(lambda row: row.name != 'scale_by_lbfgs')
def test_equals_optax_in_parameters_and_state(row: Row) -> None:
    for params in both_dtypes(row):
        ours, state = run_torchopt(row.make(OURS), params, 20)
        theirs, their_state = run_optax(row.make(optax), params, 20)
        assert_close_by_dtype(ours, theirs, row.rounded)
        found, wanted = entries(state), entries(their_state)
        assert found.keys() == wanted.keys()
        for name, entry in found.items():
            assert_close_by_dtype(entry, wanted[name], row.rounded)


@each_row
def test_in_place_is_the_same(row: Row) -> None:
    params = params_for(row, F64)
    pure, state = run_torchopt(row.make(OURS), params, 5)
    written, written_state = run_torchopt(row.make(OURS), params, 5, inplace=True)
    assert_trees_close(written, pure, 1e-14)
    assert_trees_close([*tree.leaves(written_state), torch.ones(1)], [*tree.leaves(state), torch.ones(1)], 1e-14)


@rows(lambda row: row.any_tree)
def test_vmap(row: Row) -> None:
    """Two problems at once are each one alone; the state is mapped over as a whole."""
    tx = row.make(OURS)
    few = {'w': torch.tensor([[0.5, -1.0], [2.0, 0.1]], dtype=F64)}
    both = {'w': torch.stack([few['w'], 3.0 * few['w'].flip(0)])}

    def run(p: Any) -> Any:
        return run_steps(tx, p, 4)

    together = torch.func.vmap(run)(both)
    for i in range(2):
        assert_trees_close({'w': together['w'][i]}, run({'w': both['w'][i]}), row.tolerance)


def run_steps(tx: Any, params: Any, steps: int) -> Any:
    state = tx.init(params)
    for t in range(steps):
        grads = tree.map(lambda p, t=t: torch.cos(3.0 * p + t), params)
        updates, state = tx.update(grads, state, params)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params


@rows(lambda row: row.any_tree and row.first)
def test_compile_without_graph_breaks(row: Row) -> None:
    torch.compiler.reset()
    tx = row.make(OURS)
    params = {'w': torch.tensor([[0.5, -1.0], [2.0, 0.1]], dtype=F64)}
    state = tx.init(params)

    @torch.compile(fullgraph=True, backend='eager')
    def compiled(grads: Any, state: Any, params: Any) -> Any:
        return tx.update(grads, state, params)

    own = state
    for t in range(2):
        grads = tree.map(lambda p, t=t: torch.cos(3.0 * p + t), params)
        updates, state = compiled(grads, state, params)
        wanted, own = tx.update(grads, own, params)
        assert_trees_close(updates, wanted, row.tolerance)
        params = torchopt.apply_updates(params, wanted, inplace=False)


@rows(lambda row: row.smooth and row.any_tree)
def test_meta_gradients(row: Row) -> None:
    """Derivatives of a few steps in where they start: by torch.func.grad, autograd and finite differences."""
    tx = row.make(OURS)
    start = torch.tensor([[0.5, -1.0], [2.0, 0.1]], dtype=F64)

    def final(p: torch.Tensor) -> torch.Tensor:
        return run_steps(tx, {'w': p}, 3)['w'].square().sum()

    by_func = torch.func.grad(final)(start)
    leaf = (start * 1.0).requires_grad_()
    (by_autograd,) = torch.autograd.grad(final(leaf * 1.0), leaf)
    torch.testing.assert_close(by_func, by_autograd, rtol=1e-10, atol=1e-12)
    direction = torch.tensor([[0.3, -0.2], [0.5, 0.7]], dtype=F64)
    h = 1e-6
    exact = (final(start + h * direction) - final(start - h * direction)) / (2 * h)
    torch.testing.assert_close((by_func * direction).sum(), exact, rtol=1e-6, atol=1e-7)


@rows(lambda row: row.any_tree and row.complete)
def test_missing_gradients_leave_parameters_alone(row: Row) -> None:
    tx = row.make(OURS)
    params = {'b': torch.ones(2, dtype=F64), 'w': torch.tensor([0.5, -1.0], dtype=F64)}
    alone = {'w': params['w']}
    state, own = tx.init(params), tx.init(alone)
    for t in range(4):
        g = torch.cos(params['w'] + t)
        updates, state = tx.update({'b': None, 'w': g}, state, params)
        wanted, own = tx.update({'w': g}, own, alone)
        assert updates['b'] is None
        torch.testing.assert_close(updates['w'], wanted['w'])


@rows(lambda row: row.pickles)
def test_pickle_copy_and_save(row: Row) -> None:
    tx = row.make(OURS)
    params = params_for(row, F64)
    _, state = run_torchopt(tx, params, 2)
    again = pickle.loads(pickle.dumps(tx))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert_trees_close(again.update(params, loaded, params)[0], tx.update(params, state, params)[0], 1e-14)


NAMES = [
    'AddNoiseState ApplyEvery ApplyIfFiniteState ConditionallyMaskState ConditionallyTransformState EmaState',
    'LookaheadParams LookaheadState MonitorState MultiStepsState NonNegativeParamsState ScaleByAdanState',
    'FactoredState ScaleByBacktrackingLinesearchState ScaleByLBFGSState ScaleByZoomLinesearchState ZoomLinesearchInfo',
    'ScaleByNovogradState ScaleByRpropState ScaleBySM3State ScaleByTrustRatioState SnapshotState ZeroNansState',
]


@pytest.mark.parametrize('name', ' '.join(NAMES).split())
def test_states_have_optaxs_fields(name: str) -> None:
    assert getattr(transform, name)._fields == getattr(optax, name)._fields


FACTORIES = [
    'add_noise apply_every apply_if_finite centralize conditionally_mask conditionally_transform ema flatten freeze',
    'keep_params_nonnegative lookahead measure_with_ema monitor normalize_by_update_norm scale_by_adan',
    'scale_by_novograd scale_by_optimistic_gradient scale_by_param_block_norm scale_by_param_block_rms',
    'scale_by_polyak scale_by_rprop scale_by_sign scale_by_sm3 scale_by_trust_ratio selective_transform set_to_zero',
    'scale_by_backtracking_linesearch scale_by_lbfgs scale_by_zoom_linesearch value_and_grad_from_state',
    'skip_large_updates skip_not_finite snapshot stateless stateless_with_tree_map zero_nans',
]


@pytest.mark.parametrize('name', ' '.join(FACTORIES).split())
def test_arguments_are_optaxs(name: str) -> None:
    theirs = getattr(optax, name, None) or getattr(optax.transforms, name)

    def arguments(function: Any) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert arguments(getattr(transform, name)) == arguments(theirs)


def test_arguments_that_name_a_dtype_are_optaxs() -> None:
    for name in ('MultiSteps', 'scale_by_distance_over_gradients'):
        ours, theirs = (
            {p.name: p.default for p in inspect.signature(getattr(x, name)).parameters.values()}
            for x in (transform, optax)
        )
        dtypes = {'accumulator_dtype': torch.float32, 'param_dtype': torch.float32}
        assert list(ours) == list(theirs)
        assert all(ours[k] == dtypes.get(k, v) for k, v in theirs.items())


def test_polyak_takes_the_loss_as_it_is() -> None:
    """With its graph: weights are trained in place all the same, and a meta-gradient goes through it."""
    weight = torch.tensor([3.0], requires_grad=True)
    optimizer = torchopt.polyak_sgd()
    state = optimizer.init([weight])
    for _ in range(3):  # halves it each time
        loss = weight.square().sum()
        updates, state = optimizer.update(list(torch.autograd.grad(loss, weight)), state, [weight], value=loss)
        torchopt.apply_updates([weight], updates)
    torch.testing.assert_close(weight.detach(), torch.tensor([0.375]))
    loss = weight.square().sum()
    (u,), _ = optimizer.update(list(torch.autograd.grad(loss, weight, retain_graph=True)), state, value=loss)
    assert not u.requires_grad

    def after_a_step(start: torch.Tensor) -> torch.Tensor:
        loss, grad = start.pow(4).sum(), 4 * start.pow(3)
        updates, _ = optimizer.update([grad], optimizer.init([start]), [start], value=loss)
        return (start + updates[0]).sum()

    start = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(after_a_step, start)


@each_row
def test_no_step_waits_for_a_device(row: Row) -> None:
    """Tensors without data: who read a value from them would fail."""
    params = tree.map(lambda p: torch.empty_like(p, device='meta'), params_for(row, F64))
    tx = row.make(OURS)
    for inplace in (False, True):
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(tree.map(torch.clone, params), state, params, inplace=inplace)
        assert all(u.device.type == 'meta' for u in tree.leaves(updates))
