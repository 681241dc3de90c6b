# SPDX-License-Identifier: Apache-2.0
"""Every function of ``optax.tree`` on the same trees, with Optax as the oracle."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from torchopt import tree

NAMES = [name for name in dir(optax.tree) if not name.startswith('_')]
DTYPES = {
    'float32': (torch.float32, 1e-6),
    'float64': (torch.float64, 1e-14),
    'bfloat16': (torch.bfloat16, 2e-2),
    'complex64': (torch.complex64, 1e-6),
}


def make(dtype: torch.dtype, seed: int = 0) -> Any:
    """A nested tree with None leaves, a 0-d leaf and a leaf without elements."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if dtype.is_complex:
        return tree.map(lambda x, y: x + 1j * y, make(dtype.to_real(), seed), make(dtype.to_real(), seed + 9))
    return {'a': draw(3), 'none': None, 'deep': [draw(), {'w': draw(3), 'none': None}], 'last': (draw(0), draw())}


def to_jax(x: Any) -> Any:
    """The tree in JAX; None is an empty node there."""

    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if leaf.dtype == torch.bfloat16:
            return jnp.asarray(leaf.float().numpy(), dtype=jnp.bfloat16)
        return jnp.asarray(leaf.resolve_conj().numpy())

    return tree.map(convert, x)


def check(found: Any, expected: Any, tol: float) -> None:
    """Compare a tree of tensors with one of JAX arrays: structure, dtypes, shapes, values."""
    leaves, expected_leaves = tree.flatten(found)[0], tree.flatten(expected)[0]
    assert tree.structure(found) == tree.structure(expected)
    for x, y in zip(leaves, expected_leaves):
        if y is None:
            assert x is None
            continue
        x = torch.as_tensor(x)
        y = np.asarray(y)
        assert tuple(x.shape) == y.shape
        if x.dtype == torch.bfloat16:
            assert y.dtype == jnp.bfloat16
            x, y = x.double(), y.astype(np.float64)
        assert str(x.dtype).removeprefix('torch.') == str(y.dtype)
        np.testing.assert_allclose(x.numpy(), y, rtol=tol, atol=tol)


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    with jax.enable_x64(True):
        yield


def test_all_names_exist_with_optax_parameters() -> None:
    assert len(NAMES) == 35
    for name in NAMES:
        assert name in tree.__all__
        ours = inspect.signature(getattr(tree, name)).parameters
        theirs = inspect.signature(getattr(optax.tree, name)).parameters
        assert list(ours) == list(theirs), name
        for key, parameter in theirs.items():
            if key != 'sampler':
                assert ours[key].default == parameter.default, (name, key)
    assert tree.__all__ == sorted(tree.__all__)


# One row per function: how it is called in either library, given two trees and the library.
CALLS = {
    'add': lambda t, x, y: t.add(x, y),
    'add three': lambda t, x, y: t.add(x, y, x),
    'sub': lambda t, x, y: t.sub(x, y),
    'mul': lambda t, x, y: t.mul(x, y),
    'div': lambda t, x, y: t.div(x, y),
    'scale': lambda t, x, y: t.scale(0.3, x),
    'add_scale': lambda t, x, y: t.add_scale(x, -0.3, y),
    'conj': lambda t, x, y: t.conj(x),
    'real': lambda t, x, y: t.real(x),
    'vdot': lambda t, x, y: t.vdot(x, y),
    'sum': lambda t, x, y: t.sum(x),
    'sum in pairs': lambda t, x, y: t.sum(x, associative_reduction=True),
    'norm': lambda t, x, y: t.norm(x),
    'norm squared': lambda t, x, y: t.norm(x, squared=True),
    'norm 1': lambda t, x, y: t.norm(x, ord=1),
    'norm 1 squared': lambda t, x, y: t.norm(x, 1, True),
    'norm inf': lambda t, x, y: t.norm(x, ord='inf'),
    'norm infinity squared': lambda t, x, y: t.norm(x, math.inf, squared=True),
    'batch_shape': lambda t, x, y: t.batch_shape(x, (2, 1)),
    'zeros_like': lambda t, x, y: t.zeros_like(x),
    'ones_like': lambda t, x, y: t.ones_like(x),
    'full_like': lambda t, x, y: t.full_like(x, 0.5),
    'where': lambda t, x, y: t.where(False, x, y),
    'update_moment 1': lambda t, x, y: t.update_moment(x, y, 0.9, 1),
    'update_moment 2': lambda t, x, y: t.update_moment(x, y, 0.9, 2),
    'bias_correction': lambda t, x, y: t.bias_correction(x, 0.9, _count(t, 3)),
    'cast': lambda t, x, y: t.cast(x, None),
    'cast_like': lambda t, x, y: t.cast_like(t.zeros_like(x), y),
    'size': lambda t, x, y: t.size(x),
    'allclose': lambda t, x, y: (t.allclose(x, x), t.allclose(x, y)),
}
REAL_CALLS = {
    'max': lambda t, x, y: t.max(x),
    'min': lambda t, x, y: t.min(x),
    'clip': lambda t, x, y: t.clip(x, -0.5, 0.5),
    'clip below': lambda t, x, y: t.clip(x, min_value=-0.5),
    'clip above': lambda t, x, y: t.clip(x, max_value=0.5),
    'clip not at all': lambda t, x, y: t.clip(x),
    'clip crossed': lambda t, x, y: t.clip(x, 0.5, -0.5),
    'update_infinity_moment': lambda t, x, y: t.update_infinity_moment(x, t.mul(y, y), 0.9, 1e-3),
    'per_elem_norm 2': lambda t, x, y: t.update_moment_per_elem_norm(x, y, 0.9, 2),
    'per_elem_norm 3': lambda t, x, y: t.update_moment_per_elem_norm(x, y, 0.9, 3),
}


