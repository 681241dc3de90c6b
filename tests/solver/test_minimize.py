# SPDX-License-Identifier: Apache-2.0
"""Solvers of smooth problems: solutions and derivatives against closed forms, JAXopt, and one another."""

from __future__ import annotations

import functools
import pickle
from typing import Any, NamedTuple

import jax
import jaxopt
import numpy as np
import pytest
import torch

import torchopt
from torchopt.solver import Status
from torchopt.solver.memory import Rows, Window

jax.config.update('jax_enable_x64', True)

X = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
START = torch.zeros(3, dtype=torch.float64)
PENALTY = torch.tensor(0.3, dtype=torch.float64)


def ridge(w: torch.Tensor, penalty: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * ((x @ w - y) ** 2).mean() + 0.5 * penalty * (w @ w)


def solution(penalty: torch.Tensor, x: torch.Tensor = X, y: torch.Tensor = Y) -> torch.Tensor:
    return torch.linalg.solve(x.mT @ x / len(y) + penalty * torch.eye(3, dtype=x.dtype), x.mT @ y / len(y))


class Case(NamedTuple):
    """A solver for the table.

    Attributes:
        make: ``make(fun, **options)`` makes the solver.
        args: What ``run`` takes between the parameters and the data.
        tol: The tolerance to reach.
    """

    make: Any
    args: tuple[Any, ...] = ()
    tol: float = 1e-10


LARGE = torch.full((3,), 10.0, dtype=torch.float64)
CASES = {
    'LBFGS': Case(torchopt.LBFGS),
    'LBFGS, hager-zhang': Case(functools.partial(torchopt.LBFGS, linesearch='hager-zhang')),
    'LBFGS, backtracking': Case(functools.partial(torchopt.LBFGS, linesearch='backtracking')),
    'LBFGS, no memory': Case(functools.partial(torchopt.LBFGS, history_size=0), tol=1e-8),
    'LBFGS, memory of 2': Case(functools.partial(torchopt.LBFGS, history_size=2, use_gamma=False)),
    'BFGS': Case(torchopt.BFGS),
    'NonlinearCG': Case(torchopt.NonlinearCG, tol=1e-8),
    'NonlinearCG, fletcher-reeves': Case(functools.partial(torchopt.NonlinearCG, method='fletcher-reeves'), tol=1e-8),
    'NonlinearCG, hestenes-stiefel': Case(functools.partial(torchopt.NonlinearCG, method='hestenes-stiefel')),
    'LBFGSB': Case(torchopt.LBFGSB, ((-LARGE, LARGE),)),
    'LBFGSB without bounds': Case(torchopt.LBFGSB, (None,)),
    'GradientDescent': Case(torchopt.GradientDescent, tol=1e-7),
    'GradientDescent, constant': Case(functools.partial(torchopt.GradientDescent, stepsize=0.5), tol=1e-8),
    'ArmijoSGD': Case(torchopt.ArmijoSGD, tol=1e-6),
    'PolyakSGD': Case(functools.partial(torchopt.PolyakSGD, max_stepsize=0.5), tol=1e-8),
    'OptaxSolver': Case(lambda fun, **options: torchopt.OptaxSolver(fun, torchopt.sgd(0.5), **options), tol=1e-8),
}
table = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def run(case: Case, penalty: Any, *, fun: Any = ridge, start: Any = START, data: Any = (X, Y), **options: Any) -> Any:
    solver = case.make(fun, maxiter=1000, tol=case.tol, **options)
    return solver.run(start, *case.args, penalty, *data)


@table
def test_solution_and_status(case: Case) -> None:
    params, state = run(case, 0.3)
    torch.testing.assert_close(params, solution(PENALTY), atol=20 * case.tol, rtol=0)
    assert int(state.status) == Status.CONVERGED
    assert state.error <= case.tol
    assert all(isinstance(x, torch.Tensor) for x in torchopt.tree.leaves(state))


UNROLLED = ('LBFGS', 'LBFGS, hager-zhang', 'BFGS', 'LBFGSB', 'GradientDescent, constant', 'PolyakSGD', 'OptaxSolver')


@pytest.mark.parametrize(
    ('name', 'options'),
    [(name, {'implicit_diff': True}) for name in CASES] + [(name, {'implicit_diff': False}) for name in UNROLLED],
    ids=str,
)
def test_derivatives(name: str, options: dict[str, Any]) -> None:
    case, penalty = CASES[name], PENALTY
    expected = torch.func.jacrev(solution)(penalty)

    def solve(penalty: torch.Tensor) -> torch.Tensor:
        return run(case, penalty, **options).params

    torch.testing.assert_close(torch.func.jacfwd(solve)(penalty), expected, atol=2e-4, rtol=1e-4)
    leaf = penalty.clone().requires_grad_()
    (found,) = torch.autograd.grad(solve(leaf).sum(), leaf)
    torch.testing.assert_close(found, expected.sum(), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize('options', [{}, {'implicit_diff': False}, {'implicit_diff': False, 'unroll': 'checkpoint'}])
def test_second_derivatives_and_closures(options: dict[str, Any]) -> None:
    penalty = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    fun = functools.partial(ridge, penalty=penalty, x=X, y=Y)
    params = torchopt.LBFGS(fun, tol=1e-12, **options).run(START).params
    (first,) = torch.autograd.grad(params.sum(), penalty, create_graph=True)
    (second,) = torch.autograd.grad(first, penalty)
    torch.testing.assert_close(first, torch.func.grad(lambda p: solution(p).sum())(penalty), atol=1e-4, rtol=1e-4)
    expected = torch.func.hessian(lambda p: solution(p).sum())(penalty)
    torch.testing.assert_close(second, expected, atol=1e-3, rtol=1e-3)


HOLDERS = {
    'ScipyMinimize': Case(lambda fun, **options: torchopt.ScipyMinimize(fun=fun, method='BFGS', **options), tol=1e-8),
    'ProximalGradient': Case(torchopt.ProximalGradient, (None,), tol=1e-8),
    'GaussNewton': Case(lambda fun, **options: torchopt.GaussNewton(torch.func.grad(fun), **options)),
    'Broyden': Case(lambda fun, **options: torchopt.Broyden(torch.func.grad(fun), **options)),
    'FixedPointIteration': Case(
        lambda fun, **options: torchopt.FixedPointIteration(lambda w: w - 0.3 * torch.func.grad(fun)(w), **options)
    ),
}


@pytest.mark.parametrize('case', [*CASES.values(), *HOLDERS.values()], ids=[*CASES, *HOLDERS])
def test_variables_of_a_loop_have_their_values_of_the_run_in_the_backward_pass(case: Case) -> None:
    penalties = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in (0.3, 0.6)]
    solutions = []
    for penalty in penalties:
        solver = case.make(lambda w: ridge(w, penalty, X, Y), maxiter=1000, tol=case.tol)  # noqa: B023 (the subject of this test)
        solutions.append(solver.run(START, *case.args).params)
    found = torch.autograd.grad(torch.stack(solutions).sum(), penalties)
    expected = [torch.func.grad(lambda p: solution(p).sum())(penalty) for penalty in penalties]
    torch.testing.assert_close(list(found), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize('name', [*UNROLLED, 'NonlinearCG', 'ArmijoSGD'])
def test_batches_stop_one_by_one(name: str) -> None:
    case = CASES[name]
    penalties = torch.tensor([0.03, 0.3, 1.0], dtype=torch.float64)
    batch = torch.vmap(lambda penalty: run(case, penalty))(penalties)
    alone = [run(case, penalty) for penalty in penalties]
    for i, one in enumerate(alone):
        torch.testing.assert_close(batch.params[i], one.params, atol=1e-6, rtol=0)
    steps = [int(one.state.iter_num) for one in alone]
    assert all(abs(a - b) <= 2 for a, b in zip(batch.state.iter_num.tolist(), steps))
    assert batch.state.status.tolist() == [Status.CONVERGED] * 3


@table
def test_steps_one_by_one(case: Case) -> None:
    solver = case.make(ridge, maxiter=4, tol=case.tol)
    params, state = START, solver.init_state(START, *case.args, 0.3, X, Y)
    for _ in range(4):
        params, state = solver.update(params, state, *case.args, 0.3, X, Y)
    whole = solver.run(START, *case.args, 0.3, X, Y)
    torch.testing.assert_close(params, whole.params, atol=1e-9, rtol=1e-9)
    error = torch.as_tensor(state.error, dtype=torch.float64)
    torch.testing.assert_close(error, whole.state.error, atol=1e-9, rtol=1e-6)


STATES_WITHOUT_DATA = [
    *(CASES[name].make for name in CASES if name.partition(',')[0] in ('GradientDescent', 'ArmijoSGD', 'PolyakSGD')),
    CASES['OptaxSolver'].make,
    functools.partial(torchopt.ProximalGradient, prox=lambda w, *_: w),
    functools.partial(torchopt.ProjectedGradient, projection=lambda w, _: w),
    functools.partial(torchopt.MirrorDescent, projection_grad=lambda w, g, s, _: w - s * g, stepsize=0.1),
]


@pytest.mark.parametrize('make', STATES_WITHOUT_DATA)
@pytest.mark.parametrize('has_aux', [False, True])
def test_a_state_can_be_made_before_the_data_are_there(make: Any, has_aux: bool) -> None:
    def fun(w: torch.Tensor, penalty: float, data: Any) -> Any:
        return (ridge(w, penalty, *data), 'aux') if has_aux else ridge(w, penalty, *data)

    solver = make(fun, has_aux=has_aux)
    expected = solver.update(START, solver.init_state(START, penalty=0.3, data=(X, Y)), penalty=0.3, data=(X, Y))
    for known in ({}, {'penalty': 0.3}):
        params, state = solver.update(START, solver.init_state(START, **known), penalty=0.3, data=(X, Y))
        torch.testing.assert_close(params, expected.params)
        assert state.aux == ('aux' if has_aux else None)
    with pytest.raises(TypeError, match='missing'):
        solver.run(START, penalty=0.3)


@table
def test_trees_auxiliary_output_and_names(case: Case) -> None:
    def fun(params: Any, *, x: torch.Tensor, y: torch.Tensor, penalty: float) -> Any:
        w = torch.cat([params['a'].reshape(-1), params['b'][0].reshape(1)])
        return ridge(w, penalty, x, y), x @ w

    start = {'a': torch.zeros(2, 1, dtype=torch.float64), 'b': (torch.zeros((), dtype=torch.float64), None)}
    bounds = case.args and ((None if case.args[0] is None else (-10.0, 10.0)),)
    solver = case.make(fun, has_aux=True, maxiter=1000, tol=case.tol)
    params, state = solver.run(start, *bounds, x=X, y=Y, penalty=0.3)
    w = torch.cat([params['a'].reshape(-1), params['b'][0].reshape(1)])
    torch.testing.assert_close(w, solution(PENALTY), atol=20 * case.tol, rtol=0)
    assert params['a'].shape == (2, 1)
    assert params['b'][1] is None
    torch.testing.assert_close(state.aux, X @ w, atol=1e-2, rtol=0)


@table
def test_given_gradients(case: Case) -> None:
    def fun(w: torch.Tensor, penalty: float, x: torch.Tensor, y: torch.Tensor) -> Any:
        residual = x @ w - y
        value = 0.5 * (residual**2).mean() + 0.5 * penalty * (w @ w)
        return value, x.mT @ residual / len(y) + penalty * w

    params = run(case, 0.3, fun=fun, value_and_grad=True).params
    torch.testing.assert_close(params, solution(PENALTY), atol=20 * case.tol, rtol=0)


@table
def test_attributes_and_pickling(case: Case) -> None:
    solver = case.make(ridge, tol=case.tol)
    values = dict(zip(solver.attribute_names(), solver.attribute_values()))
    assert values['tol'] == case.tol
    if not isinstance(solver, torchopt.OptaxSolver):
        assert pickle.loads(pickle.dumps(solver)).tol == case.tol
    error = solver.l2_optimality_error(solution(PENALTY), *case.args, 0.3, X, Y)
    assert error < 1e-12


def rosenbrock(x: Any) -> Any:
    return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()


def logistic(w: Any, x: Any, y: Any, np: Any) -> Any:
    return np.log(1.0 + np.exp(-y * (x @ w))).mean() + 0.05 * (w * w).sum()


def test_same_solution_and_jacobian_as_jaxopt() -> None:
    signs = torch.sign(Y)

    def ours(x: torch.Tensor) -> torch.Tensor:
        solver = torchopt.LBFGS(lambda w, x: logistic(w, x, signs, torch), tol=1e-9, maxiter=200)
        return solver.run(START, x).params

    solver = jaxopt.LBFGS(lambda w, x: logistic(w, x, signs.numpy(), jax.numpy), tol=1e-9, maxiter=200)
    x = X.numpy()
    value, pullback = jax.vjp(lambda x: solver.run(np.zeros(3), x).params, x)
    np.testing.assert_allclose(ours(X).numpy(), value, atol=1e-8)
    (expected,) = pullback(np.ones(3))
    found = torch.func.grad(lambda x: ours(x).sum())(X)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('PolyakSGD', {'variant': 'SPS+', 'momentum': 0.3}),
        ('ArmijoSGD', {'reset_option': 'goldstein', 'momentum': 0.5}),
        ('GradientDescent', {'stepsize': 0.1, 'acceleration': False}),
    ],
    ids=str,
)
def test_same_iterates_as_jaxopt(name: str, options: dict[str, Any]) -> None:
    """The first 12, before rounding errors grow."""
    x, y = X.numpy(), Y.numpy()
    ours = getattr(torchopt, name)(ridge, maxiter=12, tol=1e-9, **options).run(START, 0.3, X, Y)
    theirs = getattr(jaxopt, name)(
        lambda w: 0.5 * ((x @ w - y) ** 2).mean() + 0.15 * (w @ w), maxiter=12, tol=1e-9, **options
    ).run(np.zeros(3))
    np.testing.assert_allclose(ours.params.numpy(), theirs.params, atol=1e-8)
    for field in ('iter_num', 'error', 'stepsize'):
        found, expected = getattr(ours.state, field), getattr(theirs.state, field)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('name', ['PolyakSGD'])
