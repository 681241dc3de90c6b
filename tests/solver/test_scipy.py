# SPDX-License-Identifier: Apache-2.0
"""SciPy's solvers for trees: their results are SciPy's own, their derivatives those of finite differences."""

from __future__ import annotations

import builtins
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    import jaxopt

import torchopt
from torchopt.linear_solve import solve_lu

OPTIONS: dict[str, Any] = {'implicit_diff_solve': solve_lu}
T = torch.linspace(0.0, 1.0, 6, dtype=torch.float64)


def bowl(x: Any, a: Any) -> Any:
    return ((x['u'] - a) ** 2).sum() + (x['v'] - x['u'].sum()) ** 4 + (x['v'] - 1) ** 2


def curve(x: Any, a: Any) -> Any:
    return {'r': x['u'][0] * torch.exp(-x['v'] * T) - a.sum() * torch.exp(-0.5 * T), 's': x['u'] - 0.1 * T[:2]}


def system(x: Any, a: Any) -> Any:
    return {'u': x['u'] ** 3 + x['u'] - a, 'v': x['v'] - x['u'].sum()}


def start() -> dict[str, Tensor]:
    return {'u': torch.full((2,), 0.4, dtype=torch.float64), 'v': torch.tensor(0.5, dtype=torch.float64)}


BOUNDS = (
    {'u': torch.tensor([-1.0, 0.2], dtype=torch.float64), 'v': torch.tensor(-3.0, dtype=torch.float64)},
    {'u': torch.tensor([0.6, 2.0], dtype=torch.float64), 'v': torch.tensor(0.9, dtype=torch.float64)},
)

TIGHT = {'gtol': 1e-10}
SOLVERS: dict[str, tuple[Any, Any]] = {
    'BFGS': (torchopt.ScipyMinimize(fun=bowl, method='BFGS', options=TIGHT, **OPTIONS), None),
    'default': (torchopt.ScipyMinimize(fun=bowl, tol=1e-10, **OPTIONS), None),
    'Newton-CG': (torchopt.ScipyMinimize(fun=bowl, method='Newton-CG', tol=1e-10, **OPTIONS), None),
    'trust-exact': (torchopt.ScipyMinimize(fun=bowl, method='trust-exact', options=TIGHT, **OPTIONS), None),
    'trust-krylov': (torchopt.ScipyMinimize(fun=bowl, method='trust-krylov', options={'gtol': 1e-6}, **OPTIONS), None),
    'Nelder-Mead': (torchopt.ScipyMinimize(fun=bowl, method='Nelder-Mead', tol=1e-12, maxiter=5000, **OPTIONS), None),
    'L-BFGS-B': (torchopt.ScipyBoundedMinimize(fun=bowl, method='L-BFGS-B', tol=1e-14, **OPTIONS), BOUNDS),
    'TNC': (torchopt.ScipyBoundedMinimize(fun=bowl, method='TNC', tol=1e-12, **OPTIONS), BOUNDS),
    'SLSQP': (torchopt.ScipyBoundedMinimize(fun=bowl, method='SLSQP', tol=1e-14, **OPTIONS), BOUNDS),
    'hybr': (torchopt.ScipyRootFinding(optimality_fun=system, method='hybr', tol=1e-12, **OPTIONS), None),
    'lm': (torchopt.ScipyRootFinding(optimality_fun=system, method='lm', tol=1e-12, **OPTIONS), None),
    'krylov': (torchopt.ScipyRootFinding(optimality_fun=system, method='krylov', tol=1e-10, **OPTIONS), None),
    'least squares': (torchopt.ScipyLeastSquares(fun=curve, options={'xtol': 1e-12}, **OPTIONS), None),
    'least squares lm': (torchopt.ScipyLeastSquares(fun=curve, method='lm', options={'xtol': 1e-12}, **OPTIONS), None),
    'soft_l1': (
        torchopt.ScipyLeastSquares(
            fun=curve, loss='soft_l1', options={'f_scale': 0.3, 'xtol': 1e-13, 'ftol': 1e-13, 'gtol': 1e-13}, **OPTIONS
        ),
        None,
    ),
    'bounded least squares': (
        torchopt.ScipyBoundedLeastSquares(
            fun=curve, options={'xtol': 1e-13, 'ftol': 1e-13, 'gtol': 1e-13}, method='dogbox', **OPTIONS
        ),
        BOUNDS,
    ),
}