def _count(t: Any, n: int) -> Any:
    return torch.tensor(n) if t is tree else jnp.asarray(n)


@pytest.mark.parametrize('kind', DTYPES)
@pytest.mark.parametrize('call', CALLS.values(), ids=CALLS)
def test_parity(call: Any, kind: str) -> None:
    dtype, tol = DTYPES[kind]
    x, y = make(dtype), make(dtype, 1)
    check(call(tree, x, y), call(optax.tree, to_jax(x), to_jax(y)), tol)


@pytest.mark.parametrize('kind', ['float32', 'float64', 'bfloat16'])
@pytest.mark.parametrize('call', REAL_CALLS.values(), ids=REAL_CALLS)
def test_parity_of_real_trees(call: Any, kind: str) -> None:
    dtype, tol = DTYPES[kind]
    x, y = make(dtype), make(dtype, 1)
    check(call(tree, x, y), call(optax.tree, to_jax(x), to_jax(y)), tol)


@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_parity_of_the_norm_of_complex_elements(order: int) -> None:
    g, m = make(torch.complex64), make(torch.float32, 1)
    found = tree.update_moment_per_elem_norm(g, m, 0.9, order)
    expected = optax.tree.update_moment_per_elem_norm(to_jax(g), to_jax(m), 0.9, order)
    check(found, expected, 1e-5)
    found = tree.update_infinity_moment(g, tree.mul(m, m), 0.9, 1e-3)
    check(found, optax.tree.update_infinity_moment(to_jax(g), to_jax(tree.mul(m, m)), 0.9, 1e-3), 1e-5)


@pytest.mark.parametrize('empty', [{}, (), {'a': None, 'b': [None]}], ids=str)
@pytest.mark.parametrize('call', {**CALLS, **REAL_CALLS}.values(), ids={**CALLS, **REAL_CALLS})
def test_parity_of_empty_trees(call: Any, empty: Any) -> None:
    found, expected = call(tree, empty, empty), call(optax.tree, empty, empty)
    if isinstance(expected, jax.Array):
        assert float(found) == float(expected)  # a scalar, whose dtype is the default one of the library
    else:
        assert found == expected


def test_mixed_dtypes_promote_as_in_optax() -> None:
    x = {'a': torch.ones(2, dtype=torch.bfloat16), 'b': torch.ones(2, dtype=torch.float64)}
    for name in ('sum', 'norm', 'max', 'min'):
        check(getattr(tree, name)(x), getattr(optax.tree, name)(to_jax(x)), 1e-12)
    check(tree.vdot(x, x), optax.tree.vdot(to_jax(x), to_jax(x)), 1e-12)


def test_full_like_and_friends_take_a_dtype() -> None:
    x = make(torch.float32)
    for name, extra in {'zeros_like': (), 'ones_like': (), 'full_like': (2,)}.items():
        found = getattr(tree, name)(x, *extra, dtype=torch.float64)
        check(found, getattr(optax.tree, name)(to_jax(x), *extra, dtype=jnp.float64), 0)