def test_batches_of_data_as_in_jaxopt(name: str) -> None:
    def fun(w: Any, data: Any) -> Any:
        return ((data[0] @ w - data[1]) ** 2).mean()

    batches = [(X[i : i + 5], Y[i : i + 5]) for i in range(0, 20, 5)] * 3
    ours = getattr(torchopt, name)(fun, maxiter=9).run_iterator(START, iter(batches))
    theirs = getattr(jaxopt, name)(fun, maxiter=9).run_iterator(
        np.zeros(3), iter([(x.numpy(), y.numpy()) for x, y in batches])
    )
    np.testing.assert_allclose(ours.params.numpy(), theirs.params, atol=1e-8)
    assert int(ours.state.iter_num) == 9


@pytest.mark.parametrize('make', [torchopt.adam, torch.optim.Adam], ids=['transformation', 'torch.optim'])
def test_optax_solver_takes_the_steps_of_torch(make: Any) -> None:
    opt = make(0.01) if make is torchopt.adam else functools.partial(make, lr=0.01)
    found = torchopt.OptaxSolver(ridge, opt, maxiter=20, tol=0.0).run(START, 0.3, X, Y)
    w = START.clone().requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        ridge(w, 0.3, X, Y).backward()
        optimizer.step()
    torch.testing.assert_close(found.params, w.detach(), atol=1e-12, rtol=1e-12)
    assert int(found.state.status) == Status.MAXITER


