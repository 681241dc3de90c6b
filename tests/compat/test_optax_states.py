# SPDX-License-Identifier: Apache-2.0
"""The states of all transformations are folded as those of Optax are, whatever the options."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax as theirs
import pytest
import torch

import torchopt
from tests.oracle import assert_trees_close
from torchopt.compat import optax as ours

# What the functions need: values for arguments of these names.
NEEDED: dict[str, Any] = {
    'clipping': 1.0,
    'decay': 0.9,
    'eta': 0.1,
    'gamma': 0.1,
    'k': 2,
    'l2_norm_clip': 1.0,
    'learning_rate': 0.1,
    'max_backtracking_steps': 5,
    'max_delta': 1.0,
    'max_linesearch_steps': 5,
    'max_norm': 1.0,
    'noise_multiplier': 0.1,
    'seed': 0,
    'step_size': 0.1,
    'step_size_fn': lambda count: 1.0 * count,
    'threshold': 1.0,
}
MASK = {'w': True, 'b': False}
# Those whose decay is no schedule in Optax either, which says so in its first step only.
NO_SCHEDULE = {
    'contrib.dadapt_adamw',
    'contrib.momo',
    'contrib.momo_adam',
    'contrib.prodigy',
    'novograd',
    'scale_by_novograd',
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {'weight_decay': 0.1},
    {'weight_decay': 0.0},
    {'weight_decay': 0.1, 'mask': MASK},
    {'weight_decay': 0.0, 'mask': MASK},
    {'weight_decay': 0.1, 'weight_decay_mask': MASK},
    {'weight_decay': 0.0, 'weight_decay_mask': MASK},
    {'weight_decay': lambda count: 0.1},
    {'momentum': 0.9},
    {'momentum': 0.0},
    {'centered': True},
    {'bias_correction': True},
    {'learning_rate': lambda count: 0.1},
    {'learning_rate': lambda count: 0.1, 'weight_decay': 0.0},
]


def look_up(library: Any, name: str) -> Any:
    return getattr(library.contrib, name.removeprefix('contrib.')) if 'contrib.' in name else getattr(library, name)


def cases() -> list[tuple[str, dict[str, Any]]]:
    """All functions that make a transformation by themselves, with the options that Optax accepts."""
    names = [name for name in ours.__all__ if hasattr(torchopt.transform, name) or hasattr(torchopt.alias, name)]
    names += [name for name in torchopt.clip.__all__ if name in ours.__all__]
    found = []
    for name in sorted({*names, *(f'contrib.{name}' for name in ours.contrib.__all__)}):
        function = look_up(theirs, name)
        if not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters
        needed = {key for key, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL}
        if needed <= NEEDED.keys():
            with_key = {'key': 0} if 'key' in parameters else {}
            given = {**{key: NEEDED[key] for key in needed}, **with_key}
            found += [(name, {**given, **o}) for o in OPTIONS if o.keys() <= parameters.keys()]
    return found


CASES = cases()


def skeleton(state: Any) -> Any:
    """The classes and fields of all nodes of a state, and the shapes of its leaves."""
    if isinstance(state, dict):
        return type(state).__name__, {key: skeleton(state[key]) for key in sorted(state)}
    if isinstance(state, (tuple, list)):
        return type(state).__name__, getattr(state, '_fields', None), [skeleton(x) for x in state]
    if str(getattr(state, 'dtype', '')).startswith('key') or is_old_key(state):
        return ()  # a key, one number here
    return tuple(state.shape) if hasattr(state, 'shape') else state


def is_old_key(leaf: Any) -> bool:
    return isinstance(leaf, jnp.ndarray) and (leaf.dtype, leaf.shape) == (jnp.uint32, (2,))


def begin(library: Any, name: str, options: dict[str, Any], params: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        return look_up(library, name)(**options).init(params)


def test_there_are_cases() -> None:
    names = {name for name, _ in CASES}
    assert len(names) > 85
    assert {'adam', 'lbfgs', 'clip', 'scale_by_rms', 'contrib.muon', 'contrib.prodigy'} < names


@pytest.mark.parametrize('name', sorted({name for name, _ in CASES}))
def test_states_are_folded_alike(name: str) -> None:
    compared = 0
    for options in (options for other, options in CASES if other == name):
        try:
            wanted = begin(theirs, name, options, {'w': jnp.ones((2, 3)), 'b': jnp.ones(3)})
        except (TypeError, ValueError):
            continue  # Optax does not take this either
        if name in NO_SCHEDULE and callable(options.get('weight_decay')):
            continue
        found = begin(ours, name, options, {'w': torch.ones(2, 3), 'b': torch.ones(3)})
        assert skeleton(found) == skeleton(wanted), options
        compared += 1
    assert compared


def decays(name: str) -> bool:
    return 'weight_decay' in inspect.signature(look_up(theirs, name)).parameters


@pytest.mark.parametrize('name', sorted({name for name, _ in CASES if decays(name)} - NO_SCHEDULE))
def test_the_structure_depends_on_no_value(name: str) -> None:
    """So that a decay of zero can be injected, and a state be loaded into an optimizer with another decay."""
    params = {'w': torch.ones(2, 3), 'b': torch.ones(3)}
    options = next(options for other, options in CASES if other == name)
    states = [begin(ours, name, {**options, 'weight_decay': decay}, params) for decay in (0.0, 0.1)]
    static = [key for key in ('rank',) if key in inspect.signature(look_up(ours, name)).parameters]
    injected = ours.inject_hyperparams(look_up(ours, name), static_args=static)
    states.append(injected(**options, weight_decay=0.0).init(params).inner_state)
    assert skeleton(states[0]) == skeleton(states[1]) == skeleton(states[2])


def every(make: Callable[..., Any]) -> tuple[Any, Any]:
    """The state that a function of the library and its params makes, in both."""
    return (
        skeleton(make(ours, {'w': torch.ones(2, 3), 'b': torch.ones(3)})),
        skeleton(make(theirs, {'w': jnp.ones((2, 3)), 'b': jnp.ones(3)})),
    )


WRAPPED: dict[str, Callable[[Any], Any]] = {
    'apply_if_finite': lambda o: o.apply_if_finite(o.adam(0.1), 3),
    'chain': lambda o: o.chain(o.identity(), o.chain(o.adamw(0.1, weight_decay=0.0), o.scale(1.0))),
    'conditionally_mask': lambda o: o.conditionally_mask(o.adam(0.1), lambda step: step > 1),
    'conditionally_transform': lambda o: o.conditionally_transform(o.adam(0.1), lambda step: step > 1),
    'contrib.mechanize': lambda o: o.contrib.mechanize(o.adamw(0.1, weight_decay=0.0)),
    'contrib.sam': lambda o: o.contrib.sam(o.adam(0.1), o.sgd(0.1)),
    'contrib.schedule_free': lambda o: o.contrib.schedule_free(o.sgd(0.1), 0.1),
    'contrib.split_real_and_imaginary': lambda o: o.contrib.split_real_and_imaginary(o.adam(0.1)),
    'flatten': lambda o: o.flatten(o.chain(o.adam(0.1))),
    'inject_hyperparams': lambda o: o.inject_hyperparams(o.adamw)(0.1, weight_decay=0.0),
    # The number of iterations is an int, which torchopt leaves out of the state; see the porting page.
    'injected muon': lambda o: o.inject_hyperparams(o.contrib.muon, 'ns_steps')(0.1, adam_weight_decay=0.1),
    'inject_stateful_hyperparams': lambda o: o.schedules.inject_stateful_hyperparams(o.adamw)(lambda count: 0.1),
    'masked': lambda o: o.masked(o.adamw(0.1, weight_decay=0.0), MASK),
    'multi_steps': lambda o: o.MultiSteps(o.adam(0.1), 2),
    'muon, one decay': lambda o: o.contrib.muon(0.1, adam_weight_decay=0.1),
    'muon, masked': lambda o: o.contrib.muon(0.1, weight_decay_mask=MASK),
    'muon, mu_dtype': lambda o: o.contrib.muon(0.1, adam_learning_rate=lambda count: 0.1, mu_dtype='bfloat16'),
    'named_chain': lambda o: o.named_chain(('b', o.adam(0.1)), ('a', o.sgd(0.1))),
    'partition': lambda o: o.partition({'a': o.adamw(0.1, weight_decay=0.0), 'b': o.sgd(0.1)}, {'w': 'a', 'b': 'b'}),
    'schedule_free_adamw, warmup': lambda o: o.contrib.schedule_free_adamw(0.1, 3),
    'schedule_free_sgd, warmup': lambda o: o.contrib.schedule_free_sgd(0.1, 3, weight_decay=0.1),
    'skip_not_finite': lambda o: o.MultiSteps(o.adam(0.1), 2, should_skip_update_fn=o.skip_not_finite),
    'snapshot': lambda o: o.snapshot('norm', o.global_norm),
    'monitor': lambda o: o.monitor({'norm': o.global_norm}),
}


@pytest.mark.parametrize('name', WRAPPED)
def test_states_of_wrappers_are_folded_alike(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        found, wanted = every(lambda library, params: WRAPPED[name](library).init(params))
    assert found == wanted


FOLDED = ['acprop', 'ademamix', 'cocob', 'dog', 'dowg', 'dpsgd', 'galore', 'madgrad', 'muon', 'simplified_ademamix']


@pytest.mark.parametrize('weight_decay', [0.0, 0.1])
@pytest.mark.parametrize('name', [*(f'contrib.{name}' for name in FOLDED), 'adan', 'lamb', 'lion', 'nadamw'])
def test_folding_changes_no_number(name: str, weight_decay: float) -> None:
    """Steps of the folded optimizer are those of the room's, also of one that was pickled."""
    parameters = inspect.signature(look_up(ours, name)).parameters
    options = {key: NEEDED[key] for key, p in parameters.items() if key in NEEDED and p.default is p.empty}
    if 'weight_decay' in parameters:
        options['weight_decay'] = weight_decay
    tx = pickle.loads(pickle.dumps(look_up(ours, name)(**options)))
    room = torchopt.contrib if 'contrib.' in name else torchopt.alias
    plain = getattr(room, name.removeprefix('contrib.'))(**options)
    params = {'w': torch.tensor([[0.5, -1.0, 2.0]]), 'b': torch.tensor([1.0])}
    g = {'w': torch.tensor([[0.5, -1.5, 0.1]]), 'b': torch.tensor([-0.3])}
    if name == 'contrib.dpsgd':
        g = {key: torch.stack([x, -2 * x]) for key, x in g.items()}
    state, plain_state = tx.init(params), plain.init(params)
    for _ in range(3):
        updates, state = tx.update(g, state, params)
        wanted, plain_state = plain.update(g, plain_state, params)
        assert_trees_close(updates, wanted, 1e-7)
