# SPDX-License-Identifier: Apache-2.0
"""What functions of Optax are given may be spelled as in Optax: keys, dtypes, and leaves that are no tensors."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax as theirs
import pytest
import torch

from tests.compat.test_optax_states import begin, cases, look_up
from torchopt import tree
from torchopt.compat import optax as ours

DTYPES = {'mu_dtype', 'accumulator_dtype', 'state_dtype', 'dtype_momentum', 'param_dtype', 'hyperparam_dtype', 'dtype'}
PARAMS = {'w': torch.ones(2, 3), 'b': torch.ones(3)}


def takes(argument: str) -> list[tuple[str, dict[str, Any]]]:
    """Functions that make a transformation and have this argument, with the options that they need."""
    found: dict[str, dict[str, Any]] = {}
    for name, options in cases():
        if argument in inspect.signature(look_up(ours, name)).parameters:
            found.setdefault(name, options)
    return list(found.items())


def dtypes(state: Any) -> list[torch.dtype]:
    return [x.dtype for x in tree.leaves(state)]


WITH_DTYPE = [(name, key, options) for key in sorted(DTYPES) for name, options in takes(key)]


def test_there_are_functions_with_dtypes() -> None:
    assert {'adam', 'sgd', 'ema', 'adafactor', 'contrib.sophia', 'scale_by_distance_over_gradients'} < {
        name for name, _, _ in WITH_DTYPE
    }


@pytest.mark.parametrize(('name', 'argument', 'options'), WITH_DTYPE, ids=lambda x: x if isinstance(x, str) else '')
@pytest.mark.parametrize('spelling', ['bfloat16', np.float16, np.dtype('float16'), jnp.bfloat16], ids=str)
def test_dtypes_have_many_spellings(name: str, argument: str, options: dict[str, Any], spelling: Any) -> None:
    """The state is in the dtypes of Optax's; where there is a momentum to keep, it is kept."""
    options = {**options, argument: spelling}
    if 'momentum' in inspect.signature(look_up(ours, name)).parameters:
        options['momentum'] = 0.9
    state = begin(ours, name, options, PARAMS)
    wanted = begin(theirs, name, options, {'b': jnp.ones(3), 'w': jnp.ones((2, 3))})
    meant = torch.bfloat16 if 'bfloat16' in str(spelling) else torch.float16
    assert meant in dtypes(state)
    assert dtypes(state) == dtypes(begin(ours, name, {**options, argument: meant}, PARAMS))
    assert sorted(dtypes(state), key=str).count(meant) == sum(
        str(getattr(x, 'dtype', '')) == str(meant).removeprefix('torch.') for x in tree.leaves(wanted)
    )


BY_DTYPE: dict[str, Callable[[Any], Any]] = {
    'MultiSteps': lambda dtype: ours.MultiSteps(ours.sgd(0.1), 2, accumulator_dtype=dtype).init(PARAMS).acc_grads['w'],
    'inject_hyperparams': lambda dtype: (
        ours.inject_hyperparams(ours.sgd, hyperparam_dtype=dtype)(0.1).init(PARAMS).hyperparams['learning_rate']
    ),
    'inject_stateful_hyperparams': lambda dtype: (
        ours.schedules.inject_stateful_hyperparams(ours.sgd, hyperparam_dtype=dtype)(0.1)
        .init(PARAMS)
        .hyperparams['learning_rate']
    ),
    'measure_with_ema': lambda dtype: tree.get(
        ours.measure_with_ema(ours.global_norm, 0.9, accumulator_dtype=dtype).init(PARAMS), 'ema'
    ),
    'contrib.schedule_free': lambda dtype: (
        ours.contrib.schedule_free(ours.sgd(0.1), 0.1, state_dtype=dtype).init(PARAMS).z['w']
    ),
    'tree.cast': lambda dtype: ours.tree.cast(PARAMS, dtype)['w'],
    'tree.zeros_like': lambda dtype: ours.tree.zeros_like(PARAMS, dtype)['w'],
    'tree.ones_like': lambda dtype: ours.tree.ones_like(PARAMS, dtype)['w'],
    'tree.full_like': lambda dtype: ours.tree.full_like(PARAMS, 2.0, dtype)['w'],
    'tree.full_like, a tensor': lambda dtype: ours.tree.full_like(PARAMS, torch.tensor(2.0), dtype)['w'],
    'tree.random_like': lambda dtype: ours.tree.random_like(0, PARAMS, dtype=dtype)['w'],
    'Gumbel': lambda dtype: ours.perturbations.Gumbel().sample(0, (2,), dtype),
    'Normal': lambda dtype: ours.perturbations.Normal().sample(0, (2,), dtype),
}