def solved(name: str, a: Tensor) -> Tensor:
    solver, bounds = SOLVERS[name]
    x = solver.run(start(), a).params if bounds is None else solver.run(start(), bounds, a).params
    return x['u'].sum() * 2 + x['v']


@pytest.mark.parametrize('name', SOLVERS)
def test_solution_and_derivatives(name: str) -> None:
    solver, bounds = SOLVERS[name]
    a = torch.tensor([0.3, 0.8], dtype=torch.float64)
    data = (a,) if bounds is None else (bounds, a)
    params, info = solver.run(start(), *data)
    assert info.success
    assert isinstance(info.message, str)
    assert solver.l2_optimality_error(params, *data) < 1e-5
    if bounds is not None:
        for key, x in params.items():
            assert bool(((bounds[0][key] <= x) & (x <= bounds[1][key])).all())
    grad = torch.func.grad(lambda b: solved(name, b))(a)
    b = a.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(solved(name, b), b)[0], grad)
    h = 1e-4
    for i, e in enumerate(torch.eye(2, dtype=torch.float64)):
        slope = (solved(name, a + h * e) - solved(name, a - h * e)) / (2 * h)
        torch.testing.assert_close(grad[i], slope, rtol=2e-3, atol=1e-4)


def test_results_are_those_of_scipy() -> None:
    def rosenbrock(x: Any) -> Any:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    x = np.array([-1.2, 1.0, 0.5])
    for method in ('BFGS', 'L-BFGS-B'):
        theirs = scipy.optimize.minimize(rosenbrock, x, jac=scipy.optimize.rosen_der, method=method)
        params, info = torchopt.ScipyMinimize(fun=rosenbrock, method=method).run(torch.from_numpy(x))
        torch.testing.assert_close(params, torch.from_numpy(theirs.x), rtol=1e-5, atol=1e-5)
        assert (int(info.iter_num), int(info.num_fun_eval)) == (theirs.nit, theirs.nfev)


def test_bounds_of_every_kind() -> None:
    solver = torchopt.ScipyBoundedMinimize(fun=lambda x: ((x - 2.0) ** 2).sum(), method='L-BFGS-B')
    x = torch.zeros(2)
    for bounds in [
        (0.0, 1.0),
        ([0.0, -1.0], [1.0, 1.0]),
        (torch.zeros(2), torch.ones(2)),
        (-torch.inf, torch.tensor(1.0)),
    ]:
        assert solver.run(x, bounds).params.tolist() == [1.0, 1.0]
    assert solver.run(x, bounds=(0.0, 1.0)).params.tolist() == [1.0, 1.0]
    torch.testing.assert_close(solver.run(x, None).params, torch.full((2,), 2.0))


def test_float32_and_the_dtype_of_arrays() -> None:
    seen = []

    def fun(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return ((x - 1.0) ** 2).sum()

    params, _ = torchopt.ScipyMinimize(fun=fun, method='BFGS').run(torch.zeros(3))
    assert params.dtype == torch.float32
    assert set(seen) == {torch.float32}
    torch.testing.assert_close(params, torch.ones(3), rtol=1e-4, atol=0.0)


def test_callback_aux_and_options() -> None:
    points = []
    options = {'gtol': 1e-3}
    solver = torchopt.ScipyMinimize(
        fun=lambda x: ((x['w'] ** 2).sum(), 'aux'), method='BFGS', has_aux=True, callback=points.append, options=options
    )
    solver.run({'w': torch.ones(2)})
    assert points[-1]['w'].shape == (2,)
    assert options == {'gtol': 1e-3}
    given = torchopt.ScipyMinimize(fun=lambda x: ((x**2).sum(), 2 * x), value_and_grad=True, method='BFGS')
    torch.testing.assert_close(given.run(torch.ones(2)).params, torch.zeros(2))


# Defects of JAXopt.


@pytest.mark.parametrize('issue', ['214: SLSQP', '403: L-BFGS-B', '372: BFGS'])
def test_issues_214_403_372_inside_a_transformed_function(issue: str) -> None:
    """JAXopt's wrappers cannot be called in a function that is compiled, or differentiated in another argument."""
    import jax

    method = issue.split()[1]
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda a: jaxopt.ScipyMinimize(fun=lambda x: ((x - a) ** 2).sum(), method=method).run(jnp.zeros(2)))(
            1.0
        )

    def best(a: Tensor) -> Tensor:
        solver = torchopt.ScipyMinimize(fun=lambda x: ((x - a) ** 2).sum(), method=method)
        return solver.run(torch.zeros(2)).params.sum()

    torch.testing.assert_close(torch.func.grad(best)(torch.tensor(1.0)), torch.tensor(2.0))
    compiled = torch.compile(best, backend='eager')
    torch.testing.assert_close(compiled(torch.tensor(1.0)), torch.tensor(2.0), rtol=1e-4, atol=0.0)