def test_cast() -> None:
    x = make(torch.float32)
    check(tree.cast(x, torch.bfloat16), optax.tree.cast(to_jax(x), jnp.bfloat16), 1e-2)
    check(tree.cast_like(x, make(torch.float64)), optax.tree.cast_like(to_jax(x), to_jax(make(torch.float64))), 0)
    assert tree.cast_like({'a': torch.ones(1)}, {'a': 3})['a'].dtype == torch.float32


MIXED = {
    'equal': [torch.float32, torch.float32],
    'half and single': [torch.float16, torch.float32],
    'brain and double': [torch.float64, torch.bfloat16],
    'halves': [torch.float16, torch.bfloat16],
    'single and complex': [torch.float32, torch.complex64],
}


@pytest.mark.parametrize('handler', [None, 'promote', 'highest', 'lowest', 'median'])
@pytest.mark.parametrize('kinds', MIXED.values(), ids=MIXED)
def test_dtype(kinds: Any, handler: str | None) -> None:
    x = {'a': torch.ones(1, dtype=kinds[0]), 'none': None, 'b': torch.ones(1, dtype=kinds[1])}
    with jax.numpy_dtype_promotion('standard'):
        reference = {k: None if v is None else jnp.ones(1, str(v.dtype).removeprefix('torch.')) for k, v in x.items()}
        try:
            expected = optax.tree.dtype(reference, handler)
        except ValueError:
            with pytest.raises(ValueError, match=r'handler'):
                tree.dtype(x, handler)
        else:
            assert str(tree.dtype(x, handler)) == f'torch.{expected}'


def test_dtype_of_nothing_and_the_path_in_its_error() -> None:
    assert tree.dtype({}) == torch.float32
    with pytest.raises(ValueError, match=r"tree\['b'\] has torch.float64"):
        tree.dtype({'a': torch.ones(1), 'b': torch.ones(1, dtype=torch.float64)})


WIDE = torch.tensor(0.5, dtype=torch.float64)
KEEPERS = {
    'scale': lambda x: tree.scale(WIDE, x),
    'add_scale': lambda x: tree.add_scale(x, WIDE, x),
    'update_moment': lambda x: tree.update_moment(x, x, WIDE, 2),
    'update_moment_per_elem_norm': lambda x: tree.update_moment_per_elem_norm(x, x, WIDE, 2),
    'bias_correction': lambda x: tree.bias_correction(x, WIDE, torch.tensor(2)),
    'full_like': lambda x: tree.full_like(x, WIDE),
}
REAL_KEEPERS = {
    'clip': lambda x: tree.clip(x, -WIDE, WIDE),
    'update_infinity_moment': lambda x: tree.update_infinity_moment(x, x, WIDE, WIDE),
}


KEEPER_CASES = [(f, dtype) for f in {**KEEPERS, **REAL_KEEPERS}.values() for dtype in (torch.float32, torch.bfloat16)]
KEEPER_CASES += [(f, torch.complex64) for f in KEEPERS.values()]


@pytest.mark.parametrize(('f', 'dtype'), KEEPER_CASES)
def test_wide_scalars_do_not_widen_0d_leaves(f: Any, dtype: torch.dtype) -> None:
    assert f([torch.tensor(2.0, dtype=dtype), None])[0].dtype == dtype


def test_complex_scalars_make_complex_leaves_of_the_same_precision() -> None:
    scalar = torch.tensor(2j, dtype=torch.complex128)
    out = tree.scale(scalar, [torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64), torch.tensor(1j)])
    assert [x.dtype for x in out] == [torch.complex64, torch.complex128, torch.complex64]
    assert out[2] == -2


def test_integer_leaves_are_scaled_as_numbers_not_truncated() -> None:
    assert tree.scale(WIDE, [torch.tensor([1, 3])])[0].tolist() == [0.5, 1.5]


def test_gradients_flow_into_scalars() -> None:
    scalar = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x = {'w': torch.tensor([1.0, 2.0])}
    for f in (tree.scale(scalar, x), tree.full_like(x, scalar), tree.add_scale(x, scalar, x)):
        (gradient,) = torch.autograd.grad(tree.sum(f), scalar)
        assert gradient.item() in (3.0, 2.0)


def test_the_norm_has_a_subgradient_at_zero() -> None:
    for x in ([torch.zeros(2)], [torch.zeros(2), torch.zeros(())]):
        gradient = torch.func.grad(tree.norm)(x)
        assert tree.norm(gradient).item() == 0.0