@pytest.mark.parametrize('name', BY_DTYPE)
@pytest.mark.parametrize('spelling', ['bfloat16', np.float16, np.dtype('float16'), jnp.bfloat16, 'double'], ids=str)
def test_other_dtypes_have_them_too(name: str, spelling: Any) -> None:
    meant = torch.float64 if spelling == 'double' else torch.float16
    if 'bfloat16' in str(spelling):
        meant = torch.bfloat16
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        assert BY_DTYPE[name](spelling).dtype == meant


@pytest.mark.parametrize('dtype', ['bfloat17', 'nn', 'str', object, 3, np.dtype('U3')], ids=str)
def test_what_is_no_dtype_is_refused(dtype: Any) -> None:
    for call in (lambda: ours.tree.zeros_like(PARAMS, dtype), lambda: ours.adam(0.1, mu_dtype=dtype)):
        with pytest.raises(TypeError, match=r'Invalid (dtype|mu_dtype value): .*; expected a .*torch.bfloat16'):
            call()
    with pytest.raises(TypeError, match='expected a real floating dtype'):
        ours.adam(0.1, mu_dtype='int32')


SEEDS = [
    3,
    np.int64(3),
    np.array(3),
    torch.tensor(3),
    torch.tensor(3, dtype=torch.int32),
    torch.tensor(3).to(torch.uint8),
]
BY_KEY: dict[str, Callable[[Any], Any]] = {
    **{
        name: lambda key, name=name, options=options: begin(ours, name, {**options, **with_key(name, key)}, PARAMS)
        for argument in ('key', 'seed', 'random_seed')
        for name, options in takes(argument)
    },
    'power_iteration': lambda key: ours.power_iteration(
        torch.diag(torch.tensor([1.0, 2.0, 2.0])), num_iters=2, key=key
    ),
    'tree.random_like': lambda key: ours.tree.random_like(key, PARAMS),
    'tree.split_key_like': lambda key: ours.tree.split_key_like(key, PARAMS),
    'Gumbel': lambda key: ours.perturbations.Gumbel().sample(key, (3,)),
    'Normal': lambda key: ours.perturbations.Normal().sample(key, (3,)),
    'multi_normal': lambda key: ours.multi_normal(torch.zeros(2), torch.zeros(2)).sample((3,), key),
    'make_perturbed_fun': lambda key: ours.perturbations.make_perturbed_fun(torch.sin, 3)(key, torch.ones(2)),
}


def with_key(name: str, key: Any) -> dict[str, Any]:
    parameters = inspect.signature(look_up(ours, name)).parameters
    return {next(x for x in ('key', 'random_seed', 'seed') if x in parameters): key}


@pytest.mark.parametrize('name', BY_KEY)
def test_keys_have_many_spellings(name: str) -> None:
    found = [tree.leaves(BY_KEY[name](seed)) for seed in SEEDS]
    assert len({str(x) for x in found}) == 1
    assert str(tree.leaves(BY_KEY[name](4))) != str(found[0])


@pytest.mark.parametrize('name', BY_KEY)
@pytest.mark.parametrize(
    'key', [1.5, True, 'seed', torch.tensor(1.0), torch.tensor([1, 2]), torch.tensor(True)], ids=str
)
def test_what_is_no_key_is_refused(name: str, key: Any) -> None:
    with pytest.raises(TypeError, match=r'Invalid (key|rng_key): .* expected an int, a 0-d integer tensor'):
        BY_KEY[name](key)


def test_keys_of_a_state_are_keys() -> None:
    """As ``jax.random.split`` of a key that was split before."""
    first = ours.add_noise(0.1, 0.5, 0)
    state = first.update(PARAMS, first.init(PARAMS))[1]
    again = ours.add_noise(0.1, 0.5, state.rng_key)
    assert torch.equal(again.init(PARAMS).rng_key, state.rng_key)


def test_a_key_that_is_mapped_over_cannot_be_read_by_a_generator() -> None:
    with pytest.raises(TypeError, match='mapped over or traced, whose value cannot be read'):
        torch.func.vmap(lambda key: ours.tree.random_like(key, torch.ones(2)))(torch.arange(3))
    noise = torch.func.vmap(lambda key: ours.add_noise(1.0, 0.0, key).init(None).rng_key)(torch.arange(3))
    assert noise.tolist() == [0, 1, 2]
