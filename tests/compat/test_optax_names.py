# SPDX-License-Identifier: Apache-2.0
"""Every public name of Optax 0.2.8 is in ``torchopt.compat.optax``, with its signature, defaults and fields.

``data/optax-0.2.8.tsv`` lists them: module, name, kind.  Signatures are compared with the Optax that is installed.
"""

from __future__ import annotations

import csv
import enum
import importlib
import inspect
from collections import defaultdict
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
import pytest
import torch

import torchopt
from tests.compat.differences import OTHER_SIGNATURES
from torchopt.compat import optax as ours
from torchopt.compat.optax.leaves import is_converting

LIST = Path(__file__).parents[1] / 'data' / 'optax-0.2.8.tsv'
MODULES = [
    'assignment',
    'contrib',
    'losses',
    'microbatching',
    'perturbations',
    'projections',
    'schedules',
    'second_order',
    'transforms',
    'tree',
    'tree_utils',
]
# Optax warns that these have moved to contrib, where they are listed.
MOVED = {'DifferentiallyPrivateAggregateState', 'differentially_private_aggregate', 'dpsgd'}


class Name(NamedTuple):
    """One line of the list."""

    module: str
    name: str
    kind: str

    def __str__(self) -> str:
        return f'{self.module}.{self.name}'

    @property
    def our_module(self) -> str:
        return f'torchopt.compat.{self.module}'

    @property
    def theirs(self) -> Any:
        return look_up(self.module, self.name)

    @property
    def ours(self) -> Any:
        return look_up(self.our_module, self.name)


def look_up(module: str, name: str) -> Any:
    """What a dotted name in a module stands for."""
    found: Any = importlib.import_module(module)
    for part in name.split('.'):
        found = getattr(found, part)
    return found


def read() -> list[Name]:
    with LIST.open(encoding='utf-8') as lines:
        return [Name(**row) for row in csv.DictReader(lines, delimiter='\t')]


NAMES = read()


def test_the_list_is_that_of_the_installed_optax() -> None:
    listed = {name.name for name in NAMES if name.module == 'optax' and '.' not in name.name}
    assert optax.__version__ == ours.__version__ == '0.2.8'
    assert listed | set(MODULES) | MOVED >= set(optax.__all__)


@pytest.mark.parametrize('module', ['optax', *(f'optax.{module}' for module in MODULES)])
def test_every_name_is_there(module: str) -> None:
    for name in NAMES:
        if name.module == module:
            assert name.ours is not None, name


@pytest.mark.parametrize('module', ['optax', *(f'optax.{module}' for module in MODULES)])
def test_nothing_else_is_public(module: str) -> None:
    """So that ``from torchopt.compat.optax import *`` does not shadow more than Optax's does."""
    public = set(importlib.import_module(f'torchopt.compat.{module}').__all__)
    theirs = importlib.import_module(module)
    assert {name for name in public if name not in MOVED and not hasattr(theirs, name)} == set()


def default(value: Any) -> Any:
    """A default in a form that can be compared between the libraries."""
    if value is None or value is inspect.Parameter.empty or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (optax.GradientTransformation, torchopt.base.GradientTransformation)):
        return 'a transformation'
    if isinstance(value, (tuple, list)):
        return [default(x) for x in value]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, torch.dtype):
        return str(value).removeprefix('torch.')
    if value is jnp.float32:
        return 'float32'
    if callable(value):
        return 'a function'
    return type(value).__name__


def parameters(function: Any) -> list[tuple[Any, ...]]:
    """Names, kinds and defaults."""
    made_by = [c for c in getattr(function, '__mro__', ())[:-1] if '__init__' in vars(c) and not is_protocol(c)]
    if inspect.isclass(function) and not made_by:
        return []  # a class without arguments, whatever its Protocol says
    return [(p.name, p.kind, default(p.default)) for p in inspect.signature(function).parameters.values()]


def is_protocol(value: Any) -> bool:
    return getattr(value, '_is_protocol', False)


CALLABLE = [n for n in NAMES if n.kind in {'function', 'class', 'method'} and inspect.isroutine(n.theirs)]
CLASSES = [n for n in NAMES if n.kind == 'class' and not is_protocol(n.theirs)]


@pytest.mark.parametrize('name', [*CALLABLE, *CLASSES], ids=str)
def test_signature(name: Name) -> None:
    same = parameters(name.ours) == parameters(name.theirs)
    assert same == (str(name) not in OTHER_SIGNATURES), (parameters(name.ours), parameters(name.theirs))


