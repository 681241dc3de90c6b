# SPDX-License-Identifier: Apache-2.0
"""``apply_updates`` in all dtypes, norms, decays, and what is exported again."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax as theirs
import pytest
import torch

import torchopt
from tests.compat.test_optax_names import NAMES, Name
from torchopt.compat import optax as ours

jax.config.update('jax_enable_x64', True)

DTYPES = ['bool', 'int8', 'int32', 'int64', 'bfloat16', 'float16', 'float32', 'float64', 'complex64', 'complex128']


def both(values: Any, dtype: str) -> tuple[Any, Any]:
    x = np.array(values)
    x = x if dtype.startswith('complex') else x.real
    return torch.tensor(x).to(getattr(torch, dtype)), jnp.array(x).astype(dtype)


@pytest.mark.parametrize('update_dtype', DTYPES)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.filterwarnings('ignore:Casting from complex')
def test_apply_updates_in_every_dtype(dtype: str, update_dtype: str) -> None:
    """The sum comes back in the dtype of the parameter, as in Optax."""
    p, q = both([1.0 + 2.0j, 3.0, -5.0, 0.0], dtype)
    u, v = both([0.7 - 1.0j, 1.6, -1.3, 100.0], update_dtype)
    new, wanted = ours.apply_updates([p], [u])[0], theirs.apply_updates([q], [v])[0]
    assert str(new.dtype).removeprefix('torch.') == str(wanted.dtype) == dtype
    kind = np.complex128 if dtype.startswith('complex') else np.float64
    found = new.to(torch.complex128).numpy() if new.is_complex() else new.double().numpy()
    # Which of two halves the sum of a half and an integer is made in is up to each library.
    tolerance = 1e-2 if 'float16' in dtype + update_dtype else 1e-6
    np.testing.assert_allclose(found, np.asarray(wanted, dtype=kind), rtol=tolerance)


def test_apply_updates_in_other_shapes() -> None:
    """Numbers, no parameters and no elements."""
    params = {'row': [1.0, 2.0], 'number': 3.0, 'none': None, 'empty': np.zeros((0, 2)), 'scalar': 0.5}
    updates = {'row': 0.25, 'number': 1.0, 'none': None, 'empty': np.zeros((0, 2)), 'scalar': -1.0}

    def arrays(tree: Any, make: Any) -> Any:
        return {k: x if x is None or k == 'number' else make(x) for k, x in tree.items()}

    wanted = theirs.apply_updates(arrays(params, jnp.array), arrays(updates, jnp.array))
    found = ours.apply_updates(arrays(params, torch.tensor), arrays(updates, torch.tensor))
    assert found.keys() == wanted.keys()
    assert found['none'] is wanted['none'] is None
    for key in found.keys() - {'none'}:
        assert found[key].shape == wanted[key].shape
        np.testing.assert_allclose(found[key], wanted[key], rtol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.int64])
@pytest.mark.parametrize('requires_grad', [False, True])
def test_apply_updates_never_mutates(dtype: torch.dtype, requires_grad: bool) -> None:
    p = torch.ones(3, dtype=dtype)
    if requires_grad and dtype.is_floating_point:
        p.requires_grad_()
    u = torch.full((3,), 2.0)
    new = ours.apply_updates({'p': p}, {'p': u})['p']
    assert new is not p
    assert new.data_ptr() != p.data_ptr()
    assert p.tolist() == [1, 1, 1]
    assert new.tolist() == [3, 3, 3]
    assert u.tolist() == [2, 2, 2]
    assert list(inspect.signature(ours.apply_updates).parameters) == ['params', 'updates']


def test_apply_updates_is_differentiable_in_both() -> None:
    for update in (torch.ones(2, dtype=torch.float64), torch.ones((), dtype=torch.float64)):
        p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *x: ours.apply_updates(x[0], x[1]), (p, update.requires_grad_()))


def test_apply_updates_refuses_another_structure() -> None:
    with pytest.raises(ValueError, match='updates'):
        ours.apply_updates({'w': torch.ones(1)}, {'v': torch.ones(1)})


@pytest.mark.parametrize('shapes', [((3,), (3, 1)), ((), (2,)), ((2, 3), (1, 3)), ((0,), (1,))])
def test_apply_updates_refuses_other_shapes(shapes: Any) -> None:
    p, u = map(torch.zeros, shapes)
    for params, updates in ((p, u), (p.long(), u), (p.numpy(), u.numpy())):
        with pytest.raises(ValueError, match=r"updates\['w'\] has shape .* but params\['w'\] has shape"):
            ours.apply_updates({'w': params}, {'w': updates})


@pytest.mark.parametrize('values', [[[3.0], [4.0, 12.0]], [[0.0], [0.0]], [[np.inf], [1.0]], [[], []]])
@pytest.mark.filterwarnings('ignore:optax.global_norm is deprecated')
def test_global_norm(values: Any) -> None:
    found = ours.global_norm([torch.tensor(x, dtype=torch.float64) for x in values])
    np.testing.assert_allclose(found, theirs.global_norm([jnp.array(x) for x in values]), rtol=1e-12)


def test_global_norm_where_squares_overflow() -> None:
    """Optax's is infinite there."""
    assert ours.global_norm([torch.tensor([x], dtype=torch.float64) for x in (1e-200, 1e200)]) == 1e200


