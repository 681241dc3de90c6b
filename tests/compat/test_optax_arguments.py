# SPDX-License-Identifier: Apache-2.0
"""What functions of Optax are given may be spelled as in Optax: keys, dtypes, and leaves that are no tensors."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax as theirs
import pytest
import torch

import torchopt
from tests.compat.test_optax_states import begin, cases, look_up
from tests.oracle import assert_trees_close
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
    with pytest.raises(TypeError, match='expected a floating dtype'):
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
    with pytest.raises(TypeError, match='whose value cannot be read'):
        torch.func.vmap(lambda key: ours.tree.random_like(key, torch.ones(2)))(torch.arange(3))
    noise = torch.func.vmap(lambda key: ours.add_noise(1.0, 0.0, key).init(None).rng_key)(torch.arange(3))
    assert noise.tolist() == [0, 1, 2]


W = np.array([[0.5, -1.0, 2.0], [1.0, 2.0, 3.0]], np.float32)
B = np.array([0.1, 0.2, 0.3], np.float32)
LEAVES: dict[str, Callable[[np.ndarray], Any]] = {
    'arrays': lambda x: x,
    'numbers': lambda x: float(x.ravel()[0]),
    'scalars': lambda x: x.ravel()[0],
}


def objective(params: Any, **extra: Any) -> torch.Tensor:
    return sum(torch.as_tensor(x).square().sum() for x in tree.leaves(params))


def two_steps(tx: Any, params: Any, grads: Any) -> Any:
    state = tx.init(params)
    extra = {'value': torch.tensor(1.0), 'grad': grads, 'value_fn': objective, 'obj_fn': objective}
    update = tx.update if isinstance(tx, ours.MultiSteps) else ours.with_extra_args_support(tx).update
    for _ in range(2):
        updates, state = update(grads, state, params, **extra)
        params = ours.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize('kind', LEAVES)
@pytest.mark.parametrize('name', sorted({name for name, _ in cases()} - {'contrib.scale_by_muon'}))
def test_leaves_may_be_arrays_and_numbers(name: str, kind: str) -> None:
    """Values and states are those of the same leaves as tensors."""
    options = next(options for other, options in cases() if other == name)
    convert = LEAVES[kind]
    params, grads = {'w': convert(W), 'b': convert(B)}, {'w': convert(0.3 * W + 0.1), 'b': convert(-0.2 * B)}
    if name in {'contrib.dpsgd', 'contrib.differentially_private_aggregate'}:  # of single examples
        grads = {key: np.stack([x, x]) for key, x in grads.items()}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        tx = look_up(ours, name)(**options)
    found = two_steps(tx, params, grads)
    wanted = two_steps(tx, tree.map(torch.as_tensor, params), tree.map(torch.as_tensor, grads))
    assert all(isinstance(x, torch.Tensor) for x in tree.leaves(found))
    assert_trees_close(found, wanted, 0.0)


NESTED: dict[str, Callable[[], Any]] = {
    'MultiSteps': lambda: ours.MultiSteps(ours.adam(0.1), 2),
    'chain': lambda: ours.chain(ours.clip_by_global_norm(1.0), ours.adam(0.1)),
    'inject_hyperparams': lambda: ours.inject_hyperparams(ours.adam)(0.1),
    'masked': lambda: ours.masked(ours.adam(0.1), {'w': True, 'b': False}),
    'named_chain': lambda: ours.named_chain(('clip', ours.clip(1.0)), ('adam', ours.adam(0.1))),
    'partition': lambda: ours.partition({'a': ours.adam(0.1), 'b': ours.sgd(0.1)}, {'w': 'a', 'b': 'b'}),
    'sam': lambda: ours.contrib.sam(ours.adam(0.1), ours.sgd(0.1)),
    'schedule_free': lambda: ours.contrib.schedule_free(ours.sgd(0.1), 0.1),
}


@pytest.mark.parametrize('name', NESTED)
def test_so_may_those_of_what_is_composed(name: str) -> None:
    """Also of what was pickled."""
    made = NESTED[name]()
    params, grads = {'w': W, 'b': 2.0}, {'w': 0.3 * W, 'b': np.float32(0.5)}
    wanted = two_steps(made, tree.map(torch.as_tensor, params), tree.map(torch.as_tensor, grads))
    for tx in (made, pickle.loads(pickle.dumps(made))):
        assert_trees_close(two_steps(tx, params, grads), wanted, 0.0)


def test_functions_that_make_transformations_can_be_pickled() -> None:
    for function in (ours.adam, ours.lbfgs, ours.clip, ours.contrib.muon, ours.inject_hyperparams, ours.contrib.dog):
        assert pickle.loads(pickle.dumps(function)) is function


def test_integers_are_no_parameters() -> None:
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype torch.int64; expected a floating or complex dtype"):
        ours.adam(0.1).init({'n': 3})


def test_members_of_a_chain_share_a_pass_and_know_their_extra_arguments() -> None:
    """Wrapped transformations do not hide from chains what these look for."""
    chain = ours.chain(ours.scale_by_lion(), ours.add_decayed_weights(0.1), ours.scale(-1.0))
    assert [len(x) for x in (chain.init(PARAMS), chain.inner.members)] == [3, 3]
    assert not any(hasattr(tx, 'inner') for tx in chain.inner.members)
    mixed = torchopt.chain(ours.scale_by_lion(), ours.scale(-1.0))
    updates, _ = mixed.update(PARAMS, mixed.init(PARAMS), value=1.0)
    assert torch.equal(updates['b'], -torch.ones(3))


def search(value_fn: Callable[..., Any], **extra: Any) -> None:
    tx, p = ours.scale_by_backtracking_linesearch(3), torch.ones(2)
    tx.update(-p, tx.init(p), p, value=p.sum(), grad=p, value_fn=value_fn, **extra)


MESSAGES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    'a deprecated name': (
        lambda: ours.optimistic_adam(0.1),
        DeprecationWarning,
        'please use `optimistic_adam_v2` instead',
    ),
    'a schedule': (lambda: ours.optimistic_adam(lambda count: 0.1), ValueError, 'use `optimistic_adam_v2` instead'),
    'arguments of a line search': (
        lambda: search(lambda p: p.sum(), batch=torch.ones(2)),
        TypeError,
        r"Unexpected keyword arguments.*\['batch'\]",
    ),
    'names of members': (
        lambda: ours.named_chain(('a', ours.sgd(0.1)), ('a', ours.sgd(0.1))),
        ValueError,
        'Named transformations must have unique names',
    ),
    'states of a chain': (
        lambda: ours.adam(0.1).update(PARAMS, ()),
        ValueError,
        'The number of updates and states has to be the same in chain!',
    ),
}


@pytest.mark.filterwarnings('ignore:.optimistic_adam. is deprecated')
@pytest.mark.parametrize('name', MESSAGES)
def test_messages_have_the_words_of_optax(name: str) -> None:
    call, kind, words = MESSAGES[name]
    with pytest.warns(kind, match=words) if issubclass(kind, Warning) else pytest.raises(kind, match=words):
        call()


DEPRECATED: dict[str, Callable[[], Any]] = {
    'optimistic_adam': lambda: ours.optimistic_adam(0.1),
    'add_noise': lambda: ours.add_noise(0.1, 0.5, seed=1),
    'noisy_sgd': lambda: ours.noisy_sgd(0.1, seed=1),
    'private': lambda: ours.contrib.differentially_private_aggregate(1.0, 1.0, seed=1),
    'injected': lambda: ours.schedules.inject_stateful_hyperparams(ours.sgd),
    "torchopt's own": lambda: torchopt.alias.optimistic_adam(0.1),
}


@pytest.mark.parametrize('name', DEPRECATED)
def test_deprecated_names_warn_where_they_are_used(name: str) -> None:
    with pytest.warns(DeprecationWarning) as caught:
        DEPRECATED[name]()
    assert [x.filename for x in caught] == [__file__]