def test_complex_parameters() -> None:
    goal = torch.tensor([1.0 + 2.0j, -3.0j], dtype=torch.complex128)
    for name in ('LBFGS', 'BFGS', 'NonlinearCG'):
        fun = lambda z: (z - goal).abs().square().sum() + (z.abs() ** 2).sum()  # noqa: E731
        found = getattr(torchopt, name)(fun, tol=1e-10).run(torch.zeros(2, dtype=torch.complex128)).params
        torch.testing.assert_close(found, goal / 2)


def test_going_on_keeps_the_memory() -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    whole = torchopt.LBFGS(rosenbrock, maxiter=12, tol=1e-9).run(start)
    half = torchopt.LBFGS(rosenbrock, maxiter=6, tol=1e-9).run(start)
    rest = torchopt.LBFGS(rosenbrock, maxiter=6, tol=1e-9).run(half)
    torch.testing.assert_close(rest.params, whole.params, atol=1e-8, rtol=1e-8)
    assert int(rest.state.iter_num) == 12


def test_optimality_of_a_result() -> None:
    whole, bounded = torchopt.LBFGS(rosenbrock), torchopt.LBFGSB(rosenbrock)
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    found, within = whole.run(start), bounded.run(start, (start - 1.0, start + 1.0))
    torch.testing.assert_close(whole.l2_optimality_error(found), found.state.error)
    bounds = (start - 1.0, start + 1.0)
    torch.testing.assert_close(
        bounded.l2_optimality_error(within, bounds), bounded.l2_optimality_error(within.params, bounds)
    )