@pytest.mark.parametrize('name', ['BFGS', 'TNC', 'hybr', 'krylov', 'trf'])
def test_issue_272_a_limit_of_iterations(name: str) -> None:
    def hard(x: Tensor) -> Tensor:
        return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])

    x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # no option that the method does not know
        if name in ('BFGS', 'TNC'):
            info = torchopt.ScipyMinimize(fun=lambda z: hard(z).square().sum(), method=name, maxiter=3).run(x).state
        elif name == 'trf':
            info = torchopt.ScipyLeastSquares(fun=hard, maxiter=3).run(x).state
        else:
            info = torchopt.ScipyRootFinding(optimality_fun=hard, method=name, maxiter=3).run(x).state
    assert not info.success
    with pytest.raises(TypeError):
        jaxopt.ScipyRootFinding(optimality_fun=hard, method='hybr', maxiter=3)


def test_auxiliary_output_of_a_root_is_left_out() -> None:
    """In JAXopt the function calls itself without end."""
    with pytest.raises(RecursionError):
        theirs = jaxopt.ScipyRootFinding(optimality_fun=lambda x: (x - 1.0, 0), method='hybr', has_aux=True, jit=False)
        theirs.run(jnp.zeros(1))
    solver = torchopt.ScipyRootFinding(optimality_fun=lambda x: (x - 1.0, 'aux'), method='hybr', has_aux=True)
    torch.testing.assert_close(solver.run(torch.zeros(1)).params, torch.ones(1))


def test_least_squares_without_a_method() -> None:
    with pytest.raises(ValueError, match='method'):
        jaxopt.ScipyLeastSquares(fun=lambda x: x - 1.0).run(jnp.zeros(2))
    torch.testing.assert_close(
        torchopt.ScipyLeastSquares(fun=lambda x: x - 1.0).run(torch.zeros(2)).params, torch.ones(2)
    )


def test_batches_are_refused() -> None:
    solver = torchopt.ScipyMinimize(fun=lambda x, a: ((x - a) ** 2).sum(), method='BFGS')
    with pytest.raises(NotImplementedError, match='one problem at a time'):
        torch.vmap(solver.run, in_dims=(None, 0))(torch.zeros(2), torch.ones(3))


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refusing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith('scipy'):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', refusing)
    with pytest.raises(ImportError, match=r'pip install "torchopt\[scipy\]"'):
        torchopt.ScipyMinimize(fun=lambda x: x.sum()).run(torch.ones(1))


BOX = torchopt.ScipyBoundedMinimize(fun=torch.sum)
BAD: list[tuple[str, Any, type[Exception], str]] = [
    ('no function', torchopt.ScipyMinimize, TypeError, 'fun'),
    ('no function', lambda: torchopt.ScipyRootFinding(optimality_fun=3), TypeError, 'optimality_fun'),
    ('loss', lambda: torchopt.ScipyLeastSquares(fun=abs, loss='l3'), ValueError, "loss: 'l3'"),
    ('limit', lambda: torchopt.ScipyMinimize(fun=abs, maxiter=-1), ValueError, 'maxiter'),
    ('limit twice', lambda: torchopt.ScipyMinimize(fun=abs, options={'maxiter': 3}), ValueError, 'maxiter'),
    ('crossed', lambda: BOX.run(torch.ones(2), (1.0, 0.0)), ValueError, 'bounds'),
    ('shapes', lambda: BOX.run(torch.ones(2), (torch.zeros(3), 1.0)), ValueError, r'shape \(3,\)'),
    ('no pair', lambda: BOX.run(torch.ones(2), 1.0), ValueError, 'bounds'),
    ('integers', lambda: torchopt.ScipyMinimize(fun=torch.sum).run(torch.ones(2).long()), TypeError, 'init_params'),
    ('a vector', lambda: torchopt.ScipyMinimize(fun=torch.cos).run(torch.ones(2)), ValueError, 'one element'),
]


@pytest.mark.parametrize(('make', 'error', 'message'), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
