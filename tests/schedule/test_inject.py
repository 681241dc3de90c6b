# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters in the state: against Optax, set by hand, learned, under transforms."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
import pytest
import torch

import torchopt
from tests.cases import FALLING, mixed_tree, optax_falling
from tests.oracle import assert_trees_close, run_optax, run_torchopt
from torchopt import schedule, transform, tree

F64 = torch.float64


inject = schedule.inject_hyperparams


def pairs() -> dict[str, tuple[Any, Any]]:
    theirs = optax.inject_hyperparams
    return {
        'nadam': (inject(torchopt.nadam)(0.1, b1=0.8), theirs(optax.nadam)(0.1, b1=0.8)),
        'nadamw': (
            inject(torchopt.nadamw)(FALLING, weight_decay=0.1),
            theirs(optax.nadamw)(optax_falling, weight_decay=0.1),
        ),
        'lion': (
            inject(torchopt.lion, 'mask')(FALLING, b1=lambda t: 0.5 / (1 + t), mask=lambda p: True),
            theirs(optax.lion, 'mask')(optax_falling, b1=lambda t: 0.5 / (1 + t), mask=lambda p: True),
        ),
        'apply_every': (inject(transform.apply_every)(k=3), theirs(optax.apply_every)(k=3)),
        'rprop': (inject(torchopt.alias.rprop)(0.1), theirs(optax.rprop)(0.1)),
        'novograd': (inject(torchopt.alias.novograd)(FALLING), theirs(optax.novograd)(optax_falling)),
    }


@pytest.mark.parametrize(('name', 'dtype'), [*((name, F64) for name in pairs()), ('nadamw', torch.float32)], ids=str)
def test_equals_optax(name: str, dtype: torch.dtype) -> None:
    ours, theirs = pairs()[name]
    params = mixed_tree(dtype)
    found, state = run_torchopt(ours, params, 20)
    wanted, their_state = run_optax(theirs, params, 20)
    tolerance = 1e-8 if dtype == F64 else 2e-5
    assert_trees_close(found, wanted, tolerance)
    assert int(state.count) == 20
    assert set(state.hyperparams) == set(their_state.hyperparams)
    assert_trees_close(state.hyperparams, dict(their_state.hyperparams), tolerance)
    assert set(state.hyperparams_states) == set(their_state.hyperparams_states)
    assert {x.dtype for x in state.hyperparams.values()} <= {dtype, torch.int64}


@pytest.mark.parametrize('name', ['inject_hyperparams', 'inject_stateful_hyperparams', 'WrappedSchedule'])
def test_arguments_are_optaxs(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(x, name)) for x in (schedule, optax.schedules))
    assert [(p.name, p.default) for p in ours.parameters.values()] == [
        (p.name, p.default) for p in theirs.parameters.values()
    ]


@pytest.mark.parametrize('name', ['InjectHyperparamsState', 'InjectStatefulHyperparamsState'])
def test_states_have_optaxs_fields(name: str) -> None:
    assert getattr(schedule, name)._fields == getattr(optax, name)._fields


def test_values_may_be_set_between_steps() -> None:
    optimizer = inject(torchopt.sgd)(lr=1.0)
    g = [torch.ones(())]
    state = optimizer.init(g)
    assert set(state.hyperparams) == {'lr'}  # what is switched off stays out
    for value in (0.5, torch.tensor(0.25)):
        state.hyperparams['lr'] = value
        updates, state = optimizer.update(g, state)
        assert updates[0] == -value
        assert state.hyperparams['lr'] == value
    state = tree.set(state, lr=torch.tensor(2.0))
    assert optimizer.update(g, state)[0][0] == -2.0