def test_memory_of_a_state_lies_where_jaxopt_puts_it() -> None:
    solver = torchopt.LBFGS(rosenbrock, history_size=3, maxiter=5, tol=0.0)
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
    points = [
        solver.run(start).params
        if k == 5
        else torchopt.LBFGS(rosenbrock, history_size=3, maxiter=k, tol=0.0).run(start).params
        for k in (3, 4, 5)
    ]
    state = solver.run(start).state
    torch.testing.assert_close(state.s_history[4 % 3], points[2] - points[1])
    torch.testing.assert_close(state.s_history[3 % 3], points[1] - points[0])
    torch.testing.assert_close(1.0 / state.rho_history, (state.s_history * state.y_history).sum(1))


def well(x: torch.Tensor) -> torch.Tensor:
    """A well in a plain: far from its minimum at 0, it bends downward in all directions of descent."""
    return 1.0 - torch.exp(-0.5 * (x * x).sum())


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS', 'LBFGSB'])
@pytest.mark.parametrize('way', ['run', 'batch', 'unrolled'])
def test_steps_grow_where_the_objective_bends_downward(name: str, way: str) -> None:
    """Before, such steps taught nothing, and their length stayed bounded by that of the gradient, here 1e-3."""
    solver: Any = getattr(torchopt, name)(well, tol=1e-6, maxiter=40, implicit_diff=way != 'unrolled')
    start = torch.tensor([2.4, -3.2], dtype=torch.float64)
    bounds = (None,) if name == 'LBFGSB' else ()
    if way == 'batch':
        params, state = torch.vmap(lambda x: solver.run(x, *bounds))(torch.stack([start, 0.9 * start]))
    else:
        params, state = solver.run(start.requires_grad_(way == 'unrolled'), *bounds)
    assert params.abs().max() < 1e-5
    assert (state.status == int(Status.CONVERGED)).all()


