# SPDX-License-Identifier: Apache-2.0
"""The optimizers and rules that ``torchopt.compat.optax`` writes anew: 20 steps, states, derivatives."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax as theirs
import pytest
import torch

from tests._C.cases import plain_torch
from tests.cases import FALLING, mixed_tree, optax_falling
from tests.compat.differences import NUMBERS_FOR_NAN
from tests.oracle import assert_close_by_dtype, assert_trees_close, run_optax, run_torchopt
from torchopt import tree
from torchopt._C import dispatch, fused
from torchopt.compat import optax as ours

F64 = torch.float64
RATE = object()  # stands for a schedule
MASK = {
    'double': {'encoder': [True, False], 'scale': False, 'head': True},
    'single': {'encoder': [True, True], 'scale': False, 'head': False},
}

# Name, arguments in their order, arguments by their names.
CASES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ('adadelta', (), {}),
    ('adadelta', (RATE, 0.7, 1e-3), {'weight_decay': 0.2}),
    ('adadelta', (0.5,), {'weight_decay': 0.2, 'weight_decay_mask': MASK}),
    ('adagrad', (0.1,), {}),
    ('adagrad', (RATE, 0.5, 0.3), {}),
    ('adagrad', (0.1,), {'initial_accumulator_value': 0.0, 'eps': 0.0}),
    ('adam', (RATE, 0.8, 0.99, 1e-3, 1e-2), {'nesterov': True}),
    ('adamax', (0.1,), {}),
    ('adamax', (RATE, 0.5, 0.9, 0.1), {}),
    ('adamaxw', (0.1,), {'mask': MASK}),
    ('adamaxw', (RATE, 0.5, 0.9, 0.1, 0.0), {}),
    ('adamw', (0.1,), {}),
    ('adamw', (RATE, 0.8, 0.99, 1e-3, 1e-2), {'weight_decay': RATE, 'mask': MASK, 'nesterov': True}),
    ('lars', (RATE,), {'momentum': 0.0, 'nesterov': True, 'trust_coefficient': 0.5}),
    ('radam', (0.1,), {}),
    ('radam', (RATE, 0.8, 0.7), {}),
    ('radam', (0.1, 0.8, 0.5), {'nesterov': True}),
    ('radam', (0.1, 0.9, 0.99, 1e-2, 0.1, 4.5), {'nesterov': True}),
    ('radam', (0.1,), {'threshold': -1.0, 'b2': 0.95, 'eps': 0.1}),
    ('rmsprop', (0.1,), {}),
    ('rmsprop', (RATE, 0.7, 0.1, 0.3), {'momentum': 0.8}),
    ('rmsprop', (RATE, 0.7), {'eps_in_sqrt': False, 'eps': 0.1, 'momentum': 0.8, 'nesterov': True}),
    ('rmsprop', (0.1, 0.7, 0.1), {'centered': True, 'momentum': 0.0, 'nesterov': True}),
    ('rmsprop', (0.1,), {'centered': True, 'bias_correction': True, 'eps': 0.1, 'initial_scale': 0.2}),
    ('rmsprop', (0.1,), {'bias_correction': True, 'momentum': 0.5}),
    ('sgd', (RATE,), {}),
    ('sgd', (RATE, 0.9, True), {}),
    ('sgd', (0.1, 0.0), {'nesterov': True}),
    ('sgd', (0.01, 1.0), {}),
    ('scale_by_adadelta', (0.7, 1e-2), {}),
    ('scale_by_adam', (0.8, 0.99, 1e-3, 1e-2), {}),
    ('scale_by_adamax', (), {}),
    ('scale_by_learning_rate', (RATE,), {'flip_sign': False}),
    ('scale_by_radam', (), {'b2': 0.9}),
    ('scale_by_rms', (), {}),
    ('scale_by_rss', (), {}),
    ('scale_by_stddev', (0.8, 1e-2), {}),
    ('trace', (0.9,), {'nesterov': True}),
    ('masked', (), {'mask': MASK}),
]
each_case = pytest.mark.parametrize(('name', 'args', 'options'), CASES, ids=lambda x: x if isinstance(x, str) else '')


def make(library: Any, name: str, args: Any, options: Any, falling: Any) -> Any:
    """A case of one of the two libraries; what does not descend by itself is made to."""
    args = [falling if x is RATE else x for x in args]
    options = {key: falling if x is RATE else x for key, x in options.items()}
    if name == 'masked':
        return library.masked(library.sgd(0.1, 0.9), **options)
    tx = getattr(library, name)(*args, **options)
    descends = '_by_' not in name and name != 'trace' and args
    return tx if descends else library.chain(tx, library.scale(-0.05))


def skeleton(state: Any) -> Any:
    """The classes of all tuples in a state."""
    if not isinstance(state, tuple):
        return None
    kind = type(state).__name__
    return [kind, *map(skeleton, state)]


@each_case
def test_equals_optax(name: str, args: Any, options: Any) -> None:
    """Parameters and state, the nesting of the state included; in both dtypes at once, and also written in place."""
    params = {'double': mixed_tree(F64), 'single': mixed_tree(torch.float32)}
    tx = make(ours, name, args, options, FALLING)
    found, state = run_torchopt(tx, params, 20)
    wanted, their_state = run_optax(make(theirs, name, args, options, optax_falling), params, 20)
    assert_close_by_dtype(found, wanted)
    assert skeleton(state) == skeleton(their_state)
    assert_close_by_dtype(state, their_state)
    written, state = run_torchopt(tx, params, 20, inplace=True)
    assert_close_by_dtype(written, wanted)
    assert skeleton(state) == skeleton(their_state)


@pytest.mark.parametrize('name', ['adagrad', 'adamax', 'radam', 'rmsprop'])
def test_no_gradient_at_all_and_one_that_overflows(name: str) -> None:
    """Zero, tiny, huge and infinite gradients give what they give in Optax, NaN included."""
    grads = np.array([0.0, 1e-300, -1e-30, 1e200, np.inf, np.nan])
    tx, optimizer = getattr(ours, name)(0.1), getattr(theirs, name)(0.1)
    state, their_state = tx.init(torch.zeros(6, dtype=F64)), optimizer.init(jnp.zeros(6))
    for _ in range(3):
        found, state = tx.update(torch.tensor(grads), state)
        wanted, their_state = optimizer.update(jnp.array(grads), their_state)
        np.testing.assert_allclose(found, wanted, rtol=1e-8)


@pytest.mark.parametrize('name', ['adam', 'adamw', 'sgd', 'trace'])
def test_accumulators_in_another_dtype(name: str) -> None:
    args = {'adam': (0.1, 0.9, 0.999, 1e-8, 0.0), 'adamw': (0.1, 0.9, 0.999, 1e-8, 0.0), 'sgd': (0.1, 0.9, False)}
    given = args.get(name, (0.9, True))
    params = mixed_tree(torch.float32)
    found, state = run_torchopt(ours.chain(getattr(ours, name)(*given, torch.bfloat16), ours.scale(0.1)), params, 5)
    optimizer = theirs.chain(getattr(theirs, name)(*given, jnp.bfloat16), theirs.scale(0.1))
    wanted, their_state = run_optax(optimizer, params, 5)
    assert_trees_close(found, wanted, 1e-2)
    dtypes = [str(x.dtype).removeprefix('torch.') for x in tree.leaves(state)]
    assert 'bfloat16' in dtypes
    assert [d for d in dtypes if d != 'int64'] == [
        d for x in jax.tree.leaves(their_state) if (d := str(x.dtype)) != 'int32'
    ]


# Of every optimizer, what has most options that matter to a derivative.
DERIVATIVES: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ('adadelta', (RATE, 0.7, 1e-3), {'weight_decay': 0.2}),
    ('adagrad', (0.1,), {}),
    ('adagrad', (RATE, 0.5, 0.3), {}),
    ('adam', (RATE, 0.8, 0.99, 1e-3, 1e-2), {'nesterov': True}),
    ('adamax', (0.1,), {}),
    ('adamw', (0.1,), {'weight_decay': RATE}),
    ('radam', (0.1,), {}),
    ('radam', (0.1, 0.9, 0.99, 1e-2, 0.1, 4.5), {'nesterov': True}),
    ('radam', (0.1,), {'threshold': -1.0, 'b2': 0.95, 'eps': 0.1}),
    ('rmsprop', (RATE, 0.7, 0.1, 0.3), {'momentum': 0.8, 'nesterov': True}),
    ('rmsprop', (0.1,), {'centered': True, 'bias_correction': True, 'eps': 0.1, 'initial_scale': 0.2}),
    ('sgd', (RATE, 0.9, True), {}),
    ('sgd', (0.1, 0.0), {'nesterov': True}),
]


@pytest.mark.parametrize(('name', 'args', 'options'), DERIVATIVES, ids=lambda x: x if isinstance(x, str) else '')
def test_derivatives_through_steps_equal_jaxs(name: str, args: Any, options: Any) -> None:
    """Of where three steps lead to, in the start; both by the kernels and in plain torch."""
    start = np.array([0.7, -1.2, 0.4])

    def final(library: Any, xp: Any, falling: Any, p: Any) -> Any:
        optimizer = make(library, name, args, options, falling)
        state = optimizer.init(p)
        for step in range(3):
            updates, state = optimizer.update(xp.sin(2.0 * p) + 0.3 * step, state, p)
            p = library.apply_updates(p, updates)
        return (p * p).sum()

    wanted = np.asarray(jax.grad(lambda p: final(theirs, jnp, optax_falling, p))(jnp.array(start)))
    if np.isnan(wanted).any():  # see NUMBERS_FOR_NAN
        assert name in NUMBERS_FOR_NAN
        wanted = differences(lambda p: float(final(theirs, jnp, optax_falling, jnp.array(p))), start)

    def derivative() -> torch.Tensor:
        return torch.func.grad(lambda p: final(ours, torch, FALLING, p))(torch.tensor(start))

    tolerance = 1e-7 if name in NUMBERS_FOR_NAN else 1e-8
    assert_trees_close(derivative(), wanted, tolerance)
    with plain_torch():
        assert_trees_close(derivative(), wanted, tolerance)


def differences(function: Any, x: np.ndarray) -> np.ndarray:
    """The gradient by central differences of the fourth order."""
    step = 1e-3
    steps = step * np.eye(len(x))
    near, far = ([function(x + k * e) - function(x - k * e) for e in steps] for k in (1, 2))
    return (8 * np.array(near) - np.array(far)) / (12 * step)


LEARNED = [
    ('adagrad', {'eps': 0.3}),
    ('radam', {'eps': 0.1, 'eps_root': 0.2, 'threshold': 1.0}),
    ('rmsprop', {'eps': 0.1}),
]


@pytest.mark.parametrize(('name', 'learned'), LEARNED, ids=lambda x: x if isinstance(x, str) else '')
@pytest.mark.parametrize('nesterov', [False, True])
def test_hyper_parameters_can_be_learned(name: str, learned: dict[str, float], nesterov: bool) -> None:
    """Derivatives in the learning rate and in what else is a number equal those of JAX."""
    fixed: dict[str, Any] = {'radam': {'nesterov': nesterov}, 'rmsprop': {'momentum': 0.5, 'nesterov': nesterov}}.get(
        name, {}
    )
    values = {'learning_rate': 0.1, **learned}

    def final(library: Any, as_array: Any, values: Any) -> Any:
        optimizer = getattr(library, name)(**values, **fixed)
        p = as_array([0.7, -1.2, 0.4])
        state = optimizer.init(p)
        for step in range(3):
            updates, state = optimizer.update(0.5 * (p - 1.0) + 0.3 * step, state, p)
            p = library.apply_updates(p, updates)
        return (p * p).sum()

    wanted = jax.grad(lambda values: final(theirs, jnp.array, values))(values)
    leaves = {key: torch.tensor(x, dtype=F64) for key, x in values.items()}
    found = torch.func.grad(lambda values: final(ours, lambda x: torch.tensor(x, dtype=F64), values))(leaves)
    assert_trees_close(found, wanted, 1e-8)


@pytest.mark.parametrize('name', ['adadelta', 'adagrad', 'adam', 'adamax', 'adamw', 'radam', 'rmsprop', 'sgd'])
def test_a_nested_chain_is_one_step_of_the_engine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []
    step = dispatch.step

    def spy(*args: Any, **options: Any) -> Any:
        answers.append(step(*args, **options))
        return answers[-1]

    monkeypatch.setattr(dispatch, 'step', spy)
    options = {'momentum': 0.9, 'nesterov': True} if name == 'sgd' else {}
    tx = ours.chain(ours.chain(ours.identity(), ours.scale(2.0)), getattr(ours, name)(0.1, **options))
    params = [torch.tensor([1.0, -2.0])]
    tx.update(params, tx.init(params), params)
    assert len(answers) == 1
    assert isinstance(answers[0], dispatch.Unsupported) == (fused._run is None)


def test_polyak_needs_the_value() -> None:
    tx, optimizer = ours.polyak_sgd(2.0, scaling=0.5), theirs.polyak_sgd(2.0, scaling=0.5)
    p = np.array([1.0, -2.0])
    found, state = tx.update(torch.tensor(2 * p), tx.init(torch.tensor(p)), torch.tensor(p), value=torch.tensor(5.0))
    wanted, their_state = optimizer.update(jnp.array(2 * p), optimizer.init(jnp.array(p)), jnp.array(p), value=5.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
    assert skeleton(state) == skeleton(their_state)


@each_case
def test_pickles(name: str, args: Any, options: Any) -> None:
    tx = make(ours, name, args, options, FALLING)
    again = pickle.loads(pickle.dumps(tx))
    assert repr(again) == repr(tx)
    state = tx.init({'double': mixed_tree(F64), 'single': mixed_tree(torch.float32)})
    assert skeleton(copy.deepcopy(state)) == skeleton(state)


def test_a_low_threshold_gives_nan_as_in_optax() -> None:
    tx, optimizer = ours.scale_by_radam(b2=0.7, threshold=2.5), theirs.scale_by_radam(b2=0.7, threshold=2.5)
    g = np.array([1.0, -2.0])
    state, their_state = tx.init(torch.tensor(g)), optimizer.init(jnp.array(g))
    for _ in range(6):
        found, state = tx.update(torch.tensor(g), state)
        wanted, their_state = optimizer.update(jnp.array(g), their_state)
        np.testing.assert_allclose(found, wanted, rtol=1e-8)
    mapped = torch.vmap(lambda count, g: tx.update(g, state._replace(count=count))[0], in_dims=(0, None))
    assert mapped(torch.tensor([0, 2]), torch.tensor(g)).isnan().any()
