# SPDX-License-Identifier: Apache-2.0
"""Every public name of JAXopt 0.8.5 is in ``torchopt.compat.jaxopt``, with its signature and defaults.

``data/jaxopt-0.8.5.tsv`` lists them: module, name, kind, signature.  Signatures are compared with the JAXopt that is
installed.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    import jaxopt

from tests.compat.jaxopt_differences import INTERNAL, OTHER_SIGNATURES
from torchopt.compat import jaxopt as ours

LIST = Path(__file__).parents[1] / 'data' / 'jaxopt-0.8.5.tsv'


class Name(NamedTuple):
    """One line of the list."""

    module: str
    name: str
    kind: str

    def __str__(self) -> str:
        return f'{self.module}.{self.name}'

    @property
    def theirs(self) -> Any:
        return look_up(self.module, self.name)

    @property
    def ours(self) -> Any:
        return look_up(f'torchopt.compat.{self.module}', self.name)


def look_up(module: str, name: str) -> Any:
    """What a dotted name in a module stands for."""
    found: Any = importlib.import_module(module)
    for part in name.split('.'):
        found = getattr(found, part)
    return found


NAMES = [Name(*line.split('\t')[:3]) for line in LIST.read_text(encoding='utf-8').splitlines()]
PRESENT = [name for name in NAMES if str(name) not in INTERNAL]


def default(value: Any) -> Any:
    """A default in a form that can be compared between the libraries."""
    if value is None or value is inspect.Parameter.empty or isinstance(value, (bool, int, float, str)):
        return value
    if value is np.float64:
        return 'float64'
    if isinstance(value, (dict, list)):
        return [list(value), type(value).__name__]
    return 'a function' if callable(value) else type(value).__name__


def parameters(function: Any) -> list[tuple[Any, ...]]:
    """Names, kinds and defaults."""
    if inspect.isclass(function) and function.__init__ is object.__init__:
        return []
    return [(p.name, p.kind, default(p.default)) for p in inspect.signature(function).parameters.values()]


def test_the_list_is_that_of_the_installed_jaxopt() -> None:
    listed = {name.name for name in NAMES if name.module == 'jaxopt' and '.' not in name.name}
    classes = {name for name, value in vars(jaxopt).items() if inspect.isclass(value)}
    assert ours.__version__ == importlib.metadata.version('jaxopt') == '0.8.5'
    assert listed == classes


@pytest.mark.parametrize('module', sorted({name.module for name in NAMES}))
def test_every_name_is_there(module: str) -> None:
    for name in PRESENT:
        if name.module == module and name.kind != 'method':
            assert name.ours is not None, name


@pytest.mark.parametrize('module', ['jaxopt', *sorted({f'jaxopt.{m}' for m in ours.__all__ if m.islower()})])
def test_nothing_else_is_public(module: str) -> None:
    theirs = importlib.import_module(module)
    public = set(importlib.import_module(f'torchopt.compat.{module}').__all__)
    submodules = {'base', 'linear_solve', 'loop', 'perturbations', 'tree_util'}  # imported by name in JAXopt
    assert {name for name in public - submodules if not hasattr(theirs, name)} == set()


SOLVERS = [n for n in PRESENT if n.module == 'jaxopt' and n.kind == 'class']
FUNCTIONS = [n for n in PRESENT if n.kind == 'function']


@pytest.mark.parametrize('name', SOLVERS, ids=str)
def test_constructor(name: Name) -> None:
    assert parameters(name.ours) == parameters(name.theirs)
    if dataclasses.is_dataclass(name.theirs):
        fields = tuple(field.name for field in dataclasses.fields(name.theirs))
        assert tuple(inspect.signature(name.ours).parameters) == fields


@pytest.mark.parametrize('name', FUNCTIONS, ids=str)
def test_function(name: Name) -> None:
    same = parameters(name.ours) == parameters(name.theirs)
    assert same == (str(name) not in OTHER_SIGNATURES), (parameters(name.ours), parameters(name.theirs))


def takes(function: Any) -> tuple[list[str], bool, bool]:
    """The arguments by name, and whether there may be more by position and by name."""
    found = inspect.signature(function).parameters.values()
    named = [p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
    return named, any(p.kind is p.VAR_POSITIONAL for p in found), any(p.kind is p.VAR_KEYWORD for p in found)


@pytest.mark.parametrize('name', [n for n in PRESENT if n.kind == 'method'], ids=str)
def test_method(name: Name) -> None:
    if str(name) in OTHER_SIGNATURES or name.name.endswith(('.prox', '.solve')):  # functions that users give
        return
    (theirs, *_), (mine, more, _) = takes(name.theirs), takes(name.ours)
    own = {'init_params': 'params', 'sol': 'params'}
    for a, b in zip(theirs, mine):
        assert own.get(a, a) == own.get(b, b), (theirs, mine)
    assert more or len(mine) >= len(theirs), (theirs, mine)


@pytest.mark.parametrize('name', [n for n in PRESENT if n.kind == 'namedtuple'], ids=str)
def test_fields(name: Name) -> None:
    assert name.ours._fields == name.theirs._fields
    assert name.ours._field_defaults == name.theirs._field_defaults


def test_there_are_few_differences() -> None:
    assert set(OTHER_SIGNATURES) <= {str(name) for name in NAMES}
    assert len(OTHER_SIGNATURES) < 20


def test_options_by_position_and_attribute_values() -> None:
    solver = ours.GaussNewton(lambda x: x, 7, 0.5, False)
    assert solver.attribute_names() == ('residual_fun', 'maxiter', 'tol', *list(solver.attribute_names())[3:])
    assert solver.attribute_values()[1:4] == (7, 0.5, False)
    with pytest.raises(TypeError, match='residual_fun'):
        ours.GaussNewton()