def test_jaxopt_creeps_where_the_objective_bends_downward() -> None:
    params, state = jaxopt.LBFGS(lambda x: 1.0 - jax.numpy.exp(-0.5 * (x * x).sum()), tol=1e-6, maxiter=40).run(
        np.array([2.4, -3.2])
    )
    assert abs(params).max() > 1.0 and state.error > 1e-6


def test_memory_in_place_is_that_of_tensors() -> None:
    """The window moves down with dropped pairs too, and comes back to the top with fewer of them than there is room."""
    generator = np.random.default_rng(0)
    x, g = generator.normal(size=4), generator.normal(size=4)
    window, rows = Window(g, 3, True), Rows.empty(torch.from_numpy(g), 3, True)
    for step in range(60):
        new_x, new_g = generator.normal(size=4), generator.normal(size=4)
        if step % 5:
            new_g = g + (new_x - x) * np.arange(1.0, 5.0)
        window = window.remember((x, new_x), (g, new_g))
        pairs = [(torch.from_numpy(old), torch.from_numpy(new)) for old, new in ((x, new_x), (g, new_g))]
        rows = rows.remember(*pairs)
        x, g = new_x, new_g
        assert rows.product(torch.from_numpy(g)).numpy() == pytest.approx(window.product(g), rel=1e-8)


