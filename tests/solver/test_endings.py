# SPDX-License-Identifier: Apache-2.0
"""How runs end: statuses, NaN, bounds, bad input, reports; and what users of JAXopt ran into.

The numbers in the names of tests are those of JAXopt's issues.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import scipy.optimize
import torch

import torchopt
from torchopt.solver import KKTSolution, Status

QUASI_NEWTON = ['LBFGS', 'BFGS', 'NonlinearCG']
SEARCHES = ['zoom', 'backtracking', 'hager-zhang']


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


def vector(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def ending(state: Any) -> Status:
    return Status(int(state.status))


# The ways in which a run ends.


def test_out_of_iterations() -> None:
    state = torchopt.LBFGS(rosenbrock, maxiter=3, tol=1e-9).run(vector(-1.2, 1.0)).state
    assert ending(state) is Status.MAXITER
    assert int(state.iter_num) == 3
    assert 'maxiter' in Status.MAXITER.message


@pytest.mark.parametrize('name', QUASI_NEWTON)
def test_no_step_is_made_at_a_solution(name: str) -> None:
    params, state = getattr(torchopt, name)(rosenbrock).run(vector(1.0, 1.0))
    assert ending(state) is Status.CONVERGED
    assert int(state.iter_num) == 0
    assert torch.equal(params, vector(1.0, 1.0))


@pytest.mark.parametrize('name', QUASI_NEWTON)
def test_a_wrong_gradient_stalls(name: str) -> None:
    solver = getattr(torchopt, name)(lambda x: ((x**2).sum(), -x), value_and_grad=True, maxiter=20)
    params, state = solver.run(vector(1.0, 2.0))
    assert ending(state) is Status.STALLED
    assert torch.equal(params, vector(1.0, 2.0))


@pytest.mark.parametrize(
    'make',
    [
        lambda fun: torchopt.OptaxSolver(fun, torchopt.adam(0.3), tol=1e-2, maxiter=1000),
        lambda fun: torchopt.PolyakSGD(fun, fun_min=-5.0, tol=1e-2, max_stepsize=5e-3, maxiter=2000),
    ],
    ids=['OptaxSolver', 'PolyakSGD'],
)
@pytest.mark.parametrize('batched', [False, True])
def test_the_gradient_is_within_the_tolerance_at_what_is_returned(make: Any, batched: bool) -> None:
    """The error is that before a step, which could lead away from a point where the gradient is small enough."""

    def fun(w: torch.Tensor) -> torch.Tensor:
        return (vector(1.0, 100.0) * (w - 3.0) ** 2).sum()

    solver, start = make(fun), vector(0.0, 0.0)
    params, state = torch.vmap(solver.run)(start[None]) if batched else solver.run(start)
    assert ending(state) is Status.CONVERGED
    gradient = torch.func.grad(fun)(params.reshape(2))
    torch.testing.assert_close(gradient.norm(), state.error.reshape(()))
    assert gradient.norm() <= 1e-2


def test_constant_step_that_is_too_long_is_not_finite() -> None:
    solver = torchopt.GradientDescent(lambda x: (x**4).sum(), stepsize=10.0, acceleration=False)
    assert ending(solver.run(vector(3.0)).state) is Status.NONFINITE


def test_a_failed_sample_does_not_disturb_the_others() -> None:
    def fun(x: torch.Tensor, power: torch.Tensor) -> torch.Tensor:
        return (x.abs() ** power).sum()

    solver = torchopt.GradientDescent(fun, stepsize=0.4, acceleration=False, maxiter=200)
    powers = vector(2.0, 6.0)
    params, state = torch.vmap(lambda p: solver.run(vector(3.0), p))(powers)
    assert state.status.tolist() == [Status.CONVERGED, Status.NONFINITE]
    torch.testing.assert_close(params[0], solver.run(vector(3.0), powers[0]).params)


def test_every_status_has_a_message() -> None:
    assert all(status.message.endswith('.') for status in Status)


# NaN, precision and scales.


@pytest.mark.parametrize('linesearch', SEARCHES)
@pytest.mark.parametrize('name', QUASI_NEWTON)
def test_nan_trial_points_shorten_the_step(name: str, linesearch: str) -> None:
    """590, 409: the function is NaN for x >= 2, where the first steps lead."""

    def fun(x: torch.Tensor) -> torch.Tensor:
        return (-torch.log(2.0 - x) - 30.0 * torch.log(x)).sum()

    solver = getattr(torchopt, name)(fun, linesearch=linesearch, tol=1e-6, maxiter=300, linesearch_init='max')
    params, state = solver.run(vector(0.5, 1.0))
    assert ending(state) is Status.CONVERGED
    torch.testing.assert_close(params, torch.full((2,), 60.0 / 31.0, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize('linesearch', SEARCHES)
@pytest.mark.parametrize('scale', [1e-8, 1.0, 1e8])
def test_float32_searches_do_not_stall(linesearch: str, scale: float) -> None:
    target = torch.linspace(-1.0, 1.0, 20)
    weights = torch.logspace(0, 2, 20)
    solver = torchopt.LBFGS(
        lambda x: scale * (weights * (x - target) ** 2).sum() + 100.0 * scale, linesearch=linesearch, tol=1e-4 * scale
    )
    params, state = solver.run(torch.zeros(20))
    assert ending(state) is Status.CONVERGED
    torch.testing.assert_close(params, target, atol=1e-3, rtol=0)


@pytest.mark.parametrize('start', [(-1.2, 1.0), (0.0, 0.0), (-3.0, -4.0), (100.0, -50.0)])
@pytest.mark.parametrize('name', ['LBFGS', 'BFGS'])
def test_rosenbrock_is_solved_from_everywhere(name: str, start: tuple[float, ...]) -> None:
    """219, 275: LBFGS stuck with steps of zero."""
    params, state = getattr(torchopt, name)(rosenbrock, tol=1e-8, maxiter=1000).run(vector(*start))
    assert ending(state) is Status.CONVERGED
    torch.testing.assert_close(params, vector(1.0, 1.0), atol=1e-6, rtol=0)


def test_negative_curvature_is_no_part_of_the_memory() -> None:
    """219, 275: JAXopt keeps a pair of negative curvature, so its directions ascend and its steps shrink to zero."""

    def fun(x: Any) -> Any:
        return (x**4 - 3.0 * x**2 + x).sum()

    params, state = torchopt.LBFGS(fun, tol=1e-8, maxiter=50).run(vector(0.1))
    assert ending(state) is Status.CONVERGED
    torch.testing.assert_close(params, vector(-1.300839566), atol=1e-8, rtol=0)
    with jax.enable_x64(True):
        theirs = jaxopt.LBFGS(fun, tol=1e-8, maxiter=50).run(jnp.array([0.1])).state
    assert theirs.iter_num == 50
    assert theirs.error > 1.0
    assert theirs.stepsize < 1e-6


def test_accelerated_gradients_do_not_diverge() -> None:
    """Curvatures above 1e6 sent the restarts of the step size to infinity."""
    scales = vector(1.0, 1e4, 1e8)
    solver = torchopt.GradientDescent(lambda x: (scales * x**2).sum(), maxiter=300, tol=1e-6)
    params, state = solver.run(vector(1.0, 1.0, 1.0))
    assert bool(torch.isfinite(params).all())
    assert solver.fun(params) < 1e-3 * solver.fun(vector(1.0, 1.0, 1.0))
    assert ending(state) in (Status.MAXITER, Status.CONVERGED)


def test_jaxopt_diverges_where_gradients_are_accelerated() -> None:
    scales = np.array([1.0, 1e4, 1e8])
    with jax.enable_x64(True):
        found = jaxopt.GradientDescent(lambda x: (scales * x**2).sum(), maxiter=300, tol=1e-6).run(np.ones(3))
    assert not np.isfinite(found.params).all() or abs(found.params).max() > 1e20


def test_jaxopt_takes_a_point_where_the_objective_is_nan() -> None:
    """The input of ``test_nan_trial_points_shorten_the_step``: its search of Hager and Zhang ends at NaN."""
    with jax.enable_x64(True):
        search = jaxopt.HagerZhangLineSearch(lambda x: (-jnp.log(2.0 - x) - 30.0 * jnp.log(x)).sum(), maxiter=2)
        _, state = search.run(1.0, jnp.array([0.5, 1.0]))
    assert not np.isfinite(state.value)


def test_positional_and_named_data() -> None:
    """223: data by position."""

    def fun(w: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((w - a) ** 2 * b).sum()

    start, a, b = vector(0.0, 0.0), vector(1.0, 2.0), vector(3.0, 4.0)
    solver = torchopt.LBFGS(fun, tol=1e-10)
    for found in (solver.run(start, a, b), solver.run(start, a, b=b), solver.run(start, b=b, a=a)):
        torch.testing.assert_close(found.params, a)


# Bounds.


def bounded_problems() -> list[Any]:
    rng = np.random.default_rng(0)
    found = []
    for n in (2, 5, 12):
        lower = rng.normal(size=n)
        upper = lower + rng.uniform(0.1, 3.0, size=n)
        lower[rng.random(n) < 0.3], upper[rng.random(n) < 0.3] = -np.inf, np.inf
        root = rng.normal(size=(n, n))
        q, b = torch.from_numpy(root @ root.T + 0.01 * np.eye(n)), torch.from_numpy(rng.normal(size=n))
        start = rng.normal(size=n)
        found.append((f'quadratic {n}', lambda x, q=q, b=b: 0.5 * x @ q @ x - b @ x, start, lower, upper))
        found.append((f'rosenbrock {n}', rosenbrock, start, lower, upper))
    return found


@pytest.mark.parametrize('problem', bounded_problems(), ids=lambda problem: problem[0])
def test_bounds_hold_at_every_evaluation(problem: Any) -> None:
    """439, 492, 620: LBFGSB left its bounds, and differed from SciPy."""
    _, fun, start, *bounds = problem
    lower, upper = map(torch.from_numpy, bounds)

    def watched(x: torch.Tensor) -> torch.Tensor:
        assert bool(((lower <= x) & (x <= upper)).all())
        return fun(x)

    def value_and_grad(x: Any) -> Any:
        leaf = torch.from_numpy(x).requires_grad_()
        value = fun(leaf)
        return value.item(), torch.autograd.grad(value, leaf)[0].numpy()

    params, state = torchopt.LBFGSB(watched, tol=1e-8, maxiter=300).run(torch.from_numpy(start), (lower, upper))
    assert ending(state) is Status.CONVERGED
    expected = scipy.optimize.minimize(
        value_and_grad,
        np.clip(start, *bounds),
        jac=True,
        bounds=list(zip(*bounds)),
        method='L-BFGS-B',
        options={'gtol': 1e-8, 'ftol': 0.0},
    )
    assert state.value <= expected.fun + 1e-9 * max(1.0, abs(expected.fun))
    assert bool(((lower <= params) & (params <= upper)).all())


def test_jaxopt_leaves_its_bounds() -> None:
    """439, 620: a quadratic function of two variables."""
    _, fun, start, lower, upper = bounded_problems()[0]
    with jax.enable_x64(True):
        q, b = (jnp.asarray(v) for v in fun.__defaults__)
        solver = jaxopt.LBFGSB(lambda x: 0.5 * x @ q @ x - b @ x, tol=1e-8, maxiter=300)
        params, state = solver.run(jnp.asarray(start), (jnp.asarray(lower), jnp.asarray(upper)))
    assert max((lower - params).max(), (params - upper).max()) > 0.1
    assert state.error > 0.1


def test_an_infinite_slope_at_a_bound() -> None:
    """492: JAXopt's result is NaN."""
    params, state = torchopt.LBFGSB(lambda x: x.sqrt().sum(), tol=1e-8).run(vector(1.0, 2.0), (0.0, math.inf))
    assert ending(state) is Status.CONVERGED
    assert torch.equal(params, vector(0.0, 0.0))
    # One of two has an infinite slope; the other's minimum is inside.
    mixed = torchopt.LBFGSB(lambda x: x[0].sqrt() + (x[1] - 3.0) ** 2 + x[0] * x[1], tol=1e-8)
    params, state = mixed.run(vector(1.0, 2.0), (0.0, math.inf))
    assert ending(state) is Status.CONVERGED
    torch.testing.assert_close(params, vector(0.0, 3.0), atol=1e-7, rtol=0)
    with jax.enable_x64(True):
        bounds = jnp.zeros(2), jnp.full(2, jnp.inf)
        theirs = jaxopt.LBFGSB(lambda x: jnp.sqrt(x).sum(), tol=1e-8).run(jnp.array([1.0, 2.0]), bounds)
    assert bool(jnp.isnan(theirs.params).any())