def test_both_vocabularies() -> None:
    params = mixed_tree(F64)
    for given in ({'lr': 0.1}, {'learning_rate': 0.1}, {'learning_rate': 0.1, 'b1': 0.9}, {'lr': lambda t: 0.1}):
        optimizer = inject(torchopt.adam)(**given)
        found, state = run_torchopt(optimizer, params, 3)
        assert_trees_close(found, run_torchopt(torchopt.adam(0.1), params, 3)[0], 1e-14)
        assert set(given) <= set(state.hyperparams)
        assert not {'lr', 'learning_rate'} <= set(state.hyperparams)
    falling = inject(torchopt.adam)(0.1, b1=lambda t: 0.9 if t < 2 else 0.5)
    assert run_torchopt(falling, params, 3)[1].hyperparams['b1'] == 0.5
    with pytest.raises(TypeError, match='missing'):
        inject(torchopt.lion)(b1=0.5)
    with pytest.raises(ValueError, match='static_args'):
        inject(torchopt.adam, 'no_such')


class DropState(NamedTuple):
    """State of `Drop`."""

    best: Any
    rate: Any


class Drop:
    """Halve the rate whenever the loss rises; stands for any schedule with a state."""

    def init(self) -> DropState:
        return DropState(torch.tensor(float('inf'), dtype=F64), torch.tensor(1.0, dtype=F64))

    def update(self, state: DropState, *, value: Any, **extra: Any) -> DropState:
        rate = torch.where(value > state.best, state.rate / 2, state.rate)
        return DropState(torch.minimum(value, state.best), rate)

    def __call__(self, state: DropState, **extra: Any) -> Any:
        return state.rate


def test_schedules_with_a_state_see_extra_arguments() -> None:
    assert isinstance(Drop(), schedule.StatefulSchedule)
    optimizer = torchopt.chain(inject(torchopt.sgd)(Drop()))
    g = [torch.ones((), dtype=F64)]
    state = optimizer.init(g)
    seen = []
    for value in (3.0, 2.0, 5.0, 1.0, 4.0, 4.0):
        updates, state = optimizer.update(g, state, value=torch.tensor(value, dtype=F64))
        seen.append(-float(updates[0]))
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]


def test_learned_hyper_parameters_get_their_gradient() -> None:
    rate = torch.tensor(0.1, dtype=F64, requires_grad=True)
    optimizer = inject(torchopt.sgd)(lr=rate)
    g = [torch.tensor([1.0, 2.0], dtype=F64)]
    updates, state = optimizer.update(g, optimizer.init(g))
    assert state.hyperparams['lr'] is rate
    (gradient,) = torch.autograd.grad(updates[0].sum(), rate)
    assert gradient == -3.0


def test_many_rates_at_once() -> None:
    """vmap over the hyper-parameters in the state: a sweep."""
    optimizer = inject(torchopt.nadamw)(0.1)
    p = [torch.tensor([0.5, -1.0], dtype=F64)]
    state = optimizer.init(p)

    def final(rate: torch.Tensor) -> torch.Tensor:
        params, own = p, state._replace(hyperparams={**state.hyperparams, 'learning_rate': rate})
        for _ in range(3):
            updates, own = optimizer.update([params[0].cos()], own, params)
            params = [params[0] + updates[0]]
        return params[0]

    rates = torch.tensor([0.1, 0.3], dtype=F64)
    swept = torch.func.vmap(final)(rates)
    for rate, found in zip((0.1, 0.3), swept):
        wanted, params = torchopt.nadamw(rate), p
        own = wanted.init(params)
        for _ in range(3):
            updates, own = wanted.update([params[0].cos()], own, params)
            params = [params[0] + updates[0]]
        torch.testing.assert_close(found, params[0], rtol=1e-12, atol=1e-14)