def test_a_callback_sees_each_step_once() -> None:
    """Steps that are made again in a backward pass are not reported again."""
    seen: list[int] = []
    options: Any = {'implicit_diff': False, 'unroll': 'checkpoint', 'callback': lambda x, state: seen.append(1)}
    penalty = PENALTY.clone().requires_grad_()
    params, state = torchopt.LBFGS(ridge, tol=1e-8, **options).run(START, penalty, X, Y)
    torch.autograd.grad(params.sum(), penalty)
    assert len(seen) == int(state.iter_num)


def test_the_first_step_in_a_box_is_not_shortened() -> None:
    """The first trial point is a gradient step, however long: here it is the solution."""
    box = (torch.full((3,), -100.0), torch.full((3,), 100.0))
    params, state = torchopt.LBFGSB(lambda x: 0.5 * (x - 50.0).square().sum()).run(torch.zeros(3), box)
    torch.testing.assert_close(params, torch.full((3,), 50.0))
    assert (state.iter_num.item(), state.num_fun_eval.item()) == (1, 2)


@pytest.mark.parametrize('batched', [False, True])
def test_conjugate_gradients_search_accurately(batched: bool) -> None:
    """The first trial reduces the slope to 0.42 of what it was, which quasi-Newton methods accept."""

    def fun(x: torch.Tensor) -> torch.Tensor:
        return 0.9 * (x**2).sum()

    def first_step(name: str) -> torch.Tensor:
        solver, start = getattr(torchopt, name)(fun, maxiter=1), torch.ones(1, 3, dtype=torch.float64)
        found = torch.vmap(solver.run)(start) if batched else solver.run(start)
        return found.params

    assert first_step('LBFGS').min() > 0.4
    assert first_step('NonlinearCG').abs().max() <= 0.1


@pytest.mark.parametrize('batched', [False, True])
@pytest.mark.parametrize('method', ['polak-ribiere', 'fletcher-reeves', 'hestenes-stiefel'])
def test_conjugate_gradients_on_flat_objectives(method: str, batched: bool) -> None:
    """Steps of at most 1 along gradients of size 1e-4 would not get there."""
    target = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    scales = torch.tensor([1e-4, 3e-4, 1e-3], dtype=torch.float64)
    solver = torchopt.NonlinearCG(lambda x: (scales * (x - target) ** 2).sum(), method=method, tol=1e-9, maxiter=100)
    start = torch.zeros(1, 3, dtype=torch.float64)
    params, state = torch.vmap(solver.run)(start) if batched else solver.run(start[0])
    torch.testing.assert_close(params.reshape(3), target, rtol=0, atol=1e-4)
    assert (state.stepsize <= 1000.0).all()


def _quartic(x: torch.Tensor) -> torch.Tensor:
    """A function for which beta is not positive after the first step, so that the second direction is a gradient."""
    rows = torch.linspace(0.0, 12.0, 48, dtype=x.dtype).square().sin().reshape(12, 4)
    return 0.5 * (rows @ x - rows.sum(1).cos()).square().mean() + 0.15 * (x**2).sum() + 0.1 * (x**4).sum()


def _flat_rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return 1e-3 * (100.0 * (x[1] - x[0] ** 2) ** 2 + (1.0 - x[0]) ** 2)


@pytest.mark.parametrize('linesearch', ['zoom', 'backtracking', 'hager-zhang'])
@pytest.mark.parametrize('method', ['polak-ribiere', 'fletcher-reeves', 'hestenes-stiefel'])
@pytest.mark.parametrize(('fun', 'start'), [(_flat_rosenbrock, [-1.2, 1.0]), (_quartic, [1.0] * 4)])
def test_single_steps_of_conjugate_gradients_repeat_a_run(fun: Any, start: Any, method: str, linesearch: str) -> None:
    solver = torchopt.NonlinearCG(fun, tol=0.0, maxiter=8, method=method, linesearch=linesearch)
    params = torch.tensor(start, dtype=torch.float64)
    expected = solver.run(params)
    state = solver.init_state(params)
    for _ in range(8):
        params, state = solver.update(params, state)
    torch.testing.assert_close(params, expected.params, rtol=1e-9, atol=0)
    torch.testing.assert_close(float(state.slope), float(expected.state.slope), rtol=1e-6, atol=0)
    assert float(state.slope) < 0.0
    assert int(state.num_fun_eval) == int(expected.state.num_fun_eval)
