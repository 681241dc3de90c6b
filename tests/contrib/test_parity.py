# SPDX-License-Identifier: Apache-2.0
"""The methods of ``optax.contrib`` against Optax: 20 steps, parameters and states, in both dtypes."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

from tests.contrib.contrib_cases import OURS, ROWS, THEIRS, Row, entries, run_ours, run_theirs
from torchopt import contrib, tree
from torchopt.compat import optax as compat

F64 = torch.float64


def assert_close(found: Any, wanted: Any, tolerance: float, name: str) -> None:
    """Compare two leaves, relative to their size."""
    x, y = np.asarray(found, dtype=np.complex128), np.asarray(wanted, dtype=np.complex128)
    assert x.shape == y.shape, name
    scale = max(float(np.abs(y).max(initial=0.0)), 1e-3)
    np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * scale, err_msg=name)


SINGLE = torch.float32
RUNS = [(row, dtypes) for row in ROWS if row.twin for dtypes in ([(F64, SINGLE)] if row.alone else [(F64,), (SINGLE,)])]


@pytest.mark.parametrize(('row', 'dtypes'), RUNS, ids=lambda x: str(x).replace('torch.', ''))
def test_equals_optax_in_parameters_and_state(row: Row, dtypes: tuple[torch.dtype, ...]) -> None:
    trees = [row.params(dtype) for dtype in dtypes]
    params = dict(zip('ab', trees)) if len(trees) > 1 else trees[0]
    ours, state = run_ours(row.make(OURS), params, 20, value=row.value)
    theirs, their_state = run_theirs(row.make(THEIRS), params, 20, value=row.value)

    def compare(found: Any, wanted: Any, name: str = '') -> None:
        leaves, their_leaves = tree.leaves(found), jax.tree.leaves(wanted)
        assert len(leaves) == len(their_leaves), name
        for x, y in zip(leaves, their_leaves):
            single = x.dtype is SINGLE if len(dtypes) > 1 else dtypes == (SINGLE,)
            assert_close(x, y, row.single if single else row.double, name)

    compare(ours, theirs)
    assert [x.dtype for x in tree.leaves(ours)] == [x.dtype for x in tree.leaves(params)]
    found, wanted = entries(state), entries(their_state)
    assert found.keys() == wanted.keys()
    for name, entry in found.items():
        signed = not ('projector' in name or ('base_optimizer_state' in name and 'galore' in row.name))
        same = (lambda x: x) if signed else up_to_signs
        compare(same(entry), same(wanted[name]), name)


def up_to_signs(entry: Any) -> Any:
    """Singular vectors have no sign, and so has nothing that is seen along them."""
    return [abs(x) for x in jax.tree.leaves(entry)]


def arguments(function: Any) -> list[tuple[Any, ...]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


NAMES = [name for name in dir(optax.contrib) if not name.startswith('_')]
FACTORIES = [name for name in NAMES if inspect.isfunction(getattr(optax.contrib, name))]
STATES = [name for name in NAMES if hasattr(getattr(optax.contrib, name), '_fields')]


def test_all_names_are_there() -> None:
    assert len(FACTORIES) + len(STATES) == 58
    assert {*FACTORIES, *STATES} <= set(contrib.__all__)


# Defaults that are objects of the library, and stand for the same in ours.
OBJECTS = {'clip_value_fn', 'hessian_diagonal_fn'}


@pytest.mark.parametrize('name', FACTORIES)
def test_arguments_are_optaxs(name: str) -> None:
    # Options of Optax's development version are in contrib alone.
    home = compat.contrib if name in {'dpsgd', 'prodigy'} else contrib
    ours, theirs = arguments(getattr(home, name)), arguments(getattr(optax.contrib, name))
    assert [x[:2] for x in ours] == [x[:2] for x in theirs]
    assert [x for x in ours if x[0] not in OBJECTS] == [x for x in theirs if x[0] not in OBJECTS]


@pytest.mark.parametrize('name', STATES)
def test_states_have_optaxs_fields(name: str) -> None:
    assert getattr(contrib, name)._fields == getattr(optax.contrib, name)._fields