def test_compile_pickle_and_dtypes() -> None:
    optimizer = inject(torchopt.lion)(schedule.linear_schedule(0.1, 0.0, 10), weight_decay=0.1)
    params = [torch.tensor([0.5, -1.0])]
    state = optimizer.init(params)
    torch.compiler.reset()
    compiled = torch.compile(optimizer.update, fullgraph=True, backend='eager')
    own = state
    for _ in range(2):
        updates, state = compiled(params, state, params)
        wanted, own = optimizer.update(params, own, params)
        torch.testing.assert_close(updates, wanted)
    for again in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        torch.testing.assert_close(again.update(params, own, params)[0], optimizer.update(params, own, params)[0])
    half = inject(torchopt.lion, hyperparam_dtype=torch.bfloat16)(0.1).init(params)
    assert half.hyperparams['learning_rate'].dtype == torch.bfloat16
    with pytest.raises(ValueError, match='InjectStatefulHyperparamsState'):
        optimizer.update(params, own.inner_state, params)
    with pytest.warns(DeprecationWarning, match='inject_hyperparams'):
        schedule.inject_stateful_hyperparams(torchopt.lion)


def test_wrapped_schedules_equal_optaxs() -> None:
    ours, theirs = (x.WrappedSchedule(lambda t: 0.5**t) for x in (schedule, optax.schedules))
    state, their_state = ours.init(), theirs.init()
    for _ in range(4):
        assert float(ours(state)) == float(theirs(their_state))
        state, their_state = ours.update(state), theirs.update(their_state)
    assert int(state.count) == int(jnp.asarray(their_state.count)) == 4


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('make', [torchopt.adam, torchopt.adamw, torchopt.alias.lion, torchopt.alias.adafactor])
def test_hyper_parameters_beside_half_precision_are_in_single(make: Any, dtype: torch.dtype) -> None:
    """In bfloat16 a decay rate of 0.999 would be 1; the steps are those of the same numbers."""
    params = [torch.linspace(-1.0, 1.0, 5).to(dtype)]
    results = []
    for tx in (inject(make)(0.1), make(0.1)):
        p, state = params, tx.init(params)
        for _ in range(3):
            updates, state = tx.update(tree.map(torch.cos, p), state, p)
            p = torchopt.apply_updates(p, updates)
        results.append(p)
        if hasattr(state, 'hyperparams'):
            assert {x.dtype for x in state.hyperparams.values()} == {torch.float32}
    assert results[0][0].dtype is dtype
    torch.testing.assert_close(*results, rtol=2e-2, atol=1e-3)


STATIC = {
    'adafactor': (torchopt.alias.adafactor, {'min_dim_size_to_factor', 'decay_offset'}),
    'scale_by_lbfgs': (transform.scale_by_lbfgs, {'memory_size'}),
    'noisy_sgd': (torchopt.alias.noisy_sgd, {'seed', 'key'}),
    'adopt': (torchopt.contrib.adopt, {'clip_value_fn'}),
    'reduce_on_plateau': (torchopt.contrib.reduce_on_plateau, set()),
}


@pytest.mark.parametrize('name', STATIC)
def test_what_decides_how_an_optimizer_is_built_is_no_tensor(name: str) -> None:
    """It compiles, which it does not where a size comes as a tensor."""
    make, static = STATIC[name]
    given = {'learning_rate': 0.1} if 'learning_rate' in inspect.signature(make).parameters else {}
    optimizer = inject(make)(**given)
    params = {'w': torch.linspace(-1.0, 1.0, 12, dtype=F64).reshape(3, 4), 'b': torch.ones(2, dtype=F64)}
    state = optimizer.init(params)
    assert not static & set(state.hyperparams)
    torch.compiler.reset()
    compiled = torch.compile(optimizer.update, fullgraph=True, backend='eager')
    value = torch.tensor(2.0, dtype=F64)
    found, wanted = (update(params, state, params, value=value)[0] for update in (compiled, optimizer.update))
    if name != 'noisy_sgd':
        assert_trees_close(found, wanted, 1e-12)


@pytest.mark.parametrize('value', [None, {'w': 0.1}, 'x'])
def test_what_is_assigned_to_a_state_is_a_number(value: Any) -> None:
    p = torch.ones(2)
    optimizer = schedule.inject_hyperparams(torchopt.adam)(learning_rate=0.1)
    state = optimizer.init(p)
    state.hyperparams['learning_rate'] = value
    with pytest.raises(TypeError, match=r"hyperparams\['learning_rate'\].*expected a number"):
        optimizer.update(p, state, p)
