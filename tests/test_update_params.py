# SPDX-License-Identifier: Apache-2.0
"""update_params is update followed by apply_updates: values, states, derivatives, in place and out of place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from tests.cases import CASES
from tests.snapshot import Snapshot, refuses
from tests.test_remembered_parameters import TABLES, WRAPPED, Row
from tests.transform import optax_cases
from torchopt import contrib, transform, tree
from torchopt.compat import optax as compat

F64 = torch.float64


def adam_of_two(**options: Any) -> Any:
    return torchopt.adam({'w': 0.1, 'v': 0.02, 'z': 0.1}, **options)


def learned() -> Any:
    return torchopt.sgd(torch.tensor(0.1, dtype=F64, requires_grad=True), momentum=0.9)


def no_extra(g: Any, state: Any, params: Any = None) -> Any:
    return tree.scale(-1.0, g), state


FALLING = torchopt.schedule.linear_schedule(0.1, 0.01, 3)
MORE = [
    Row('rates per leaf', adam_of_two),
    Row('a learned rate', learned),
    Row('a schedule', lambda: torchopt.adamw(FALLING)),
    Row('plain torch', lambda: torchopt.adam(0.1, use_accelerated_op=False)),
    Row('a chain with a clip', lambda: torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(0.1))),
    Row(
        'a chain that ends otherwise',
        lambda: torchopt.chain(torchopt.adam(0.1), transform.freeze({'w': True, 'v': False, 'z': False})),
    ),
    Row('one elementwise member', transform.scale_by_adam),
    Row('an identity', torchopt.base.identity),
    Row('named_chain', lambda: torchopt.named_chain(('a', torchopt.clip_grad_norm(1.0)), ('b', torchopt.sgd(0.1)))),
    Row('with extra arguments', lambda: torchopt.base.with_extra_args_support(transform.scale(-0.1))),
    Row('compat', lambda: torchopt.chain(transform.trace(0.9), compat.scale(-0.1))),
    Row('compat chain', lambda: compat.chain(compat.clip(1.0), compat.adam(0.1))),
    Row('a plain function', lambda: torchopt.base.GradientTransformation(len, no_extra)),
    Row('lbfgs', lambda: torchopt.lbfgs(0.1, linesearch=None)),
    Row('masked decay', lambda: torchopt.adamw(0.1, mask={'w': True, 'v': False, 'z': True})),
]
NOT_SMOOTH = [
    *(Row(f'alias: {c.name}', c.make) for c in CASES),
    *(
        Row(f'transform: {r.name}', lambda r=r: r.make(optax_cases.OURS))
        for r in optax_cases.ROWS
        if r.any_tree and not r.smooth
    ),
]
NAMES = {row.name for row in TABLES}
ROWS = [*TABLES, *(row for row in NOT_SMOOTH if row.name not in NAMES), *WRAPPED, *MORE]


def params_of(row: Row) -> dict[str, Any]:
    """A matrix, and where the row takes more leaves, one without a gradient and a 0-d one."""
    params = {'w': torch.tensor([[1.3, -0.7], [0.4, 0.9]], dtype=F64)}
    if row not in WRAPPED and not row.name.startswith(('contrib', 'transform')):
        params |= {'v': torch.tensor([0.5, 2.0, -1.0], dtype=F64), 'z': torch.tensor(0.3, dtype=F64)}
    return params


def gradients(params: Any) -> Any:
    return {name: None if name == 'v' else p**3 + 0.1 for name, p in params.items()}


def step_in_two(tx: Any, grads: Any, state: Any, params: Any, *, inplace: bool = False, **extra: Any) -> Any:
    """What update_params does, by its definition."""
    wide = torchopt.base.with_extra_args_support(tx)
    updates, state = wide.update(grads, state, params, inplace=inplace, **extra)
    return torchopt.apply_updates(params, updates, inplace=inplace), state


def trajectory(step: Any, row: Row, params: Any, steps: int = 3, **options: Any) -> tuple[Any, Any]:
    tx = row.make()
    state = tx.init(params)
    for _ in range(steps):
        extra = {'value': sum((p**4).sum() for p in params.values()) + 1.0} if row.value else {}
        params, state = step(tx, gradients(params), state, params, **options, **extra)
    return params, state


def same(actual: Any, expected: Any) -> None:
    leaves, spec = tree.flatten(actual)
    wanted, wanted_spec = tree.flatten(expected)
    assert spec == wanted_spec
    for x, y in zip(leaves, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize('row', ROWS, ids=str)
def test_values_and_states_out_of_place(row: Row) -> None:
    params = params_of(row)
    before = Snapshot(params)
    with torch.no_grad():
        same(trajectory(torchopt.update_params, row, params), trajectory(step_in_two, row, params))
    before.check()


@pytest.mark.parametrize('row', ROWS, ids=str)
def test_in_place_it_writes_into_the_parameters(row: Row) -> None:
    params, others = params_of(row), params_of(row)
    with torch.no_grad():
        new, state = trajectory(torchopt.update_params, row, params, inplace=True)
        same((new, state), trajectory(step_in_two, row, others, inplace=True))
        assert all(new[name] is p for name, p in params.items())
        same((new, state), trajectory(step_in_two, row, params_of(row)))


@pytest.mark.parametrize('row', [r for r in ROWS if r not in NOT_SMOOTH and ', ' not in r.name], ids=str)
def test_first_and_second_derivatives(row: Row) -> None:
    """In a leaf; the oracle gets a result, so that nothing is plain training."""

    def derivatives(step: Any, leaf: bool) -> list[Any]:
        start = {name: p.requires_grad_() for name, p in params_of(row).items()}
        given = start if leaf else {name: p * 1 for name, p in start.items()}
        new, _ = trajectory(step, row, given, 2)
        total = sum(x.square().sum() for x in new.values())
        xs = list(start.values())
        first = torch.autograd.grad(total, xs, create_graph=True)
        mixed = sum((g * g.detach().cos()).sum() for g in first)
        return [*first, *torch.autograd.grad(mixed, xs, allow_unused=True)]

    ours, theirs = derivatives(torchopt.update_params, leaf=True), derivatives(step_in_two, leaf=False)
    for x, y in zip(ours, theirs, strict=True):
        zero = torch.zeros((), dtype=F64)
        torch.testing.assert_close(*torch.broadcast_tensors(zero if x is None else x, zero if y is None else y))


def test_the_derivative_of_a_learned_rate() -> None:
    rate = torch.tensor(0.5, dtype=F64, requires_grad=True)
    tx, params = torchopt.sgd(rate), {'w': torch.tensor(3.0, dtype=F64)}
    new, _ = torchopt.update_params(tx, {'w': torch.tensor(2.0, dtype=F64)}, tx.init(params), params)
    assert torch.autograd.grad(new['w'], rate)[0] == -2.0


def test_a_leaf_whose_gradient_has_no_graph_keeps_the_derivative_of_decay() -> None:
    p = torch.tensor([3.0], dtype=F64, requires_grad=True)
    tx = torchopt.sgd(0.1, weight_decay=0.5)
    (new,), _ = torchopt.update_params(tx, [torch.ones(1, dtype=F64)], tx.init([p]), [p])
    torch.testing.assert_close(torch.autograd.grad(new, p)[0], torch.tensor([1 - 0.1 * 0.5], dtype=F64))


def test_in_place_it_trains_weights_without_a_graph() -> None:
    net, tx = nn.Linear(3, 1), torchopt.adamw(0.1)
    params = dict(net.named_parameters())
    state, version = tx.init(params), net.weight._version
    for _ in range(2):
        net.zero_grad()
        net(torch.ones(4, 3)).square().sum().backward()
        grads = {name: p.grad for name, p in params.items()}
        before = Snapshot(grads)
        new, state = torchopt.update_params(tx, grads, state, params, inplace=True)
        before.check()
    assert new['weight'] is net.weight
    assert net.weight.is_leaf
    assert net.weight._version > version


def test_extra_arguments_reach_those_that_take_them() -> None:
    params, value = [torch.tensor([2.0])], torch.tensor(4.0)
    tx = torchopt.polyak_sgd(max_learning_rate=10.0)
    (new,), _ = torchopt.update_params(tx, [torch.tensor([4.0])], tx.init(params), params, value=value)
    torch.testing.assert_close(new, torch.tensor([1.0]))  # by value / |g|^2 = 1 / 4
    for tx in (transform.scale(-1.0), torchopt.sgd(1.0), torchopt.base.GradientTransformation(len, no_extra)):
        (new,), _ = torchopt.update_params(tx, [torch.tensor([4.0])], tx.init(params), params, value=value)
        torch.testing.assert_close(new, torch.tensor([-2.0]))


def test_lookahead_moves_both_copies() -> None:
    tx = transform.lookahead(torchopt.sgd(0.5), 2, 0.5)
    ours = theirs = transform.LookaheadParams.init_synced({'w': torch.tensor([4.0])})
    state = other = tx.init(ours)
    for _ in range(3):
        ours, state = torchopt.update_params(tx, ours.fast, state, ours)
        theirs, other = step_in_two(tx, theirs.fast, other, theirs)
    same((ours, state), (theirs, other))
    kept, tx_state = copy.deepcopy(ours), copy.deepcopy(state)
    new, _ = torchopt.update_params(tx, kept.fast, tx_state, kept, inplace=True)
    assert new.fast['w'] is kept.fast['w']
    same(new, torchopt.update_params(tx, ours.fast, state, ours)[0])


@pytest.mark.parametrize('name', ['adam', 'sgd', 'lion'])
def test_under_transforms_and_half_precision(name: str) -> None:
    tx = getattr(torchopt, name)(0.1)

    def step(p: torch.Tensor) -> torch.Tensor:
        new, _ = torchopt.update_params(tx, {'w': p**3}, tx.init({'w': p}), {'w': p})
        return new['w']

    points = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=F64)
    same(torch.vmap(step)(points), torch.stack([step(p) for p in points]))
    same(torch.func.jacrev(step)(points[0]), torch.func.jacfwd(step)(points[0]))
    assert step(points.bfloat16()).dtype is torch.bfloat16


@pytest.mark.parametrize('inplace', [True, False])
@pytest.mark.parametrize(
    'tx',
    [
        torchopt.adam(0.1),
        transform.scale_by_adam(),
        torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adam(0.1)),
        torchopt.chain(torchopt.adam(0.1), transform.freeze(False)),
        contrib.prodigy(),
    ],
    ids=str,
)
def test_bad_input_is_named_and_changes_nothing(tx: Any, inplace: bool) -> None:
    g = {'a': torch.ones(2), 'b': torch.ones(2)}

    def misfit(b: Any, error: type[Exception], *words: str) -> None:
        params = {'a': torch.ones(2), 'b': b}
        state = tx.init({'a': torch.ones(2), 'b': torch.ones(2)})

        def act() -> None:
            torchopt.update_params(tx, g, state, params, inplace=inplace)

        refuses(act, error, ["params['b']", *words], params, state, g)

    misfit(torch.ones(3), ValueError, '(3,)')
    misfit(None, ValueError)
    misfit(torch.ones(2, dtype=torch.int64), TypeError, 'torch.int64')
    if inplace:
        misfit(torch.ones(1).expand(2), RuntimeError, 'clone()')


def test_bad_arguments() -> None:
    tx, p = torchopt.sgd(0.1), [torch.ones(1)]
    with pytest.raises(ValueError, match='params is None'):
        torchopt.update_params(tx, p, tx.init(p), None)
    with pytest.raises(TypeError, match='not a GradientTransformation'):
        torchopt.update_params(torchopt.SGD, p, tx.init(p), p)


def test_the_classes_step_through_compat_members() -> None:
    """The last member adds its updates to the parameters also behind the conversion of leaves."""
    p = nn.Parameter(torch.full((3,), 5.0))
    p.grad = torch.ones(3)
    torchopt.Optimizer([p], torchopt.chain(torchopt.clip_grad_norm(100.0), compat.scale(-0.5))).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 4.5))
