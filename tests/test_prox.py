# SPDX-License-Identifier: Apache-2.0
"""Proximity operators, objectives and isotonic regression against JAXopt: values, gradients, transforms, extremes."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import scipy.optimize
import torch

from torchopt import isotonic, objective, prox, tree

rng = np.random.default_rng(0)
X = {'w': 2 * rng.standard_normal((2, 3)), 'b': [2 * rng.standard_normal(4), np.array(0.7)]}
WEIGHTS = {'w': np.full((2, 3), 0.4), 'b': [np.linspace(0.1, 2.0, 4), np.array(0.2)]}
SMALL, HUGE = (jax.tree.map(lambda x, s=s: np.asarray(s * x), X) for s in (1e-30, 1e30))
ZERO = jax.tree.map(np.zeros_like, X)
NAN = jax.tree.map(lambda x: np.where(x > 0, np.nan, x), X)
A, B = rng.standard_normal((7, 3)), rng.standard_normal((3, 2))
TARGETS, CLASSES, LABELS = rng.standard_normal(7), np.array([0, 1, 1, 0, 1, 0, 0]), np.array([0, 1, 1, 0, 0, 1, 1])
ONE_HOT = np.eye(2)[CLASSES]

# title: name, arguments, further arguments that are not differentiated
PROX: dict[str, tuple[str, tuple[Any, ...]]] = {
    'none': ('prox_none', (X,)),
    'lasso': ('prox_lasso', (X, 0.4, 1.5)),
    'lasso: defaults': ('prox_lasso', (X,)),
    'lasso: a weight for each element': ('prox_lasso', (X, WEIGHTS, 0.7)),
    'lasso: small': ('prox_lasso', (SMALL, 0.4e-30)),
    'lasso: huge': ('prox_lasso', (HUGE, 0.4e30)),
    'lasso: zeros': ('prox_lasso', (ZERO, 0.4)),
    'lasso: no weight': ('prox_lasso', (X, 0.0)),
    'lasso: nan': ('prox_lasso', (NAN, 0.4)),
    'non-negative lasso': ('prox_non_negative_lasso', (X, 0.4, 1.5)),
    'non-negative lasso: defaults': ('prox_non_negative_lasso', (X, None)),
    'elastic net': ('prox_elastic_net', (X, (0.4, 0.8), 1.5)),
    'elastic net: defaults': ('prox_elastic_net', (X,)),
    'elastic net: a weight for each element': ('prox_elastic_net', (X, (WEIGHTS, WEIGHTS), 1.5)),
    'group lasso': ('prox_group_lasso', (X, 0.4, 1.5)),
    'group lasso: vanishes': ('prox_group_lasso', (X, 40.0)),
    'group lasso: small': ('prox_group_lasso', (SMALL, 0.4e-30)),
    'group lasso: huge': ('prox_group_lasso', (HUGE, 0.4e30)),
    'ridge': ('prox_ridge', (X, 0.4, 1.5)),
    'ridge: defaults': ('prox_ridge', (X, None)),
    'non-negative ridge': ('prox_non_negative_ridge', (X, 0.4, 1.5)),
}
OBJECTIVES: dict[str, tuple[str, tuple[Any, ...]]] = {
    'least squares': ('least_squares', (B[:, 0], (A, TARGETS))),
    'least squares: several outputs': ('least_squares', (B, (A, ONE_HOT))),
    'ridge regression': ('ridge_regression', (B[:, 0], 0.3, (A, TARGETS))),
    'multiclass': ('multiclass_logreg', (B, (A, CLASSES))),
    'multiclass: huge': ('multiclass_logreg', (1e30 * B, (A, CLASSES))),
    'multiclass with intercept': ('multiclass_logreg_with_intercept', ((B, B[0]), (A, CLASSES))),
    'l2 multiclass': ('l2_multiclass_logreg', (B, 0.3, (A, CLASSES))),
    'l2 multiclass with intercept': ('l2_multiclass_logreg_with_intercept', ((B, B[0]), 0.3, (A, CLASSES))),
    'binary': ('binary_logreg', (B[:, 0], (A, LABELS))),
    'svm dual': ('multiclass_linear_svm_dual', (np.full((7, 2), 0.5) + 0.1 * ONE_HOT, 0.3, (A, ONE_HOT))),
}
ISOTONIC: dict[str, tuple[Any, ...]] = {
    'random': (rng.standard_normal(12),),
    'in order': (np.arange(5.0),),
    'reversed': (np.arange(5.0)[::-1].copy(),),
    'ties': (np.array([1.0, 1.0, 0.5, 2.0, 2.0]),),
    'bounds': (rng.standard_normal(12), -0.2, 0.3),
    'descending': (rng.standard_normal(12), -np.inf, np.inf, False),
    'one': (np.array([3.0]),),
    'large': (1e30 * rng.standard_normal(12),),
    'small': (1e-3 * rng.standard_normal(12),),
}
ROWS = [(f'prox {k}', prox, jaxopt.prox, *v) for k, v in PROX.items()] + [
    (f'objective {k}', objective, jaxopt.objective, *v) for k, v in OBJECTIVES.items()
]


def is_differentiable(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == 'f' and bool(np.isfinite(x).any())


def gradients_of_jaxopt(f: Any, args: tuple[Any, ...]) -> tuple[list[Any], list[Any]]:
    leaves, spec = jax.tree.flatten(args)
    places = [i for i, x in enumerate(leaves) if is_differentiable(x)]

    # Numbers stay Python floats for JAXopt's operators, which look at their type.
    def of(*xs: Any) -> Any:
        filled = list(leaves)
        for i, x in zip(places, xs):
            filled[i] = x
        return jax.tree.leaves(f(*jax.tree.unflatten(spec, filled)))

    @jax.jit  # one program compiles faster than its operations
    def both(*xs: Any) -> Any:
        value, pull_back = jax.vjp(of, *xs)
        return value, pull_back([jnp.ones_like(v) for v in value])

    with jax.enable_x64(True):
        return both(*(leaves[i] for i in places))


@pytest.mark.parametrize(('ours', 'theirs', 'name', 'args'), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_values_and_gradients_are_those_of_jaxopt(ours: Any, theirs: Any, name: str, args: tuple[Any, ...]) -> None:
    value, gradients = gradients_of_jaxopt(getattr(theirs, name), args)
    leaves, spec = tree.flatten(tree.map(lambda x: torch.tensor(x) if isinstance(x, np.ndarray) else x, args))
    wanted = [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point() and x.isfinite().any()]
    for x in wanted:
        x.requires_grad_()
    found = tree.leaves(getattr(ours, name)(*tree.unflatten(spec, leaves)))
    for x, y in zip(found, value, strict=True):
        np.testing.assert_allclose(x.detach().numpy(), y, rtol=1e-12, atol=1e-14 * np.nanmax(np.abs(y), initial=0.0))
    if any(np.isnan(v).any() for v in value):
        return
    ours_too = torch.autograd.grad([x.sum() for x in found], wanted, allow_unused=True)
    for g, expected in zip(ours_too, gradients, strict=True):
        g = np.zeros_like(expected) if g is None else g.numpy()
        np.testing.assert_allclose(g, expected, rtol=1e-7, atol=1e-8 * max(1.0, np.abs(expected).max(initial=0.0)))


@pytest.mark.parametrize('title', [t for t in PROX if ':' not in t])
def test_prox_second_derivatives_batches_and_dtypes(title: str) -> None:
    name, (x, *further) = PROX[title]
    f = getattr(prox, name)
    leaves, spec = tree.flatten(tree.map(torch.tensor, x))
    scalars = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in tree.leaves(further)]
    hyper = tree.structure(further)

    def of(*xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args = tree.unflatten(hyper, list(xs[len(leaves) :]))
        return tuple(tree.leaves(f(tree.unflatten(spec, list(xs[: len(leaves)])), *args)))

    inputs = [v.clone().requires_grad_() for v in leaves] + scalars
    assert torch.autograd.gradcheck(of, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(of, inputs, fast_mode=True)
    batch = [torch.stack([v, -2 * v]) for v in leaves]
    rows = torch.vmap(lambda *xs: of(*xs, *scalars))(*batch)
    for a, b in zip(rows, of(*[v[1] for v in batch], *scalars)):
        torch.testing.assert_close(a[1], b)
    halves = of(*[v.to(torch.bfloat16) for v in leaves], *scalars)
    assert {v.dtype for v in halves} == {torch.bfloat16}


def test_group_lasso_at_zero_and_nan() -> None:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(prox.prox_group_lasso(x, 0.5).sum(), x)
    assert g.tolist() == [0.0, 0.0, 0.0]
    assert jnp.isnan(jax.grad(lambda x: jaxopt.prox.prox_group_lasso(x, 0.5).sum())(jnp.zeros(3))).all()
    nan = torch.tensor([float('nan'), 1.0])
    assert prox.prox_group_lasso(nan, 0.5).isnan().all()
    assert not jnp.isnan(jaxopt.prox.prox_group_lasso(jnp.asarray(nan), 0.5)).all()  # JAXopt hides it


def test_group_lasso_without_weight_is_the_identity() -> None:
    x = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(torch.func.jacrev(lambda x: prox.prox_group_lasso(x, 0.0))(x), torch.eye(3, dtype=x.dtype))
    infinite = torch.tensor([float('inf'), 1.0])
    for weight in (0.0, 0.5):
        expected = torch.from_numpy(np.array(jaxopt.prox.prox_group_lasso(jnp.asarray(infinite), weight)))
        torch.testing.assert_close(prox.prox_group_lasso(infinite, weight), expected)


@pytest.mark.parametrize('title', ISOTONIC)
def test_isotonic_against_scipy(title: str) -> None:
    y, low, high, increasing = (*ISOTONIC[title], *(-np.inf, np.inf, True)[len(ISOTONIC[title]) - 1 :])
    expected = scipy.optimize.isotonic_regression(y, increasing=increasing).x.clip(low, high)
    found = isotonic.isotonic_l2_pav(torch.tensor(y), low, high, increasing)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14 * np.abs(y).max())


def test_isotonic_against_jaxopt() -> None:
    y, w = ISOTONIC['random'][0], rng.standard_normal(12)
    with jax.enable_x64(True):
        expected = jax.grad(lambda y: jaxopt.isotonic.isotonic_l2_pav(y) @ w)(jnp.asarray(y))
    found = torch.func.grad(lambda y: isotonic.isotonic_l2_pav(y) @ torch.tensor(w))(torch.tensor(y))
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)


def test_isotonic_rows_nan_and_derivatives() -> None:
    y = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.vmap(isotonic.isotonic_l2_pav)(y)
    torch.testing.assert_close(rows, torch.stack([isotonic.isotonic_l2_pav(row) for row in y]))
    nested = torch.vmap(torch.vmap(isotonic.isotonic_l2_pav, in_dims=1, out_dims=1))(y.expand(2, 3, 9).mT)
    torch.testing.assert_close(nested[1], rows.mT)
    leaf = y[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(isotonic.isotonic_l2_pav, leaf, check_forward_ad=True)
    assert isotonic.isotonic_l2_pav(torch.tensor([1.0, float('nan'), 0.0])).isnan().all()
    assert isotonic.isotonic_l2_pav(torch.zeros(0)).shape == (0,)
    compiled = torch.compile(isotonic.isotonic_l2_pav, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(y[0]), rows[0])


@pytest.mark.parametrize(
    'title', ['least squares', 'least squares: several outputs', 'multiclass', 'binary', 'svm dual']
)
def test_lipschitz_constants_bound_the_curvature(title: str) -> None:
    """A step of 1 / L along one coordinate never increases the objective.  JAXopt's constants lack the number of
    samples and the regularization, so that its steps are too short, or too long."""
    name, args = OBJECTIVES[title]
    f = getattr(objective, name)
    w, *further = tree.map(lambda x: torch.tensor(x) if isinstance(x, np.ndarray) else x, args)
    constants = f.columnwise_lipschitz_const(*further)
    hessian = torch.func.hessian(f)(w, *further)
    for i in range(len(w)):
        block = hessian[i] if w.ndim == 1 else hessian[i, :, i]
        largest = block[i] if w.ndim == 1 else torch.linalg.eigvalsh(block).max()
        assert largest <= constants[i] * (1 + 1e-12)


def test_linear_operator() -> None:
    M = torch.randn(4, 3, dtype=torch.float64)
    A, x, y = objective.LinearOperator(M), torch.randn(3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    assert A.shape() == (4, 3)
    torch.testing.assert_close(A.matvec(x)[2], A.matvec_element(x, 2))
    torch.testing.assert_close(A.rmatvec(y)[1], A.rmatvec_element(y, 1))
    e = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(A.update_matvec(M @ x, torch.tensor(0.5), 1), M @ (x + 0.5 * e[1, :3]))
    torch.testing.assert_close(A.update_rmatvec(M.T @ y, torch.tensor(0.5), 1), M.T @ (y + 0.5 * e[1]))
    torch.testing.assert_close(A.column_l2_norms(), M.norm(dim=0))
    with pytest.raises(ValueError, match='A has shape'):
        objective.LinearOperator(x)


ERRORS = {
    'negative weight': (
        lambda: prox.prox_lasso(torch.ones(2), -1.0),
        ValueError,
        'l1reg: -1.0; expected a number >= 0',
    ),
    'structure': (lambda: prox.prox_ridge({'a': torch.ones(2)}, {'b': 1.0}), ValueError, 'l2reg'),
    'no pair': (lambda: prox.prox_elastic_net(torch.ones(2), 1.0), ValueError, 'expected a pair'),
    'integers': (lambda: isotonic.isotonic_l2_pav(torch.arange(3)), TypeError, 'y has dtype torch.int64'),
    'matrix': (lambda: isotonic.isotonic_l2_pav(torch.ones(2, 2)), ValueError, 'y has shape'),
    'no parts': (lambda: objective.CompositeLinearFunction()(torch.ones(2)), NotImplementedError, 'make_linop'),
}


@pytest.mark.parametrize(('call', 'error', 'message'), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize('name', prox.__all__)
def test_signatures_are_those_of_jaxopt(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(m, name)).parameters.values() for m in (prox, jaxopt.prox))
    assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]