def test_norm_gradient() -> None:
    x = tree.cast(make(torch.float64), torch.float64)
    leaves = tree.flatten(x)[0]
    inputs = [leaf.requires_grad_() for leaf in leaves if leaf is not None and leaf.numel()]

    def f(*xs: torch.Tensor) -> torch.Tensor:
        return tree.norm(list(xs)) + tree.vdot(list(xs), list(xs)) + tree.norm(list(xs), 1)

    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_nan_reaches_the_extremes() -> None:
    x = [torch.tensor([1.0, math.nan]), torch.tensor(2.0)]
    assert math.isnan(tree.max(x))
    assert math.isnan(tree.min(x))


def test_integers_stay_integers_in_the_extremes() -> None:
    assert tree.max([torch.tensor([1, 5])]).dtype == torch.int64


@pytest.mark.parametrize('ord', [0, 3, -math.inf, 'fro'])
def test_unknown_orders(ord: Any) -> None:
    with pytest.raises(ValueError, match='Unsupported ord'):
        tree.norm([torch.ones(1)], ord)


FAULTS = {
    'shape': ({'a': torch.ones(2)}, {'a': torch.ones(3)}, r"tree 2\['a'\] has shape \(3,\).*\(2,\)"),
    'none': ({'a': torch.ones(2)}, {'a': None}, r"tree 2\['a'\] is None"),
    'structure': ({'a': torch.ones(2)}, {'b': torch.ones(2)}, r"tree 2\['a'\].*missing"),
}


