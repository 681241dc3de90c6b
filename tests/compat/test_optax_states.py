# SPDX-License-Identifier: Apache-2.0
"""The states of all transformations are folded as those of Optax are, whatever the options."""

from __future__ import annotations

import inspect
import pickle
import warnings
from typing import Any

import jax.numpy as jnp
import optax as theirs
import pytest
import torch

import torchopt
from tests.compat.differences import OTHER_STATES
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
    'step_size_fn': float,
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
    """The classes of all tuples in a state, and the labels of all dicts."""
    if isinstance(state, tuple):
        return [type(state).__name__, *map(skeleton, state)]
    return {key: skeleton(x) for key, x in state.items()} if isinstance(state, dict) else None


def begin(library: Any, name: str, options: dict[str, Any], params: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        return look_up(library, name)(**options).init(params)


def test_there_are_cases() -> None:
    names = {name for name, _ in CASES}
    assert len(names) > 85
    assert {'adam', 'lbfgs', 'clip', 'scale_by_rms', 'contrib.muon', 'contrib.prodigy'} < names
    assert names > OTHER_STATES.keys()


@pytest.mark.parametrize('name', sorted({name for name, _ in CASES}))
def test_states_are_folded_alike(name: str) -> None:
    alike = []
    for options in (options for other, options in CASES if other == name):
        try:
            wanted = begin(theirs, name, options, {'w': jnp.ones((2, 3)), 'b': jnp.ones(3)})
        except (TypeError, ValueError):
            continue  # Optax does not take this either
        if name in NO_SCHEDULE and callable(options.get('weight_decay')):
            continue
        found = begin(ours, name, options, {'w': torch.ones(2, 3), 'b': torch.ones(3)})
        alike.append(skeleton(found) == skeleton(wanted))
    assert alike
    assert all(alike) == (name not in OTHER_STATES), alike


FOLDED = ['acprop', 'ademamix', 'cocob', 'dog', 'dowg', 'dpsgd', 'galore', 'madgrad', 'simplified_ademamix']


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