def test_a_function_that_is_nan_outside_its_bounds() -> None:
    """492: NaN at a bound."""
    solver = torchopt.LBFGSB(lambda x: (x.sqrt() + (x - 0.25) ** 2).sum() + x[0], tol=1e-8)
    params, state = solver.run(vector(0.5, 2.0), (1e-3, math.inf))
    torch.testing.assert_close(params, vector(1e-3, 1e-3))
    assert ending(state) is Status.CONVERGED


def test_derivatives_in_bounds_and_data() -> None:
    def fun(x: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return ((x - goal) ** 2).sum() + 0.1 * (x**4).sum()

    def solve(goal: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        return (
            torchopt.LBFGSB(fun, tol=1e-10).run(vector(0.0, 0.0, 0.0), (vector(-1.0, -1.0, -1.0), upper), goal).params
        )

    goal, upper = vector(-5.0, 0.3, 2.0), vector(1.0, 1.0, 1.0)
    by_goal, by_upper = torch.func.jacrev(solve, (0, 1))(goal, upper)
    x = solve(goal, upper)[1]
    torch.testing.assert_close(
        by_goal, torch.diag(vector(0.0, float(2.0 / (2.0 + 1.2 * x**2)), 0.0)), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(by_upper, torch.diag(vector(0.0, 0.0, 1.0)), atol=1e-6, rtol=0)


def test_batches_of_bounds() -> None:
    solver = torchopt.LBFGSB(rosenbrock, tol=1e-8, maxiter=200)
    upper = torch.tensor([[0.5, 2.0], [2.0, 2.0], [0.8, 0.1]], dtype=torch.float64)
    start, lower = vector(0.0, 0.0), vector(-1.0, -1.0)
    params, state = torch.vmap(lambda u: solver.run(start, (lower, u)))(upper)
    assert state.status.tolist() == [Status.CONVERGED] * 3
    for x, u in zip(params, upper):
        torch.testing.assert_close(x, solver.run(start, (lower, u)).params, atol=1e-7, rtol=0)


# Bad input.

BAD = [
    (torchopt.LBFGS, rosenbrock, (torch.tensor([1, 2]),), TypeError, 'init_params has dtype torch.int64'),
    (torchopt.LBFGS, rosenbrock, (vector(math.nan, 1.0),), ValueError, 'NaN or infinite'),
    (torchopt.LBFGS, lambda x: x, (vector(1.0, 2.0),), ValueError, 'a tensor of shape'),
    (torchopt.BFGS, lambda x: (x.sum(), 1), (vector(1.0, 2.0),), TypeError, 'has_aux=True'),
    (torchopt.NonlinearCG, lambda x: x.log().sum(), (vector(-1.0),), ValueError, 'at init_params'),
    (torchopt.LBFGSB, rosenbrock, (vector(1.0, 2.0), (1.0, 0.0)), ValueError, 'bounds cross'),
    (torchopt.LBFGSB, rosenbrock, (vector(1.0, 2.0), (vector(0.0), 1.0)), ValueError, 'lower bound'),
    (torchopt.LBFGSB, rosenbrock, (vector(1.0, 2.0), (math.nan, 1.0)), ValueError, 'A bound is NaN'),
    (torchopt.LBFGSB, rosenbrock, (vector(1.0, 2.0), 3.0), ValueError, 'expected a pair'),
    (torchopt.PolyakSGD, lambda x: x, (vector(1.0, 2.0),), ValueError, 'a tensor of shape'),
    (torchopt.GradientDescent, rosenbrock, ({'w': torch.tensor([1])},), TypeError, r"init_params\['w'\]"),
]


@pytest.mark.parametrize(('make', 'fun', 'args', 'error', 'message'), BAD, ids=[row[-1] for row in BAD])
def test_bad_input(make: Any, fun: Any, args: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(fun).run(*args)


X, Y = torch.ones(5, 3), torch.arange(5.0)
WITH_DATA: dict[str, Any] = {
    **dict.fromkeys(
        ['GradientDescent', 'LBFGS', 'BFGS', 'NonlinearCG', 'ArmijoSGD', 'ScipyMinimize'],
        lambda w, X, y: (X @ w - y).square().sum(),
    ),
    **dict.fromkeys(['GaussNewton', 'LevenbergMarquardt'], lambda w, X, y: X @ w - y),
    **dict.fromkeys(['Broyden', 'FixedPointIteration'], lambda w, X, y: X.T @ (X @ w - y)),
}
STARTS = [
    (torch.zeros(4), RuntimeError, [r'shape \(4,\)', r'shape \(5, 3\)', 'Pass init_params and the data']),
    (torch.zeros(3, dtype=torch.float64), RuntimeError, ['float64', 'float32', 'and the dtype']),
    (None, TypeError, ['init_params: empty']),
    (0.0, TypeError, ['init_params is a float', 'torch.as_tensor']),
    ([0.0, 0.0], TypeError, [r'init_params\[0\] is a float']),
    (np.zeros(3), TypeError, ['init_params is a ndarray', 'torch.as_tensor']),
]


@pytest.mark.parametrize('start', range(len(STARTS)))
@pytest.mark.parametrize('name', WITH_DATA)
def test_bad_starts(name: str, start: int) -> None:
    init_params, error, words = STARTS[start]
    make, fun = getattr(torchopt, name), WITH_DATA[name]
    solver = make(fun=fun) if name == 'ScipyMinimize' else make(fun)
    for word in ('init_params', *words):
        with pytest.raises(error, match=word):
            solver.run(init_params, X, Y)


def test_starts_that_do_not_fit_the_result() -> None:
    solver = torchopt.FixedPointIteration(lambda x, a: 0.5 * x + a)
    with pytest.raises(TypeError, match=r'init_params has dtype .*, but a step of the solver'):
        solver.run(torch.zeros(3), torch.ones(3, dtype=torch.float64))


def test_errors_of_others_stay_as_they_are() -> None:
    calls = []

    def fails_later(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if len(calls) == 3:
            raise RuntimeError('the third call')
        return (x - 3.0).square().sum()

    with pytest.raises(RuntimeError, match=r'^the third call$'):
        torchopt.GradientDescent(fails_later, stepsize=0.1).run(torch.zeros(2))
    with pytest.raises(TypeError, match=r"^The arguments of the solver do not match.*missing a required argument: 'a'"):
        torchopt.LBFGS(lambda x, a: x.sum()).run(torch.zeros(2))


Q, C, A, B = torch.eye(3), torch.ones(3), torch.ones(1, 3), torch.ones(1)
QUADRATIC = [
    (
        torchopt.OSQP,
        (torch.zeros(3), (Q, C), None, (A, B)),
        TypeError,
        'init_params is a Tensor; expected a KKTSolution',
    ),
    (torchopt.BoxOSQP, (torch.zeros(3), (Q, C), A, (B, B)), TypeError, 'init_params is a Tensor; expected a KKTS'),
    (torchopt.EqualityConstrainedQP, (torch.zeros(3), (Q, C), (A, B)), TypeError, 'expected a KKTSolution.*None to'),
    (
        torchopt.OSQP,
        (KKTSolution(torch.zeros(4), None, torch.zeros(1)), (Q, C), None, (A, B)),
        ValueError,
        r'init_params.primal has shape \(4,\), but c has shape \(3,\)',
    ),
    (
        torchopt.BoxCDQP,
        (torch.zeros(4), (Q, C), (0.0, 1.0)),
        ValueError,
        r'init_params has shape \(4,\), but c has shape',
    ),
]


@pytest.mark.parametrize(('make', 'args', 'error', 'message'), QUADRATIC)
def test_bad_starts_of_quadratic_programs(make: Any, args: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make().run(*args)


BAD_OPTIONS = [
    (torchopt.LBFGS, {'maxiter': -1}, 'Invalid maxiter'),
    (torchopt.LBFGS, {'tol': math.nan}, 'Invalid tol'),
    (torchopt.LBFGS, {'linesearch': 'none'}, 'Invalid linesearch'),
    (torchopt.LBFGS, {'linesearch_init': 'none'}, 'Invalid linesearch_init'),
    (torchopt.LBFGS, {'history_size': -1}, 'Invalid history_size'),
    (torchopt.LBFGS, {'unroll': 'never'}, 'Invalid unroll'),
    (torchopt.LBFGS, {'verbose': 'loud'}, 'Invalid verbose'),
    (torchopt.NonlinearCG, {'method': 'none'}, 'Invalid method'),
    (torchopt.LBFGSB, {'theta': 0.0}, 'Invalid theta'),
    (torchopt.PolyakSGD, {'variant': 'none'}, 'Invalid variant'),
    (torchopt.ArmijoSGD, {'aggressiveness': 1.0}, 'Invalid aggressiveness'),
    (torchopt.ArmijoSGD, {'reset_option': 'none'}, 'Invalid reset_option'),
    (torchopt.BacktrackingLineSearch, {'condition': 'none'}, 'Invalid condition'),
    (torchopt.GradientDescent, {'decrease_factor': 1.0}, 'Invalid decrease_factor'),
]


@pytest.mark.parametrize(('make', 'options', 'message'), BAD_OPTIONS, ids=[row[-1] for row in BAD_OPTIONS])
def test_bad_options(make: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(rosenbrock, **options)


def test_an_optimizer_of_torch_cannot_be_mapped() -> None:
    solver = torchopt.OptaxSolver(rosenbrock, lambda params: torch.optim.SGD(params, lr=0.1))
    with pytest.raises(RuntimeError, match='neither be batched nor differentiated'):
        torch.vmap(solver.run)(torch.zeros(2, 2))
    with pytest.raises(TypeError, match=r'use torchopt.LBFGS'):
        torchopt.OptaxSolver(rosenbrock, torch.optim.LBFGS).run(torch.zeros(2))


# Reports.


def test_callback_and_printing(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []
    solver = torchopt.LBFGS(
        rosenbrock, maxiter=4, tol=0.0, verbose=2, callback=lambda params, state: seen.append((params, state))
    )
    final = solver.run({'x': vector(-1.2, 1.0)}['x'])
    assert [int(state.iter_num) for _, state in seen] == [1, 2, 3, 4]
    torch.testing.assert_close(seen[-1][0], final.params)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('INFO: torchopt.LBFGS: Iter: 2 Gradient Norm (stopping criterion): ')


def test_line_searches_are_solvers() -> None:
    start = vector(-1.2, 1.0)
    for make in (torchopt.BacktrackingLineSearch, torchopt.ZoomLineSearch, torchopt.HagerZhangLineSearch):
        search = make(rosenbrock)
        stepsize, state = search.run(1.0, start)
        gradient = torch.func.grad(rosenbrock)(start)
        torch.testing.assert_close(state.params, start - stepsize * gradient)
        torch.testing.assert_close(state.value, rosenbrock(state.params))
        torch.testing.assert_close(state.grad, torch.func.grad(rosenbrock)(state.params))
        assert ending(state) is Status.CONVERGED
        assert bool(state.done)
        assert rosenbrock(start) - state.value >= 1e-4 * stepsize * (gradient @ gradient)
        step = torchopt.solver.LineSearchStep(1.0, search.init_state(1.0, start))
        for _ in range(40):
            if step.state.done:
                break
            step = search.update(*step, start)
        torch.testing.assert_close(torch.as_tensor(step.stepsize, dtype=torch.float64), stepsize)
