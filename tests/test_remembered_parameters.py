# SPDX-License-Identifier: Apache-2.0
"""States that remember parameters: derivatives from leaves, plain training without graphs, copies and files."""

from __future__ import annotations

import copy
import io
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import torchopt
from tests.alias.test_meta_gradients import TRAINABLE
from tests.contrib import contrib_cases
from tests.transform import optax_cases
from torchopt import contrib, transform, tree

F64 = torch.float64
START = [[1.3, -0.7], [0.4, 0.9]]
DIRECTION = torch.tensor([[0.3, -0.2], [0.5, 0.7]], dtype=F64)


class Row(NamedTuple):
    """An optimizer, by the name of the table that it comes from."""

    name: str
    make: Any
    value: bool = False

    def __str__(self) -> str:
        return self.name


def lookahead(fast: Any, **options: Any) -> Any:
    return transform.lookahead(fast, 2, 0.5, **options)


CLIMB = torchopt.chain(contrib.normalize(), torchopt.sgd(0.05))

# States that remember parameters, inside what hands parameters on.
WRAPPED = [
    Row('madgrad', lambda: contrib.madgrad(0.05)),
    Row('cocob', contrib.cocob),
    Row('dog', lambda: contrib.dog(init_step=('heuristic', 0.05))),
    Row('dowg', lambda: contrib.dowg(init_estim_sq_dist=0.05)),
    Row('prodigy', lambda: contrib.prodigy(estim_lr0=0.05)),
    Row('mechanize', lambda: contrib.mechanize(torchopt.sgd(0.1), s_init=0.1)),
    Row('mechanize of cocob', lambda: contrib.mechanize(contrib.cocob(), s_init=0.1)),
    Row('schedule_free', lambda: contrib.schedule_free_sgd(0.05)),
    Row('schedule_free, cast', lambda: contrib.schedule_free_sgd(0.05, state_dtype=torch.float32)),
    Row('schedule_free of madgrad', lambda: contrib.schedule_free(contrib.madgrad(0.05), 0.05)),
    Row(
        'distance_over_gradients',
        lambda: torchopt.chain(
            transform.scale_by_distance_over_gradients(0.05, param_dtype=None), transform.scale(-1.0)
        ),
    ),
    Row('sam of madgrad', lambda: contrib.sam(contrib.madgrad(0.05), CLIMB)),
    Row('cautious', lambda: contrib.cautious(contrib.madgrad(0.05))),
    Row('flatten', lambda: transform.flatten(contrib.madgrad(0.05))),
    Row('flatten, decay', lambda: transform.flatten(torchopt.adamw(0.05, weight_decay=0.1))),
    Row('chain_flat', lambda: torchopt.combine.chain_flat(contrib.madgrad(0.05))),
    Row('masked', lambda: transform.masked(contrib.prodigy(estim_lr0=0.05), {'w': True})),
    Row('partition', lambda: torchopt.transform.partition({'a': contrib.dowg(1.0, 0.05)}, {'w': 'a'})),
    Row('split', lambda: contrib.split_real_and_imaginary(contrib.cocob())),
    Row(
        'MultiSteps',
        lambda: transform.MultiSteps(contrib.madgrad(0.05), 2, accumulator_dtype=None).gradient_transformation(),
    ),
    Row('apply_if_finite', lambda: transform.apply_if_finite(contrib.dog(init_step=('heuristic', 0.05)), 2)),
    Row('inject', lambda: torchopt.schedule.inject_hyperparams(contrib.dog)(0.5)),
]
TABLES = [
    *(Row(f'alias: {c.name}', c.make) for c in TRAINABLE),
    *(
        Row(f'contrib: {r.name}', lambda r=r: r.make(contrib_cases.OURS), r.value)
        for r in contrib_cases.ROWS
        if r.whole
    ),
    *(
        Row(f'transform: {r.name}', lambda r=r: r.make(optax_cases.OURS))
        for r in optax_cases.ROWS
        if r.any_tree and r.smooth
    ),
]


def loss_of(p: torch.Tensor) -> torch.Tensor:
    return (p**4).sum() / 4


def final(row: Row, p: torch.Tensor, steps: int = 2) -> torch.Tensor:
    """The outer loss after some recorded steps, written by hand."""
    tx, params = row.make(), {'w': p}
    state = tx.init(params)
    for _ in range(steps):
        value = loss_of(params['w'])
        (g,) = torch.autograd.grad(value, params['w'], create_graph=True)
        extra = {'value': value + 1.0} if row.value else {}
        updates, state = tx.update({'w': g}, state, params, **extra)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params['w'].square().sum()


