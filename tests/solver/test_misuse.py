# SPDX-License-Identifier: Apache-2.0
"""Mistakes in problems and in calls of solvers: each raises an error that names the argument and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt.compat import jaxopt

Z = torch.zeros(2, dtype=torch.float64)
ONE = torch.tensor(1.0, dtype=torch.float64)
NAN = ONE * torch.nan
X = torch.linspace(-1.0, 1.0, 10, dtype=torch.float64).reshape(5, 2)
Y = X[:, 0]
COLUMN = Y[:, None]
V = torch.tensor([3.0, -1.0, 0.5, 0.2], dtype=torch.float64)
P = jaxopt.projection


def square(w: Tensor, a: Tensor) -> Tensor:
    return ((w - a) ** 2).sum()


def root(w: Tensor, a: Tensor) -> Tensor:
    return w - a


def logarithm(w: Tensor, a: Tensor) -> Tensor:
    return (a * w.log()).sum()


SOLVERS = {
    'LBFGS': torchopt.LBFGS(square),
    'BFGS': torchopt.BFGS(square),
    'NonlinearCG': torchopt.NonlinearCG(square),
    'GradientDescent': torchopt.GradientDescent(square),
    'ArmijoSGD': torchopt.ArmijoSGD(square),
    'GaussNewton': torchopt.GaussNewton(root),
    'LevenbergMarquardt': torchopt.LevenbergMarquardt(root),
    'FixedPointIteration': torchopt.FixedPointIteration(lambda w, a: 0.5 * (w + a)),
    'AndersonAcceleration': torchopt.AndersonAcceleration(lambda w, a: 0.5 * (w + a)),
    'Broyden': torchopt.Broyden(root),
    'ScipyMinimize': torchopt.ScipyMinimize(fun=square),
}
TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Any]] = {
    'plain': lambda f: f(ONE),
    'requires grad': lambda f: f(ONE.clone().requires_grad_()),
    'grad': lambda f: torch.func.grad(f)(ONE),
    'grad of grad': lambda f: torch.func.grad(torch.func.grad(f))(ONE),
    'jvp': lambda f: torch.func.jvp(f, (ONE,), (ONE,)),
}


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('solver', SOLVERS)
def test_a_start_that_is_not_finite_raises_under_every_transform(solver: str, transform: str) -> None:
    with pytest.raises(ValueError, match='init_params has values that are NaN or infinite'):
        TRANSFORMS[transform](lambda a: SOLVERS[solver].run(Z * torch.nan, a).params.sum())


@pytest.mark.parametrize('transform', TRANSFORMS)
@pytest.mark.parametrize('solver', [torchopt.LBFGS, torchopt.BFGS, torchopt.NonlinearCG])
def test_an_objective_that_is_not_finite_at_the_start_raises_under_every_transform(solver: Any, transform: str) -> None:
    for fun, factor in ((square, torch.nan), (logarithm, 1.0)):
        with pytest.raises(ValueError, match='Start where'):
            TRANSFORMS[transform](lambda a, fun=fun, factor=factor: solver(fun).run(Z, a * factor).params.sum())


def test_a_sample_that_is_not_finite_does_not_disturb_the_others() -> None:
    solver = torchopt.LBFGS(square)
    params, state = torch.vmap(solver.run)(torch.stack([Z, Z * torch.nan, Z]), torch.stack([ONE, ONE, 2 * ONE]))
    assert state.status.tolist() == [1, 3, 1]
    assert params[0].tolist() == [1.0, 1.0]
    assert params[2].tolist() == [2.0, 2.0]


def exchanged(solver: Any, *args: Any) -> Callable[[], Any]:
    return lambda: solver.update(solver.init_state(Z, *args), Z, *args)


BOXED = {
    'LBFGSB': torchopt.LBFGSB(square),
    'ScipyBoundedMinimize': torchopt.ScipyBoundedMinimize(fun=square),
    'ScipyBoundedLeastSquares': torchopt.ScipyBoundedLeastSquares(fun=root),
}

ERRORS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # Targets that would broadcast with the predictions.
    'least squares': (lambda: torchopt.objective.least_squares(Z, (X, COLUMN)), ValueError, r'y has shape \(5, 1\)'),
    'ridge': (lambda: torchopt.objective.ridge_regression(Z, 0.1, (X, COLUMN)), ValueError, r'expected \(5,\)'),
    'outputs': (
        lambda: torchopt.objective.least_squares(torch.zeros(2, 5, dtype=X.dtype), (X, Y)),
        ValueError,
        r'y has shape \(5,\); expected \(5, 5\)',
    ),
    'binary logreg': (lambda: torchopt.objective.binary_logreg(Z, (X, COLUMN > 0)), ValueError, r'y\.squeeze\(-1\)'),
    'multiclass logreg': (
        lambda: torchopt.objective.multiclass_logreg(torch.zeros(2, 3, dtype=X.dtype), (X, (COLUMN > 0).long())),
        ValueError,
        r'y has shape \(5, 1\); expected \(5,\)',
    ),
    'intercept': (
        lambda: torchopt.objective.multiclass_logreg_with_intercept(
            (torch.zeros(2, 3, dtype=X.dtype), torch.zeros(3, dtype=X.dtype)), (X, (COLUMN > 0).long())
        ),
        ValueError,
        r'y has shape \(5, 1\)',
    ),
    'svm dual': (
        lambda: torchopt.objective.multiclass_linear_svm_dual(torch.zeros(5, 3, dtype=X.dtype), 1.0, (X, COLUMN)),
        ValueError,
        r'y has shape \(5, 1\); expected \(5, 3\)',
    ),
    'block coordinate descent': (
        lambda: torchopt.BlockCoordinateDescent(torchopt.objective.least_squares, torchopt.prox.prox_lasso).run(
            Z, 0.01, (X, COLUMN)
        ),
        ValueError,
        r'y has shape \(5, 1\)',
    ),
    'losses of JAXopt': (lambda: jaxopt.loss.huber_loss(Y, COLUMN), ValueError, 'the label has shape'),
    # Sets without points, and functions that are not convex.
    'row sums': (lambda: P.projection_transport(X[:2], (-Y[:2] - 1, Y[:2])), ValueError, 'the negative row sum'),
    'column sums': (
        lambda: P.kl_projection_transport(X[:2], (ONE.expand(2), torch.tensor([3.0, -1.0]))),
        ValueError,
        'the negative column sum -1 at 1',
    ),
    'box': (lambda: P.projection_box(V, (1.0, -1.0)), ValueError, 'lower is 1 where upper is -1'),
    'box in grad': (
        lambda: torch.func.grad(lambda x: P.projection_box(x, (x + 1, x - 1)).sum())(V),
        ValueError,
        'The bounds cross',
    ),
    'box of shapes': (lambda: P.projection_box(V, (Z, None)), ValueError, r'lower has shape \(2,\); expected a number'),
    'hypercube': (lambda: P.projection_hypercube(V, -1.0), ValueError, 'scale is -1'),
    'box section': (
        lambda: P.projection_box_section(V, (V * 0 + 1, V * 0, V * 0 + 1, 1.0)),
        ValueError,
        r'hyperparams\[0\] is 1 where hyperparams\[1\] is 0',
    ),
    'projected gradient': (
        lambda: torchopt.ProjectedGradient(square, P.projection_box).run(Z, (Z + 1, Z - 1), ONE),
        ValueError,
        'The bounds cross',
    ),
    'LBFGSB in grad': (
        lambda: torch.func.grad(lambda a: torchopt.LBFGSB(square).run(Z, (a, -a), a).params.sum())(ONE),
        ValueError,
        'The bounds cross',
    ),
    **{
        f'NaN as a bound of {name}': (
            lambda solver=solver: solver.run(Z, (Z, Z * float('nan')), ONE),
            ValueError,
            'is NaN',
        )
        for name, solver in BOXED.items()
    },
    **{
        f'shape of a bound of {name}': (lambda solver=solver: solver.run(Z, (None, V), ONE), ValueError, 'upper bound')
        for name, solver in BOXED.items()
    },
    'tolerance': (lambda: torchopt.BFGS(square, tol=-ONE), ValueError, 'Invalid tol'),
    # Arguments of another form.
    'no pair': (lambda: P.projection_hyperplane(V, V), ValueError, r'hyperparams is a Tensor .* a pair \(a, b'),
    'no bounds': (lambda: P.projection_box(V, 1.0), ValueError, r'hyperparams is a float .* pair \(lower, upper\)'),
    'normal': (lambda: P.projection_halfspace(V, (V[None], 2.0)), ValueError, r'a has shape \(1, 4\), but x has shape'),
    'line': (lambda: torchopt.projections.projection_vector(V, V[None]), ValueError, 'a has shape'),
    'value': (lambda: P.projection_simplex(V, value=-2.0), ValueError, 'Invalid value: -2.0'),
    'max_value': (lambda: P.projection_l1_ball(V, max_value=-2.0), ValueError, 'Invalid max_value: -2.0'),
    'integers': (lambda: P.projection_simplex({'w': torch.arange(3)}), TypeError, r"x\['w'\] has dtype torch.int64"),
    'keyword': (
        lambda: torchopt.ProximalGradient(torchopt.objective.least_squares, torchopt.prox.prox_lasso).run(
            Z, hyperparam_prox=0.1, data=(X, Y)
        ),
        TypeError,
        "Did you mean 'hyperparams_prox'",
    ),
    'keyword of SciPy': (lambda: torchopt.ScipyMinimize(fun=square).run(Z, ONE, b=ONE), TypeError, "argument 'b'"),
    'swapped prox': (
        lambda: torchopt.ProximalGradient(torchopt.prox.prox_lasso, torchopt.objective.least_squares),
        TypeError,
        r'Invalid prox: .* cannot be called as prox\(params, hyperparams_prox, scaling\)',
    ),
    'projection without hyper-parameters': (
        lambda: torchopt.ProjectedGradient(square, torchopt.projections.projection_non_negative),
        TypeError,
        'Invalid projection: projection_non_negative .* Wrap it: `lambda params, hyperparams_proj: ',
    ),
    'bounds': (lambda: torchopt.LBFGSB(square).run(Z), TypeError, "missing a required argument: 'bounds'"),
    'has_aux of a solver': (
        lambda: torchopt.implicit_diff.custom_root(root)(lambda w, a: (a * 1.0, {}))(None, Z),
        TypeError,
        'pass has_aux=True',
    ),
    'has_aux of a fixed point': (
        lambda: torchopt.FixedPointIteration(lambda w, a: (w + a, {})).run(Z, ONE),
        TypeError,
        'pass has_aux=True',
    ),
    'pre_update': (
        lambda: torchopt.ArmijoSGD(square, pre_update=lambda params, state, *args: params).run(Z, ONE),
        TypeError,
        r'must return a pair \(params, state\)',
    ),
    'end of Bisection': (lambda: torchopt.Bisection(torch.cos, Z, Z + 2), ValueError, 'Invalid lower: .* torch.vmap'),
    'beta': (lambda: torchopt.AndersonAcceleration(torch.cos, beta='a'), TypeError, "Invalid beta: 'a'"),
    'args of root_vjp': (lambda: torchopt.implicit_diff.root_vjp(root, Z, ONE, Z), TypeError, r'Pass args=\(a,\)'),
    'tangents': (lambda: torchopt.implicit_diff.root_jvp(root, Z, (ONE,), ONE), TypeError, 'tangents is a Tensor'),
    'constructor': (lambda: jaxopt.MirrorDescent(square, P.projection_simplex), TypeError, 'MirrorDescent.*stepsize'),
    **{
        f'exchanged state of {name}': (exchanged(solver, ONE), TypeError, r'update\(params, state, \.\.\.\)')
        for name, solver in SOLVERS.items()
        if hasattr(solver, 'update')
    },
    **{
        f'scaling of {name}': (lambda f=f: f(V, None, -1.0), ValueError, 'Invalid scaling: -1')
        for name, f in vars(torchopt.prox).items()
        if name.startswith('prox_') and name != 'prox_none'
    },
    'scaling of a tensor': (lambda: torchopt.prox.prox_ridge(V, 1.0, -ONE), ValueError, 'Invalid scaling: -1'),
    'weights of tensors': (lambda: torchopt.prox.prox_lasso(V, -V), ValueError, 'Invalid l1reg: -3'),
    'weights in grad': (
        lambda: torch.func.grad(lambda r: torchopt.prox.prox_lasso(V, r).sum())(-ONE),
        ValueError,
        'Invalid l1reg: -1',
    ),
}


@pytest.mark.parametrize('name', ERRORS)
def test_mistakes_raise(name: str) -> None:
    call, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        call()


def test_values_that_cannot_be_read_are_not_checked() -> None:
    found = torch.vmap(lambda x, low, high: P.projection_box(x, (low, high)))(V, V + 1, V - 1)
    assert found.tolist() == (V - 1).tolist()
    assert torch.vmap(lambda x, s: torchopt.prox.prox_ridge(x, 1.0, s))(V, V * 0 + 1).tolist() == (V / 2).tolist()


def test_one_bound_of_scipy_may_be_none() -> None:
    solver = torchopt.ScipyBoundedMinimize(fun=square, tol=1e-9)
    torch.testing.assert_close(solver.run(Z, (None, Z + 0.5), ONE).params, Z + 0.5)
    torch.testing.assert_close(solver.run(Z, (Z + 2.0, None), ONE).params, Z + 2.0)
