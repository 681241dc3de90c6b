# SPDX-License-Identifier: Apache-2.0
"""The kernels of quasi-Newton methods compute what plain torch and NumPy do, for single problems and for batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import torchopt
from torchopt import _C, quasi_newton
from torchopt._C import quasi_newton as kernels
from torchopt.quasi_newton import Memory, Ring
from torchopt.solver.bfgs import _Inverses
from torchopt.solver.memory import Window

pytestmark = pytest.mark.skipif(not _C.is_available(), reason='needs the compiled module')

SIZE = 3
KINDS: dict[str, dict[str, Any]] = {
    'no pairs': {'steps': 0},
    'one pair': {'steps': 1},
    'full ring': {'steps': 3},
    'more pairs than rows': {'steps': 8},
    'skipped pairs': {'steps': 7, 'bent': (2, 4)},
    'nothing but skipped pairs': {'steps': 4, 'bent': (0, 1, 2, 3)},
    'one element': {'steps': 2, 'length': 1},
    'no elements': {'steps': 2, 'length': 0},
    'tiny': {'steps': 4, 'unit': 1e-30},
    'huge': {'steps': 4, 'unit': 1e30},
    'tiny gradients': {'steps': 4, 'slope': 1e-30},
    'NaN': {'steps': 4, 'last': np.nan},
    'infinite': {'steps': 4, 'last': np.inf},
}


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    """Call a function without kernels."""

    def call(function: Callable[[], Any]) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(kernels, '_kernels', None)
            return function()

    yield call


def path(
    kind: dict[str, Any], dtype: Any, *batch: int
) -> list[tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]]:
    """Parameters and gradients before and after each step, on a quadratic function that bends down in some steps."""
    rng, length = np.random.default_rng(0), kind.get('length', 11)
    curvature, found = np.linspace(1.0, 9.0, length) * kind.get('slope', 1.0), []
    x, g = (kind.get('unit', 1.0) * rng.normal(size=(*batch, length)) for _ in range(2))
    for step in range(kind['steps']):
        s = kind.get('unit', 1.0) * rng.normal(size=x.shape)
        y = curvature * s * (-1.0 if step in kind.get('bent', ()) else 1.0)
        found.append(((x, x + s), (g, g + y)))
        x, g = x + s, g + y
    return [((x[0].astype(dtype), x[1].astype(dtype)), (g[0].astype(dtype), g[1].astype(dtype))) for x, g in found]


def like(dtype: Any, kind: dict[str, Any], pair: tuple[np.ndarray, ...]) -> tuple[Any, Any]:
    """The same vectors in double precision where plain operations in single precision overflow."""
    x, y = (z.astype(np.float64 if kind.get('unit', 1.0) > 1.0 else dtype) for z in pair)
    return x, y


def close(x: Any, y: Any, dtype: Any) -> None:
    x, y = np.asarray(x), np.asarray(y)
    largest = np.abs(y[np.isfinite(y)]).max(initial=0.0)
    np.testing.assert_allclose(x, y, rtol=200 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps * largest)


def gradient(kind: dict[str, Any], dtype: Any, *batch: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    g = kind.get('unit', 1.0) * rng.normal(size=(*batch, kind.get('length', 11))).astype(dtype)
    if 'last' in kind:
        g[..., -1] = kind['last']
    return g.astype(dtype)


@pytest.mark.parametrize('scaled', [True, False])
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('kind', KINDS)
def test_memory_of_a_run(kind: str, dtype: Any, scaled: bool, plain: Any) -> None:
    with np.errstate(all='ignore'):
        _runs(KINDS[kind], dtype, scaled, plain)


def _runs(kind: dict[str, Any], dtype: Any, scaled: bool, plain: Any) -> None:
    g = gradient(kind, dtype)
    wide, _ = like(dtype, kind, (g, g))
    native, other = Window(g, SIZE, scaled), Window(wide, SIZE, scaled)
    for x, gradients in path(kind, dtype):
        native.remember(x, gradients)
        plain(functools.partial(other.remember, like(dtype, kind, x), like(dtype, kind, gradients)))
    for name in ('weights', 'newest', 'count', 'gamma'):
        close(getattr(native, name), getattr(other, name), dtype)
    found, wanted = native.product(g), plain(lambda: other.product(wide))
    assert found.dtype == dtype and wanted.dtype == wide.dtype
    close(found, wanted, dtype)
    for x, y in zip(native.rows()[:2], other.rows()[:2]):
        close(x, y, dtype)


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('kind', KINDS)
def test_memories_of_a_batch(kind: str, dtype: Any, plain: Any) -> None:
    """Some runs do not move in some steps; each memory is that of the run alone."""
    batch, options = 4, KINDS[kind]
    g = gradient(options, dtype, batch)
    native, other = (Window(g, SIZE, True) for _ in range(2))
    alone = [Window(row, SIZE, True) for row in g]

    def run() -> None:
        for step, (x, gradients) in enumerate(path(options, dtype, batch)):
            moved = np.array([True, step != 1, step < 2, False])
            native.remember(x, gradients, moved)
            plain(functools.partial(other.remember, x, gradients, moved))
            for i in np.flatnonzero(moved):
                alone[i].remember((x[0][i], x[1][i]), (gradients[0][i], gradients[1][i]))
        found = native.product(g)
        close(found, [memory.product(row) for memory, row in zip(alone, g)], dtype)
        for name in ('weights', 'newest', 'count', 'gamma'):
            close(getattr(native, name), getattr(other, name), dtype)
            close(getattr(native, name), [getattr(memory, name) for memory in alone], dtype)
        cleared = native.cleared(np.array([True, False, True, False])).product(g)
        close(cleared[::2], g[::2], dtype)
        close(cleared[1::2], found[1::2], dtype)

    with np.errstate(all='ignore'):
        run()


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('kind', KINDS)
def test_dense_matrices_of_a_batch(kind: str, dtype: Any, plain: Any) -> None:
    batch, options = 4, KINDS[kind]
    g = gradient(options, dtype, batch)

    def run() -> None:
        native, other = _Inverses(g), _Inverses(like(dtype, options, (g, g))[0])
        for step, (x, gradients) in enumerate(path(options, dtype, batch)):
            moved = np.array([True, step != 1, step < 2, False])
            native.remember(x, gradients, moved)
            wide = like(dtype, options, gradients)
            plain(functools.partial(other.remember, like(dtype, options, x), wide, moved))
            # Both from the same matrices: their rounding differs.
            close(native.matrix, other.matrix, dtype)
            close(native.product(gradients[1]), plain(functools.partial(other.product, wide[1])), dtype)
            assert (native.is_identity == other.is_identity).all()
            native.matrix[:] = other.matrix

    with np.errstate(all='ignore'):
        run()


def leaves(x: np.ndarray) -> list[torch.Tensor]:
    """The elements along the last dimension as a tree of a matrix, an empty vector, and a scalar or a vector."""
    x = torch.from_numpy(x)
    cut = x.shape[-1] // 2 * 2
    rest = x[..., cut:]
    return [
        x[..., :cut].reshape(*x.shape[:-1], cut // 2, 2).contiguous(),
        x.new_zeros(*x.shape[:-1], 0),
        rest.contiguous()[..., 0] if rest.shape[-1] == 1 else rest.contiguous(),
    ]


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize('kind', KINDS)
def test_trees(kind: str, dtype: Any, plain: Any) -> None:
    """A step of the transformation: the pair, and the product with the guard against overflow and lost descent."""
    options = KINDS[kind]
    g = leaves(gradient(options, dtype))

    def run() -> tuple[Any, ...]:
        memory, scale = Memory.like(g, SIZE), 1.0
        for count, (x, gradients) in enumerate(path(options, dtype), 1):
            both = (tuple(leaves(part) for part in pair) for pair in (x, gradients))
            memory, scale = quasi_newton.remember_step(memory, Ring(count, SIZE), *both)  # type: ignore[arg-type]
        ring = Ring(options['steps'], SIZE)
        return *quasi_newton.inverse_hessian_product(g, memory, ring, scale), memory.weights, *memory.s, *memory.y

    for x, y in zip(run(), plain(run), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        close(x, y, dtype)


@pytest.mark.parametrize('inplace', [True, False])
def test_states_of_the_transformation(inplace: bool, plain: Any) -> None:
    """The first step, steps from zero parameters, and memories that autograd knows to have changed."""
    tx = torchopt.transform.scale_by_lbfgs(2)

    def run() -> list[Any]:
        p = {'w': torch.zeros(3, dtype=torch.float64), 'b': torch.tensor(1.0, dtype=torch.float64)}
        state, found = tx.init(p), []
        for _ in range(4):
            g = {'w': 3.0 * (p['w'] - 1.0), 'b': p['b'] ** 3}
            version = state.diff_params_memory['w']._version
            old = state.diff_params_memory['w']
            updates, state = tx.update(g, state, p, inplace=inplace)
            assert (old._version > version) is inplace
            p = torchopt.apply_updates(p, torchopt.tree.map(torch.neg, updates))
            found += torchopt.tree.leaves((p, state))
        return found

    for x, y in zip(run(), plain(run), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('how', ['requires grad', 'strided', 'half', 'mixed', 'complex', 'vmap', 'forward mode'])
def test_what_kernels_do_not_take(how: str, plain: Any) -> None:
    """Gives the same values with and without the kernels, and a graph where one is recorded."""
    s = torch.tensor([[1.0, 0.5, -1.0, 2.0], [0.3, 1.0, 2.0, -1.0]], dtype=torch.float64)
    y, g = s * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    weights = 1.0 / (s * y).sum(1)
    g, s, y = ([x] for x in (g, s, y))
    if how == 'requires grad':
        g[0].requires_grad_()
    elif how == 'strided':
        g, s, y = ([torch.stack([x[0], x[0]], -1)[..., 0]] for x in (g, s, y))
    elif how == 'half':
        g, s, y = ([x[0].bfloat16()] for x in (g, s, y))
    elif how == 'mixed':
        g, s, y = ([x[0][..., :2], x[0][..., 2:].float()] for x in (g, s, y))
    elif how == 'complex':
        g, s, y = ([torch.complex(x[0][..., :2], x[0][..., 2:])] for x in (g, s, y))

    def product(*g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(quasi_newton.inverse_hessian_product(list(g), Memory(s, y, weights), Ring(2, 2), 0.5))

    def run() -> tuple[torch.Tensor, ...]:
        if how == 'vmap':
            return torch.vmap(product)(torch.stack([g[0], 2.0 * g[0]]))
        if how == 'forward mode':
            return torch.func.jvp(product, (g[0],), (torch.ones_like(g[0]),))[1]
        return product(*g)

    for x, wanted in zip(run(), plain(run), strict=True):
        assert x.requires_grad is wanted.requires_grad is (how == 'requires grad')
        torch.testing.assert_close(x, wanted)


def test_bad_calls_are_refused() -> None:
    """Sizes that do not match, places beyond the ring and arrays of other dtypes: no memory is read or written."""
    g, ring, out = np.ones(3), np.ones((2, 3)), np.empty(3)
    columns = (g,), (ring,), (ring,), (out,)
    assert kernels.product(columns, np.zeros(2), 1, 1.0, False)
    for weights, newest, gamma in (
        (np.zeros(3), 1, 1.0),
        (np.zeros(2), 2, 1.0),
        (np.zeros(2), -1, 1.0),
        (np.zeros(2), 1, np.ones(2)),
    ):
        with pytest.raises(ValueError, match='sizes'):
            kernels.product(columns, weights, newest, gamma, False)
    with pytest.raises(ValueError, match='sizes'):
        kernels.product(((g, g), *columns[1:]), np.zeros(2), 1, 1.0, False)
    assert not kernels.product(((g.astype(np.float32),), *columns[1:]), np.zeros(2), 1, 1.0, False)
    assert not kernels.product(((g.astype(np.int64),), *columns[1:]), np.zeros(2), 1, 1.0, False)
    assert not kernels.product(columns, np.zeros(2, np.float32), 1, 1.0, False)
    assert not kernels.product(((g,), (np.ones((3, 2)).T,), (ring,), (out,)), np.zeros(2), 1, 1.0, False)
    assert not kernels.product(((torch.ones(3, device='meta'),), *columns[1:]), np.zeros(2), 1, 1.0, False)
    with pytest.raises(ValueError, match='sizes'):
        kernels.difference(((g,), (g,), (g,), (g,), (ring,), (ring,)), 2, 2, False, np.empty(4))
    with pytest.raises(ValueError, match='sizes'):
        kernels.bfgs(((np.eye(2),), (g,), (g,), (g,), (out,)), np.ones(1), np.ones(1))