@pytest.mark.parametrize(
    ('args', 'options'),
    [
        ((0.5, 3, 0.9), {}),
        ((0.5, 3, 0.9, 2, True), {}),
        ((0.5, 3, 0.9, 2, False, 0.4), {}),
        ((0.5, 3, 1.5), {'end_value': 0.8, 'transition_begin': -2}),
        ((0.5, 0, 0.9), {}),
        ((0.5, 3, 0.0), {}),
        ((-0.5, 2.5, 0.1), {'staircase': True, 'end_value': -0.2}),
    ],
)
def test_exponential_decay(args: Any, options: Any) -> None:
    found, wanted = ours.exponential_decay(*args, **options), theirs.exponential_decay(*args, **options)
    counts = [0, 1, 2, 3, 5, 9, 1000]
    values = [float(wanted(jnp.array(float(t)))) for t in counts]
    np.testing.assert_allclose([found(t) for t in counts], values, rtol=1e-8)
    assert ours.schedules.exponential_decay is ours.exponential_decay


AGAIN = ['assignment', 'losses', 'microbatching', 'perturbations', 'projections', 'second_order', 'tree']


@pytest.mark.parametrize(
    'name', [n for n in NAMES if n.module.partition('.')[2] in AGAIN and '.' not in n.name], ids=str
)
def test_what_does_not_differ_is_the_thing_itself(name: Name) -> None:
    """Its numbers are tested in its own room."""
    room = importlib.import_module(f'torchopt.{name.module.partition(".")[2]}')
    assert name.ours is getattr(room, name.name)


def test_root_exports_only_what_torchopt_has_or_a_face() -> None:
    """Nothing at the root is another thing than in the submodule that Optax takes it from."""
    for module in ('losses', 'schedules', 'transforms', 'microbatching'):
        part = getattr(ours, module)
        for name in set(part.__all__) & set(ours.__all__):
            assert getattr(part, name) is getattr(ours, name), name


def test_importing_it_does_not_import_optax() -> None:
    code = (
        'import sys\n'
        'from torchopt.compat import optax\n'
        'from torchopt.compat.optax import tree_utils\n'
        'import torchopt.compat.optax.losses\n'
        'assert optax.__name__ == "torchopt.compat.optax"\n'
        'assert not {"optax", "jax"} & set(sys.modules)\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)
    assert torchopt.compat.optax is ours


SHAPES = [(), (3,), (1, 3), (3, 1), (3, 2), (2, 3, 2), (3, 2, 2, 4), (2, 2, 3, 2, 3), (1, 1, 2, 1, 1, 1), (0, 2)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_units_are_columns(shape: tuple[int, ...]) -> None:
    """The norms of units, and clipping by them, in every layout that Optax knows."""
    rng = np.random.default_rng(0)
    g, p = rng.standard_normal(shape), 0.5 * rng.standard_normal(shape)
    norm = ours.transforms.unitwise_norm(torch.tensor(g))
    np.testing.assert_allclose(norm, theirs.transforms.unitwise_norm(jnp.array(g)), rtol=1e-12)
    tx = ours.adaptive_grad_clip(0.4)
    updates, _ = tx.update({'w': torch.tensor(g)}, tx.init({}), {'w': torch.tensor(p)})
    wanted, _ = theirs.adaptive_grad_clip(0.4).update({'w': jnp.array(g)}, theirs.EmptyState(), {'w': jnp.array(p)})
    np.testing.assert_allclose(updates['w'], wanted['w'], rtol=1e-8)


@pytest.mark.parametrize('axis', [0, (0, 2), -1])
def test_units_by_axis(axis: Any) -> None:
    g = np.random.default_rng(0).standard_normal((2, 3, 4))
    norm = ours.transforms.unitwise_norm(torch.tensor(g), axis)
    np.testing.assert_allclose(norm, theirs.transforms.unitwise_norm(jnp.array(g), axis), rtol=1e-12)


def test_units_of_what_has_no_rule() -> None:
    with pytest.raises(ValueError, match='no rule for the units'):
        ours.transforms.unitwise_norm(torch.ones(2, 2, 2, 2, 2, 2))
    assert ours.transforms.unitwise_norm(torch.ones(2, 2, 2, 2, 2, 2), (0, 1)).shape == (2, 2, 2, 2, 2, 2)
