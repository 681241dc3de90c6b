# SPDX-License-Identifier: Apache-2.0
"""Projections against Optax and against what a projection is: values, Jacobians, transforms, errors."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
import pytest
import torch

import torchopt
from torchopt import polytopes, projections, tree

rng = np.random.default_rng(0)
INF, NAN = np.inf, np.nan
X = {'w': 2 * rng.standard_normal((2, 3)), 'b': [2 * rng.standard_normal(4), np.array(0.7)]}
A = {'w': rng.standard_normal((2, 3)), 'b': [rng.standard_normal(4), np.array(-1.3)]}
SMALL = jax.tree.map(lambda x: np.asarray(0.01 * x), X)
ZERO = jax.tree.map(np.zeros_like, X)
LOW, HIGH = (jax.tree.map(lambda x, s=s: np.asarray(s * np.abs(x)), A) for s in (-1.0, 1.0))
TIES = np.array([0.5, 0.5, 0.5, -0.5, -0.5])
HUGE = np.array([1e12, -3e12, 1.0])

# title: name, tree, further arguments
CASES: dict[str, tuple[str, Any, tuple[Any, ...]]] = {
    'non-negative': ('projection_non_negative', X, ()),
    'non-negative: zeros': ('projection_non_negative', np.array([0.0, -0.0, INF, -INF]), ()),
    'box': ('projection_box', X, (LOW, HIGH)),
    'box: numbers': ('projection_box', X['w'], (-0.5, 0.8)),
    'box: ties': ('projection_box', np.array([-1.0, 1.0, 0.0]), (-1.0, 1.0)),
    'box: one point': ('projection_box', np.array([-1.0, 1.0, 0.5]), (0.5, 0.5)),
    'box: infinities': ('projection_box', np.array([INF, -INF, 3.0]), (-INF, 1.0)),
    'box: empty': ('projection_box', np.zeros(0), (0.0, 1.0)),
    'hypercube': ('projection_hypercube', X['w'], ()),
    'hypercube: side': ('projection_hypercube', X['w'], (0.8,)),
    'simplex': ('projection_simplex', X, ()),
    'simplex: scale': ('projection_simplex', X, (3.7,)),
    'simplex: inside': ('projection_simplex', np.array([0.2, 0.3, 0.5]), ()),
    'simplex: corner': ('projection_simplex', np.array([5.0, 0.1, -3.0]), ()),
    'simplex: ties': ('projection_simplex', TIES, ()),
    'simplex: equal': ('projection_simplex', np.zeros(4), ()),
    'simplex: one element': ('projection_simplex', np.array([-3.0]), (2.0,)),
    'simplex: scalar': ('projection_simplex', np.array(0.3), ()),
    'simplex: excluded': ('projection_simplex', np.array([-INF, 0.4, 0.5]), ()),
    'simplex: infinity': ('projection_simplex', np.array([INF, 0.4, 0.5]), ()),
    'simplex: nan': ('projection_simplex', np.array([NAN, 0.4, 0.5]), ()),
    'simplex: very large': ('projection_simplex', HUGE, ()),
    'l1 sphere': ('projection_l1_sphere', X, (2.5,)),
    'l1 sphere: inside': ('projection_l1_sphere', SMALL, ()),
    'l1 sphere: zero': ('projection_l1_sphere', ZERO, ()),
    'l1 ball': ('projection_l1_ball', X, (2.5,)),
    'l1 ball: inside': ('projection_l1_ball', SMALL, ()),
    'l1 ball: zero': ('projection_l1_ball', ZERO, ()),
    'l1 ball: very large': ('projection_l1_ball', HUGE, ()),
    'l2 sphere': ('projection_l2_sphere', X, (2.5,)),
    'l2 sphere: inside': ('projection_l2_sphere', SMALL, ()),
    'l2 sphere: zero': ('projection_l2_sphere', np.zeros(3), ()),
    'l2 ball': ('projection_l2_ball', X, (2.5,)),
    'l2 ball: inside': ('projection_l2_ball', SMALL, ()),
    'l2 ball: zero': ('projection_l2_ball', ZERO, ()),
    'l2 ball: boundary': ('projection_l2_ball', np.array([0.6, 0.8]), ()),
    'l2 ball: very large': ('projection_l2_ball', HUGE, ()),
    'l2 ball: empty': ('projection_l2_ball', np.zeros(0), ()),
    'linf ball': ('projection_linf_ball', X, (0.6,)),
    'linf ball: ties': ('projection_linf_ball', np.array([1.0, -1.0, INF]), ()),
    'vector': ('projection_vector', X, (A,)),
    'vector: zero': ('projection_vector', X['w'], (np.zeros((2, 3)),)),
    'hyperplane': ('projection_hyperplane', X, (A, 0.3)),
    'halfspace': ('projection_halfspace', X, (A, -5.0)),
    'halfspace: inside': ('projection_halfspace', X, (A, 50.0)),
    'halfspace: boundary': ('projection_halfspace', np.array([1.0, 2.0]), (np.array([1.0, 1.0]), 3.0)),
}


def to_torch(value: Any, dtype: torch.dtype) -> Any:
    return tree.map(lambda x: torch.tensor(x, dtype=dtype) if isinstance(x, np.ndarray) else x, value)


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    xs, ys = tree.leaves(found), jax.tree.leaves(expected)
    assert len(xs) == len(ys)
    for x, y in zip(xs, ys):
        y = np.asarray(y)
        scale = max(np.abs(y[np.isfinite(y)]).max(initial=0.0), 1e-2)
        np.testing.assert_allclose(np.asarray(x, dtype=np.float64), y, rtol=tolerance, atol=tolerance * scale)


def cotangent(x: Any) -> Any:
    return np.random.default_rng(1).uniform(0.5, 1.5, np.shape(x))


@functools.cache
def from_optax(title: str) -> Any:
    """The projection, and the gradients in all arguments."""
    name, x, args = CASES[title]
    f = getattr(optax.projections, name)

    def both(*xs: Any) -> Any:
        value, pull_back = jax.vjp(f, *xs)
        return value, pull_back(jax.tree.map(lambda v: jnp.asarray(cotangent(v)), value))

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(both)(*jax.tree.map(jnp.asarray, (x, *args))))


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize('title', CASES)
def test_values_and_gradients_are_those_of_optax(title: str, dtype: torch.dtype, tolerance: float) -> None:
    name, x, args = CASES[title]
    if dtype == torch.float32 and 'very large' in title:
        tolerance = 1e-4  # single precision has no more at 1e12
    value, gradients = from_optax(title)
    ours = getattr(projections, name)
    given = [
        to_torch(x, dtype),
        *(torch.tensor(a, dtype=dtype) if isinstance(a, float) else to_torch(a, dtype) for a in args),
    ]
    found, pull_back = torch.func.vjp(ours, *given)
    assert tree.structure(found) == tree.structure(given[0])
    assert {v.dtype for v in tree.leaves(found)} == {dtype}
    assert_close(found, value, tolerance)
    if any(np.isnan(v).any() for v in jax.tree.leaves(value)):
        return  # what is NaN has no derivative
    found_gradients = pull_back(tree.map(lambda v: torch.tensor(cotangent(v), dtype=dtype), found))
    assert_close(list(found_gradients), list(gradients), tolerance)


SMOOTH = [t for t in CASES if ':' not in t]


@pytest.mark.parametrize('title', SMOOTH)
def test_jacobians_twice(title: str) -> None:
    """Away from the edges; all arguments that are tensors, second derivatives too."""
    name, x, args = CASES[title]
    leaves, spec = tree.flatten((to_torch(x, torch.float64), *(to_torch(a, torch.float64) for a in args)))
    tensors = [i for i, v in enumerate(leaves) if isinstance(v, torch.Tensor)]

    def f(*xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        filled = list(leaves)
        for i, v in zip(tensors, xs):
            filled[i] = v
        return tuple(tree.leaves(getattr(projections, name)(*tree.unflatten(spec, filled))))

    inputs = [leaves[i].clone().requires_grad_() for i in tensors]
    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


@pytest.mark.parametrize('title', SMOOTH)
def test_vmap_and_compile(title: str) -> None:
    name, x, args = CASES[title]
    f = getattr(projections, name)
    args = tuple(to_torch(a, torch.float64) for a in args)
    batch = tree.map(lambda v: torch.stack([v, 0.1 * v, -v]), to_torch(x, torch.float64))
    found = torch.func.vmap(lambda x: f(x, *args))(batch)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: f(x, *args), fullgraph=True, backend='eager')
    for i in range(3):
        one = tree.map(lambda v, i=i: v[i], batch)
        for a, b, c in zip(tree.leaves(found), tree.leaves(f(one, *args)), tree.leaves(compiled(one))):
            torch.testing.assert_close(a[i], b)
            torch.testing.assert_close(c, b)


@pytest.mark.parametrize('title', [t for t in SMOOTH if 'sphere' not in t])
def test_they_are_projections(title: str) -> None:
    """Idempotent, and never stretching a distance."""
    name, x, args = CASES[title]
    f, args = getattr(projections, name), tuple(to_torch(a, torch.float64) for a in args)
    x = to_torch(x, torch.float64)
    once = f(x, *args)
    for a, b in zip(tree.leaves(f(once, *args)), tree.leaves(once)):
        torch.testing.assert_close(a, b)
    y = tree.map(lambda v: v + torch.randn_like(v), x)
    assert tree.norm(tree.sub(f(y, *args), once)) <= tree.norm(tree.sub(y, x)) + 1e-12


def test_rows_on_the_simplex_against_bisection() -> None:
    x = torch.randn(50, 7, dtype=torch.float64) * torch.logspace(-3, 3, 50)[:, None]
    low, high = x.amin(1, keepdim=True) - 1.0, x.amax(1, keepdim=True)
    for _ in range(100):
        middle = 0.5 * (low + high)
        over = (x - middle).relu().sum(1, keepdim=True) > 1.0
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    torch.testing.assert_close(projections.unit_simplex(x), (x - low).relu(), rtol=1e-9, atol=1e-9)


def test_small_differences_next_to_large_numbers() -> None:
    x = torch.tensor([1e6, 1e6 + 0.25, 0.0])
    torch.testing.assert_close(projections.projection_simplex(x), torch.tensor([0.375, 0.625, 0.0]))


def test_none_numbers_and_mixed_precision() -> None:
    x = {'a': None, 'b': 0.5, 'c': torch.tensor([2.5, 3.0], dtype=torch.float64), 'd': torch.tensor([1.0])}
    found = projections.projection_simplex(x)
    assert found['a'] is None
    assert [found[k].dtype for k in 'bcd'] == [torch.float32, torch.float64, torch.float32]
    torch.testing.assert_close(found['c'], torch.tensor([0.25, 0.75], dtype=torch.float64))
    cube = projections.projection_hypercube(
        {'v': torch.tensor(3.0), 'w': torch.tensor([-1.0, 3.0])}, {'v': 2.0, 'w': 1.0}
    )
    assert (cube['v'].item(), cube['w'].tolist()) == (2.0, [0.0, 1.0])
    clipped = projections.projection_box(x, None, {'a': 1.0, 'b': 1.0, 'c': 1.0, 'd': None})
    assert clipped['c'].tolist() == [1.0, 1.0] and clipped['d'].tolist() == [1.0]
    wide = torch.tensor(0.5, dtype=torch.float64)
    for f in (projections.projection_simplex, projections.projection_l2_ball, projections.projection_linf_ball):
        assert f(torch.tensor([3.0, 4.0]), wide).dtype == torch.float32
        assert f(torch.tensor(3.0), wide).dtype == torch.float32


def test_a_ball_of_radius_zero_is_a_point() -> None:
    for x in (torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)):
        f = lambda x: projections.projection_l2_ball(x, 0.0)  # noqa: E731
        assert not f(x).any()
        assert not torch.func.jacrev(f)(x).any()


def test_values_are_not_read() -> None:
    x = {'w': torch.zeros(3, device='meta')}
    for name in FROM_OPTAX:
        args = {'projection_box': (0, 1), 'projection_vector': (x,)}.get(name, ())
        args = (x, 1.0) if name in ('projection_hyperplane', 'projection_halfspace') else args
        assert getattr(projections, name)(x, *args)['w'].shape == (3,)


SIZED = ['hypercube', 'simplex', 'l1_sphere', 'l1_ball', 'l2_sphere', 'l2_ball', 'linf_ball']


@pytest.mark.parametrize('home', [projections, torchopt.compat.jaxopt.projection], ids=['ours', 'jaxopt'])
@pytest.mark.parametrize('name', SIZED)
def test_a_size_that_is_none_is_one(name: str, home: Any) -> None:
    """So that ``ProjectedGradient`` works without ``hyperparams_proj``."""
    project = getattr(home, f'projection_{name}')
    start, center = torch.full((3,), 0.1, dtype=torch.float64), torch.tensor([2.0, 1.5, -1.0], dtype=torch.float64)
    torch.testing.assert_close(project(center, None), project(center), rtol=0, atol=0)
    run = torchopt.ProjectedGradient(lambda x: ((x - center) ** 2).sum(), project, tol=1e-12).run(start)
    torch.testing.assert_close(run.params, project(center), rtol=1e-9, atol=1e-9)


FROM_JAXOPT = ['projection_affine_set', 'projection_box_section', 'projection_sparse_simplex']
FROM_OPTAX = [name for name in projections.__all__ if name not in FROM_JAXOPT]


@pytest.mark.parametrize('name', projections.__all__)
def test_signatures_are_those_of_optax_or_jaxopt(name: str) -> None:
    def plain(f: Any) -> list[Any]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    home = jaxopt.projection if name in FROM_JAXOPT else optax.projections
    assert plain(getattr(projections, name)) == plain(getattr(home, name))


def test_every_projection_of_jaxopt_is_here() -> None:
    names = {name for name in vars(jaxopt.projection) if name.startswith(('projection_', 'kl_projection_'))}
    assert names <= {*projections.__all__, *polytopes.__all__}


def test_every_projection_of_optax_is_here() -> None:
    assert {name for name in vars(optax.projections) if name.startswith('projection_')} == set(FROM_OPTAX)


x = rng.standard_normal(6)
MATRIX = rng.standard_normal((2, 6))
SECTION = (np.full(6, -0.5), np.linspace(0.2, 1.0, 6), np.linspace(0.5, 1.5, 6), np.array(0.3))
# title: name, tensors, the further arguments made of the tensors after the first, tolerance of the oracle
VECTORS: dict[str, tuple[str, tuple[Any, ...], Any, float]] = {
    'sparse': ('projection_sparse_simplex', (x,), lambda: (3,), 1e-8),
    'sparse: scale': ('projection_sparse_simplex', (x,), lambda: (2, False, 2.5), 1e-8),
    'sparse: all': ('projection_sparse_simplex', (x,), lambda: (6, True, None), 1e-8),
    'sparse: ties': ('projection_sparse_simplex', (np.zeros(4),), lambda: (2,), 1e-8),
    'affine': ('projection_affine_set', (x, MATRIX, x[:2]), lambda *h: (h,), 1e-5),
    'section': ('projection_box_section', (x, *SECTION), lambda *h: (h,), 1e-4),
    'section: low': ('projection_box_section', (x - 9.0, *SECTION), lambda *h: (h,), 1e-4),
}


@pytest.mark.parametrize('title', VECTORS)
def test_vectors_against_jaxopt(title: str) -> None:
    name, arrays, further, tolerance = VECTORS[title]
    f = getattr(projections, name)
    xs = [torch.tensor(a) for a in arrays]
    found = f(xs[0], *further(*xs[1:]))
    with jax.enable_x64(True):
        expected = getattr(jaxopt.projection, name)(jnp.asarray(arrays[0]), *further(*map(jnp.asarray, arrays[1:])))
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    if 'ties' not in title:
        leaves = [v.clone().requires_grad_() for v in xs]
        assert torch.autograd.gradcheck(lambda *xs: f(xs[0], *further(*xs[1:])), leaves)
    batch = torch.stack([xs[0], xs[0].flip(0)])
    rows = torch.func.vmap(lambda x: f(x, *further(*xs[1:])))(batch)
    torch.testing.assert_close(rows[1], f(batch[1], *further(*xs[1:])))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: f(x, *further(*xs[1:])), fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(xs[0]), found)


def test_sections_and_affine_sets_meet_their_conditions() -> None:
    low, high, w, c = (torch.tensor(v) for v in SECTION)
    for shift in (-9.0, 0.0, 9.0):
        p = projections.projection_box_section(torch.tensor(x) + shift, (low, high, w, c), check_feasible=True)
        torch.testing.assert_close(torch.dot(w, p), c)
        assert ((low <= p) & (p <= high)).all()
    corner = projections.projection_box_section(torch.tensor(x), (low, high, w, torch.tensor(99.0)))
    torch.testing.assert_close(corner, high)
    twice = torch.tensor(np.concatenate([MATRIX, MATRIX]))
    p = projections.projection_affine_set(torch.tensor(x), (twice, torch.ones(4, dtype=torch.float64)))
    torch.testing.assert_close(twice @ p, torch.ones(4, dtype=torch.float64))


w = {'w': torch.zeros(3)}
ERRORS = {
    'scale of zero': (lambda: projections.projection_simplex(w, 0.0), ValueError, 'scale: 0.0; expected a number > 0'),
    'negative scale': (
        lambda: projections.projection_l2_ball(w, -1.0),
        ValueError,
        'scale: -1.0; expected a number >= 0',
    ),
    'negative radius': (lambda: projections.projection_linf_ball(w, -1), ValueError, 'scale: -1'),
    'vector as scale': (
        lambda: projections.projection_l1_ball(w, torch.ones(2)),
        ValueError,
        r'tensor of shape \(2,\)',
    ),
    'integers': (
        lambda: projections.projection_simplex({'w': torch.zeros(3, dtype=torch.int64)}),
        TypeError,
        r"tree\['w'\] has dtype torch.int64",
    ),
    'no vector': (lambda: projections.projection_sparse_simplex(torch.zeros(2, 2), 1), ValueError, 'x has shape'),
    'too sparse': (
        lambda: projections.projection_sparse_simplex(torch.zeros(2), 3),
        ValueError,
        'max_nz is 3; expected',
    ),
    'affine shapes': (
        lambda: projections.projection_affine_set(torch.zeros(2), (torch.zeros(1, 3), torch.zeros(1))),
        ValueError,
        r'hyperparams have shapes \(1, 3\) and \(1,\); expected \[m, 2\]',
    ),
    'empty section': (
        lambda: projections.projection_box_section(torch.zeros(2), (0.0, 1.0, torch.ones(2), 3.0), check_feasible=True),
        ValueError,
        'The set is empty',
    ),
    'nothing': (lambda: projections.projection_simplex({}), ValueError, 'no element to project'),
    'bounds': (lambda: projections.projection_box(w, {'v': 0.0}, 1.0), ValueError, 'lower'),
    'shapes': (lambda: projections.projection_vector(w, {'w': torch.ones(2)}), ValueError, r"\['w'\] has shape"),
}


@pytest.mark.parametrize(('call', 'error', 'message'), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