@pytest.mark.parametrize('name', [n for n in NAMES if n.kind == 'namedtuple'], ids=str)
def test_fields(name: Name) -> None:
    assert name.ours._fields == name.theirs._fields
    assert name.ours._field_defaults == name.theirs._field_defaults


@pytest.mark.parametrize('name', [n for n in NAMES if n.kind == 'class' and is_protocol(n.theirs)], ids=str)
def test_protocol(name: Name) -> None:
    assert is_protocol(name.ours)
    own = {k for k in vars(name.theirs) if not k.startswith('_') or k == '__call__'}
    assert own <= set(vars(name.ours))


def test_names_for_one_thing_stand_for_one_thing() -> None:
    things = defaultdict(list)
    for name in NAMES:
        things[id(name.theirs)].append(name)
    for group in things.values():
        assert len({id(name.ours) for name in group}) == 1, group


def test_there_are_few_differences() -> None:
    assert len(OTHER_SIGNATURES) < 10
    assert set(OTHER_SIGNATURES) <= {str(name) for name in NAMES}


def test_what_has_optaxs_signature_is_the_thing_itself() -> None:
    """A face stands only where it has something to change."""
    functions = {name: getattr(ours, name) for name in ours.__all__}
    functions = {name: f.__wrapped__ if is_converting(f) else f for name, f in functions.items()}
    faces = {name for name, f in functions.items() if getattr(f, '__module__', '').startswith(ours.__name__)}
    by_name = {name.name: name for name in NAMES if name.module == 'optax'}
    same_state = {
        'adamaxw',
        'adan',
        'lamb',
        'lion',
        'nadamw',
        'polyak_sgd',
        'chain',
        'lars',
        'MultiSteps',
    }  # those differ in the state, or in the leaves that they take
    for face in faces - same_state:
        rooms = [torchopt, torchopt.transform, torchopt.schedule, torchopt.tree]
        room = next((room for room in rooms if face in room.__all__), None)
        if room is not None:
            assert parameters(getattr(room, face)) != parameters(by_name[face].theirs), face


# Names that releases from 0.0.9 to 0.2.7 had at these places, and those that 0.2.8 deprecates: module, name, and the
# successor, or None where there is none.
FORMER = [
    ('', 'AdditiveWeightDecayState', 'AddDecayedWeightsState'),
    ('', 'FactoredParameterStats', 'FactoredState'),
    ('', 'MaybeUpdateState', 'ConditionallyTransformState'),
    ('', 'ScaleByFromageState', None),
    ('', 'additive_weight_decay', 'add_decayed_weights'),
    ('', 'control_delta_method', None),
    ('', 'control_variates_jacobians', None),
    ('', 'experimental', 'microbatching'),
    ('', 'fisher_diag', 'second_order.fisher_diag'),
    ('', 'hessian_diag', 'second_order.hessian_diag'),
    ('', 'hvp', 'second_order.hvp'),
    ('', 'maybe_update', 'conditionally_transform'),
    ('', 'measure_valued_jacobians', None),
    ('', 'monte_carlo', None),
    ('', 'moving_avg_baseline', None),
    ('', 'pathwise_jacobians', None),
    ('', 'score_function_jacobians', None),
    ('contrib', 'complex_valued', 'contrib'),
    ('contrib', 'mechanic', 'contrib'),
    ('contrib', 'privacy', 'contrib'),
    ('schedules', 'inject', 'schedules'),
    ('tree_utils', 'tree_add_scalar_mul', 'tree_add_scale'),
    ('tree_utils', 'tree_l1_norm', 'tree_norm'),
    ('tree_utils', 'tree_l2_norm', 'tree_norm'),
    ('tree_utils', 'tree_linf_norm', 'tree_norm'),
    ('tree_utils', 'tree_scalar_mul', 'tree_scale'),
]


@pytest.mark.parametrize(('module', 'name', 'successor'), FORMER, ids=str)
def test_former_name(module: str, name: str, successor: str | None) -> None:
    """The error names the successor, which exists, or what to use instead."""
    place = getattr(ours, module) if module else ours
    with pytest.raises(AttributeError, match=f'has no attribute {name!r}\\. ') as raised:
        getattr(place, name)
    if successor is None:
        assert 'Optax removed it' in str(raised.value)
    else:
        assert successor in str(raised.value)
        assert attrgetter(successor)(place if hasattr(place, successor) else ours)
    assert getattr(place, 'no_such_name', None) is None