def final_of_gradients(row: Row, p: torch.Tensor, steps: int = 2) -> torch.Tensor:
    """The same with the gradient in closed form, for transforms and differences."""
    tx, params = row.make(), {'w': p}
    state = tx.init(params)
    for _ in range(steps):
        extra = {'value': loss_of(params['w']) + 1.0} if row.value else {}
        updates, state = tx.update({'w': params['w'] ** 3}, state, params, **extra)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return params['w'].square().sum()


def start() -> torch.Tensor:
    return torch.tensor(START, dtype=F64)


@pytest.mark.parametrize('row', [*TABLES, *WRAPPED], ids=str)
def test_a_leaf_has_the_derivative_of_any_other_start(row: Row) -> None:
    leaf, other = start().requires_grad_(), start().requires_grad_()
    (by_hand,) = torch.autograd.grad(final(row, leaf), leaf)
    (moved,) = torch.autograd.grad(final(row, other * 1), other)
    by_func = torch.func.grad(lambda p: final_of_gradients(row, p))(start())
    torch.testing.assert_close(by_hand, moved, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(by_hand, by_func, rtol=1e-9, atol=1e-10)
    if 'cast' not in row.name:  # where rounding spoils differences
        h = 1e-6
        ends = [final_of_gradients(row, start() + sign * h * DIRECTION) for sign in (1, -1)]
        torch.testing.assert_close((by_hand * DIRECTION).sum(), (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-7)


class Net(nn.Module):
    """One parameter, and the loss whose gradient is its cube."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(start())


def by_meta_optimizer(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    net = Net()
    first, optimizer = net.w, torchopt.MetaOptimizer(net, row.make())
    for _ in range(2):
        optimizer.step(loss_of(net.w))
    return first, net.w


def by_func_optimizer(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    first = start().requires_grad_()
    params, optimizer = {'w': first}, torchopt.FuncOptimizer(row.make())
    for _ in range(2):
        params = optimizer.step(loss_of(params['w']), params)
    return first, params['w']


def by_pieces(row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """From a state that was made long before, copied, and used twice."""
    first = start().requires_grad_()
    tx = row.make()
    made = copy.deepcopy(tx.init({'w': first}))
    for _ in range(2):
        params, state = {'w': first}, copy.deepcopy(made)
        for _ in range(2):
            updates, state = tx.update({'w': params['w'] ** 3}, state, params)
            state = copy.deepcopy(state)
            params = torchopt.apply_updates(params, updates, inplace=False)
    return first, params['w']


@pytest.mark.parametrize('way', [by_meta_optimizer, by_func_optimizer, by_pieces])
@pytest.mark.parametrize('row', WRAPPED, ids=str)
def test_every_interface_has_the_derivative(row: Row, way: Any) -> None:
    wanted = torch.func.grad(lambda p: final_of_gradients(row, p))(start())
    first, end = way(row)
    (found,) = torch.autograd.grad(end.square().sum(), first)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def train(row: Row, p: torch.Tensor, steps: int, *, state: Any = None, inplace: bool = False) -> Any:
    """Plain training: gradients without a graph, weights that change in place."""
    tx, params = row.make(), {'w': p}
    state = tx.init(params) if state is None else state
    for _ in range(steps):
        updates, state = tx.update({'w': p.detach() ** 3}, state, params, inplace=inplace)
        assert not any(x.requires_grad for x in tree.leaves(updates))
        assert torchopt.apply_updates(params, updates)['w'] is p
    return state


@pytest.mark.parametrize('inplace', [False, True], ids=['out of place', 'in place'])
@pytest.mark.parametrize('row', WRAPPED, ids=str)
def test_plain_training_takes_what_is_remembered_for_constant(row: Row, inplace: bool) -> None:
    weights, constant = start().requires_grad_(), start()
    state = train(row, weights, 4, inplace=inplace)
    assert not any(isinstance(x, torch.Tensor) and x.grad_fn for x in tree.leaves(state))
    tx, params = row.make(), {'w': constant}
    other = tx.init(params)
    for _ in range(4):
        updates, other = tx.update({'w': params['w'] ** 3}, other, params)
        params = torchopt.apply_updates(params, updates)
    torch.testing.assert_close(weights.detach(), params['w'], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('row', WRAPPED, ids=str)
def test_a_recorded_step_after_plain_training_begins_at_the_parameters(row: Row) -> None:
    """Where training has come is the start of what is recorded, and what is remembered from before is constant."""
    tx, weights = row.make(), start().requires_grad_()
    state = train(row, weights, 2)

    def later(p: torch.Tensor) -> torch.Tensor:
        params, own = {'w': p}, state
        for _ in range(2):
            updates, own = tx.update({'w': params['w'] ** 3}, own, params)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return params['w'].square().sum()

    (found,) = torch.autograd.grad(later(weights), weights)
    torch.testing.assert_close(found, torch.func.grad(later)(weights.detach()), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('row', WRAPPED, ids=str)
def test_a_first_state_can_be_copied_and_saved(row: Row) -> None:
    weights = start().requires_grad_()
    state = row.make().init({'w': weights})
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    wanted = train(row, start().requires_grad_(), 2)
    for again in (copy.deepcopy(state), torch.load(file, weights_only=True)):
        assert tree.structure(again) == tree.structure(state)
        found = train(row, start().requires_grad_(), 2, state=again)
        assert all(torch.equal(x, y) for x, y in zip(tree.leaves(found), tree.leaves(wanted)))
        assert not any(x.requires_grad for x in tree.leaves(found))
    assert torch.equal(weights, start())


def looking_ahead(p: torch.Tensor, **options: Any) -> torch.Tensor:
    tx = lookahead(contrib.madgrad(0.05), **options)
    params = transform.LookaheadParams.init_synced({'w': p})
    state = tx.init(params)
    for _ in range(5):
        updates, state = tx.update({'w': params.fast['w'] ** 3}, state, params)
        params = torchopt.apply_updates(params, updates, inplace=False)
    return (params.slow['w'].square() + params.fast['w'].sin()).sum()


@pytest.mark.parametrize('reset', [False, True])
def test_lookahead_has_the_derivative_in_a_leaf(reset: bool) -> None:
    leaf = start().requires_grad_()
    (found,) = torch.autograd.grad(looking_ahead(leaf, reset_state=reset), leaf)
    wanted = torch.func.grad(lambda p: looking_ahead(p, reset_state=reset))(start())
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
    h = 1e-6
    ends = [looking_ahead(start() + sign * h * DIRECTION, reset_state=reset) for sign in (1, -1)]
    torch.testing.assert_close((found * DIRECTION).sum(), (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


def test_lookahead_keeps_the_graph_of_slow_parameters_that_are_no_copies() -> None:
    rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
    weights = start().requires_grad_()
    params = transform.LookaheadParams({'w': weights}, {'w': rate * start()})
    tx = lookahead(torchopt.sgd(0.1))
    state = tx.init(params)._replace(steps_since_sync=torch.tensor(1))
    updates, _ = tx.update({'w': start()}, state, params)
    (found,) = torch.autograd.grad(updates.slow['w'].sum(), rate)
    torch.testing.assert_close(found, -0.5 * start().sum())


def test_a_learned_first_distance_is_learned_in_plain_training() -> None:
    size = torch.tensor(0.05, dtype=F64, requires_grad=True)
    for tx in (contrib.dog(init_step=('heuristic', size)), transform.scale_by_distance_over_gradients(size)):
        params = {'w': start().requires_grad_()}
        updates, _ = tx.update({'w': start()}, tx.init(params), params)
        (found,) = torch.autograd.grad(updates['w'].sum(), size)
        torch.testing.assert_close(found * size, updates['w'].sum())


@pytest.mark.parametrize(
    'tx',
    [
        torchopt.chain(torchopt.adam(0.1), transform.set_to_zero()),
        torchopt.chain(torchopt.adamw(torch.tensor(0.1, dtype=F64)), transform.set_to_zero()),
        transform.selective_transform(torchopt.adam(0.1), freeze_mask={'a': True, 'b': True}),
    ],
    ids=['set_to_zero', 'learned', 'frozen'],
)
def test_forward_over_reverse_where_no_update_is_used(tx: Any) -> None:
    def outer(x: torch.Tensor) -> torch.Tensor:
        params = {'a': x, 'b': 2.0 * x}
        updates, _ = tx.update(tree.map(lambda p: p**3, params), tx.init(params), params)
        params = torchopt.apply_updates(params, updates, inplace=False)
        return (params['a'] ** 2).sum() + (params['b'] ** 3).sum()

    found = torch.func.jvp(torch.func.grad(outer), (start(),), (DIRECTION,))[1]
    torch.testing.assert_close(found, (2.0 + 48.0 * start()) * DIRECTION)