@pytest.mark.parametrize(('x', 'y', 'message'), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize('name', ['add', 'sub', 'mul', 'div', 'add_scale', 'where', 'update_moment', 'allclose'])
def test_errors_name_the_leaf(name: str, x: Any, y: Any, message: str) -> None:
    calls = {
        'add_scale': lambda: tree.add_scale(x, 0.5, y),
        'where': lambda: tree.where(True, x, y),
        'update_moment': lambda: tree.update_moment(x, y, 0.9, 2),
    }
    with pytest.raises((ValueError, TypeError), match=message):
        calls.get(name, lambda: getattr(tree, name)(x, y))()


def test_errors_of_vdot_and_allclose() -> None:
    with pytest.raises(ValueError, match=r"tree_x\['a'\] has shape \(2,\).*tree_y\['a'\] has shape \(1,\)"):
        tree.vdot({'a': torch.ones(2)}, {'a': torch.ones(1)})
    with pytest.raises(ValueError, match=r"\['a'\] is None"):
        tree.allclose({'a': None}, {'a': torch.ones(1)})


REDUCTIONS = {
    'sum': tree.sum,
    'sum in pairs': lambda x: tree.sum(x, associative_reduction=True),
    'norm': tree.norm,
    'norm 1': lambda x: tree.norm(x, 1),
    'norm inf': lambda x: tree.norm(x, 'inf'),
    'vdot': lambda x: tree.vdot(x, x),
    'max': tree.max,
    'min': tree.min,
    'allclose': lambda x: tree.allclose(x, x),
    'clip and where': lambda x: tree.sum(tree.where(True, tree.clip(x, -0.1, 0.1), x)),
    'full_like': lambda x: tree.sum(tree.full_like(x, tree.norm(x))),
    'moments': lambda x: tree.sum(tree.bias_correction(tree.update_moment(x, x, 0.9, 2), 0.9, 3)),
    'infinity': lambda x: tree.sum(tree.update_infinity_moment(x, x, 0.9, 1e-3)),
}


@pytest.mark.parametrize('f', REDUCTIONS.values(), ids=REDUCTIONS)
def test_vmap_and_compile(f: Any) -> None:
    rows = [{'a': torch.randn(3), 'none': None, 'b': [torch.randn(())]} for _ in range(4)]
    batch = torch.stack([row['a'] for row in rows]), torch.stack([row['b'][0] for row in rows])
    found = torch.func.vmap(lambda a, b: torch.as_tensor(f({'a': a, 'none': None, 'b': [b]})))(*batch)
    expected = torch.stack([torch.as_tensor(f(row)) for row in rows])
    torch.testing.assert_close(found, expected)
    torch.compiler.reset()
    compiled = torch.compile(f, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(rows[0]), expected[0])


@pytest.mark.parametrize('name', ['sum', 'norm', 'max', 'min'])
def test_reductions_never_read_from_the_device(name: str) -> None:
    x = {'a': torch.ones(3, device='meta'), 'b': torch.ones((), device='meta')}
    assert getattr(tree, name)(x).device.type == 'meta'  # a meta tensor has no value to read
    assert tree.vdot(x, x).device.type == 'meta'


def test_numbers_are_leaves_too() -> None:
    x = {'a': 3.0, 'b': 4}
    assert tree.add(x, x) == {'a': 6.0, 'b': 8}
    assert tree.norm(x).item() == 5.0
    assert tree.size(x) == 2
    assert tree.sum(x).item() == 7.0


CLOSE = {
    'equal infinities': (math.inf, math.inf),
    'opposite infinities': (math.inf, -math.inf),
    'finite and infinite': (1.0, math.inf),
    'nan': (math.nan, math.nan),
    'relative': (1e6, 1e6 + 5),
    'not relative': (1e6, 1e6 + 15),
    'absolute': (0.0, 5e-9),
    'not absolute': (0.0, 5e-8),
}


@pytest.mark.parametrize('equal_nan', [False, True])
@pytest.mark.parametrize(('x', 'y'), CLOSE.values(), ids=CLOSE)
def test_allclose_at_the_edges(x: float, y: float, equal_nan: bool) -> None:
    a, b = torch.tensor([0.0, x], dtype=torch.float64), torch.tensor([0.0, y], dtype=torch.float64)
    assert bool(tree.allclose([a], [b], equal_nan=equal_nan)) == np.allclose(a, b, equal_nan=equal_nan)


def test_allclose_of_integers_and_bools() -> None:
    small = torch.tensor([0, 255], dtype=torch.uint8)
    assert bool(tree.allclose([small, torch.tensor(True)], [small, torch.tensor(True)]))
    assert not bool(tree.allclose([small], [small.flip(0)]))
    assert not bool(tree.allclose([torch.tensor(True)], [torch.tensor(False)]))


# Random trees: numbers differ between the libraries, the rules do not.


def test_random_like_is_reproducible_and_normal() -> None:
    target = {'a': torch.empty(20_000), 'none': None, 'h': torch.empty(3, dtype=torch.bfloat16), 's': torch.empty(())}
    x = tree.random_like(0, target)
    assert bool(tree.allclose(x, tree.random_like(0, target)))
    assert not bool(tree.allclose(x, tree.random_like(1, target)))
    assert tree.map(lambda t: (t.shape, t.dtype), x) == tree.map(lambda t: (t.shape, t.dtype), target)
    assert abs(x['a'].mean().item()) < 0.03
    assert abs(x['a'].std().item() - 1) < 0.03
    assert tree.random_like(0, target, dtype=torch.float64)['h'].dtype == torch.float64


def test_leaves_are_independent() -> None:
    x = tree.random_like(0, [torch.empty(5)] * 50)
    assert len({tuple(t.tolist()) for t in x}) == 50


def test_a_generator_moves_on() -> None:
    generator = torch.Generator().manual_seed(3)
    target = [torch.empty(4)]
    first, second = tree.random_like(generator, target), tree.random_like(generator, target)
    assert not bool(tree.allclose(first, second))
    assert bool(tree.allclose(first, tree.random_like(torch.Generator().manual_seed(3), target)))


def test_samplers_may_take_a_device() -> None:
    seen = []

    def sampler(key: Any, shape: Any, dtype: Any, device: Any) -> torch.Tensor:
        seen.append((type(key), shape, dtype, device))
        return torch.zeros(shape, dtype=dtype, device=device)

    tree.random_like(0, [torch.empty(2, 3, dtype=torch.float64)], sampler)
    assert seen == [(torch.Generator, (2, 3), torch.float64, torch.device('cpu'))]


def test_split_key_like_and_unwrap() -> None:
    target = {'a': 0, 'none': None, 'b': [0, 0]}
    seeds = tree.split_key_like(7, target)
    assert seeds == tree.split_key_like(7, target)
    assert tree.structure(seeds) == tree.structure(target)
    assert len({seed % 2**32 for seed in tree.leaves(seeds)}) == 3
    generators = tree.split_key_like(torch.Generator().manual_seed(7), target)
    states = tree.unwrap_random_key_data(generators)
    assert all(s.dtype == torch.uint8 for s in tree.leaves(states))
    again = tree.split_key_like(torch.Generator().manual_seed(7), target)
    assert bool(tree.allclose(states, tree.unwrap_random_key_data(again)))
    assert tree.unwrap_random_key_data(seeds) == seeds


@pytest.mark.parametrize('key', [0.5, None, True, torch.tensor([3])], ids=str)
def test_wrong_keys(key: Any) -> None:
    with pytest.raises(TypeError, match='Invalid rng_key'):
        tree.random_like(key, [torch.empty(1)])
