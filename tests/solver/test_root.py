# SPDX-License-Identifier: Apache-2.0
"""Bisection, Broyden and IterativeRefinement."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    import jaxopt

import torchopt
from tests.solver.problems import more_garbow_hillstrom
from torchopt import tree
from torchopt.linear_solve import solve_lu
from torchopt.solver import Status


def cubic(x: Any, a: Any) -> Any:
    return x**3 + x - a


def number(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


BISECTION = torchopt.Bisection(cubic, 0.0, 4.0, tol=1e-13, maxiter=80, implicit_diff_solve=solve_lu)


def root(a: Tensor) -> Tensor:
    return BISECTION.run(None, a).params


@pytest.mark.parametrize('a', [0.0, 2.0, 10.0, 68.0])
def test_bisection_in_value_and_derivatives(a: float) -> None:
    """For x^3 + x = a: dx = da / (3 x^2 + 1), and d2x = -6 x da^2 / (3 x^2 + 1)^3."""
    x = root(number(a))
    torch.testing.assert_close(x**3 + x, number(a), rtol=0.0, atol=1e-12)
    slope = 1 / (3 * x**2 + 1)
    torch.testing.assert_close(torch.func.grad(root)(number(a)), slope)
    torch.testing.assert_close(torch.func.grad(torch.func.grad(root))(number(a)), -6 * x * slope**3)
    torch.testing.assert_close(torch.func.jvp(root, (number(a),), (number(1.0),))[1], slope)


def test_issue_141_derivatives_of_values_beside_derivatives() -> None:
    """In parameters, of ``value_and_grad`` in another argument, by name."""

    def F(x: Tensor, aux: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
        a, b = aux
        return (a * x**2 + b * x) / (a + b) - y

    solver = torchopt.Bisection(F, 0.0, 1.0, tol=1e-12, maxiter=60, implicit_diff_solve=solve_lu)

    def inverse(y: Tensor, aux: tuple[Tensor, Tensor]) -> Tensor:
        return solver.run(aux=aux, y=y).params

    def by_hand(y: Tensor, aux: tuple[Tensor, Tensor]) -> Tensor:
        a, b = aux
        return (-b + torch.sqrt(b**2 + 4 * a * y * (a + b))) / (2 * a)

    y, aux = number(0.5), (number(2.0), number(1.0))
    for which in (0, 1):
        found, right = (
            torch.func.grad(lambda p, f=f, which=which: torch.func.grad_and_value(f)(y, p)[which])(aux)
            for f in (inverse, by_hand)
        )
        torch.testing.assert_close(found, right)


def test_auxiliary_output_and_roots_at_an_end_which_jaxopt_refuses() -> None:
    with pytest.raises(TypeError):
        jaxopt.Bisection(lambda x: (x - 0.5, x), 0.0, 1.0, has_aux=True, jit=False).run()
    with pytest.raises(ValueError, match='not contained'):
        jaxopt.Bisection(lambda x: x, 0.0, 1.0, jit=False).run()
    assert torchopt.Bisection(lambda x: x, 0.0, 1.0).run().params < 1e-4
    assert torchopt.Bisection(lambda x: (x - 0.5, x), 0.0, 1.0, has_aux=True).run().params == 0.5


def test_bisection_in_a_batch() -> None:
    a = torch.tensor([0.5, 100.0, 10.0], dtype=torch.float64)  # the second has its root outside of the interval
    params, state = torch.vmap(BISECTION.run, in_dims=(None, 0))(None, a)
    assert state.status.tolist() == [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED]
    torch.testing.assert_close(params[[0, 2]], torch.stack([root(a[0]), root(a[2])]))
    assert state.iter_num[1] == 0
    lower = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ends = torch.vmap(lambda low: torchopt.Bisection(cubic, low, 4.0, maxiter=60).run(None, 10.0).params)(lower)
    torch.testing.assert_close(ends, torch.full_like(lower, 2.0), rtol=1e-5, atol=0.0)


def test_bisection_at_an_end_and_downwards() -> None:
    for fun, low, high, expected in [
        (lambda x: x, 0.0, 3.0, 0.0),
        (lambda x: x - 3.0, 0.0, 3.0, 3.0),
        (lambda x: 1.0 - x, 0.0, 3.0, 1.0),
    ]:
        params, state = torchopt.Bisection(fun, low, high, maxiter=60).run()
        assert abs(params.item() - expected) < 1e-4
        assert state.status == Status.CONVERGED


def test_bisection_ends_where_numbers_have_no_middle() -> None:
    params, state = torchopt.Bisection(lambda x: torch.sign(x - 0.3) + 0.5, 0.0, 1.0, maxiter=200).run()
    assert state.status == Status.STALLED
    assert state.iter_num < 40
    assert abs(params.item() - 0.3) < 1e-6


def test_bisection_takes_the_widest_dtype() -> None:
    assert root(torch.tensor(2.0, dtype=torch.float64)).dtype == torch.float64
    assert torchopt.Bisection(cubic, 0.0, 4.0).run(None, torch.tensor(2.0)).params.dtype == torch.float32
    assert torchopt.Bisection(cubic, number(0.0), 4.0).run(None, 2.0).params.dtype == torch.float64


def test_bisection_with_auxiliary_output() -> None:
    solver = torchopt.Bisection(lambda x, a: (cubic(x, a), {'x': x}), 0.0, 4.0, tol=1e-10, maxiter=60, has_aux=True)
    a = number(10.0).requires_grad_()
    params, state = solver.run(None, a)
    torch.testing.assert_close(state.aux['x'], params.detach())
    torch.testing.assert_close(torch.autograd.grad(params, a)[0], number(1 / 13))
    assert solver.l2_optimality_error(params, a) < 1e-9


SQUARE = [p for p in more_garbow_hillstrom.problems() if p.number in more_garbow_hillstrom.SQUARE]
# The evaluations of scipy.optimize.root(fun, start, method='broyden1', options={'maxiter': 500, 'fatol': 1e-6}); None
# where it finds no root.
BROYDEN1 = (133, None, 260, None, 967, 133, None, 36, 28, 148, 37, None, 159, None)


def test_broyden_on_more_garbow_hillstrom() -> None:
    solved, ratios = 0, []
    for problem, count in zip(SQUARE, BROYDEN1):
        if problem.name in ('Powell badly scaled', 'Powell singular', 'Extended Powell singular'):
            limit = 50  # neither method is good at singular Jacobians; to save time
        else:
            limit = 500
        params, state = torchopt.Broyden(problem.residual, tol=1e-6, maxiter=limit).run(problem.start)
        good = torch.linalg.vector_norm(problem.residual(params)) < 1e-5
        assert bool(good) == (int(state.status) == Status.CONVERGED)
        solved += bool(good)
        if good and count is not None:
            ratios.append(state.num_fun_eval.item() / count)
    assert solved >= 9 == sum(count is not None for count in BROYDEN1)
    assert sorted(ratios)[len(ratios) // 2] <= 1.2


def coupled(x: dict[str, Tensor], a: Tensor) -> dict[str, Tensor]:
    return {'u': x['u'] + 0.5 * torch.sin(x['v']) - a, 'v': x['v'] - 0.3 * torch.cos(x['u'])}


def solved(a: Tensor, **options: Any) -> Tensor:
    zero = torch.zeros((), dtype=torch.float64)
    solver = torchopt.Broyden(coupled, tol=1e-11, implicit_diff_solve=solve_lu, **options)
    x = solver.run({'u': zero, 'v': zero}, a).params
    return x['u'] * x['v']


@pytest.mark.parametrize(
    'options',
    [{}, {'history_size': 2}, {'stepsize': 0.9}, {'stepsize': lambda i: 0.8}],
    ids=['default', 'history_size', 'stepsize', 'stepsize by a function'],
)
def test_broyden_with_trees_derivatives_and_batches(options: dict[str, Any]) -> None:
    a = torch.tensor([0.5, 3.0], dtype=torch.float64)
    single = torch.stack([solved(x, **options) for x in a])
    torch.testing.assert_close(torch.vmap(lambda x: solved(x, **options))(a), single, rtol=1e-8, atol=0.0)
    h = 1e-5
    slopes = torch.stack([(solved(x + h) - solved(x - h)) / (2 * h) for x in a])
    grads = torch.vmap(torch.func.grad(lambda x: solved(x, **options)))(a)
    torch.testing.assert_close(grads, slopes, rtol=1e-6, atol=1e-9)
    unrolled = torch.func.grad(lambda x: solved(x, implicit_diff=False, **options))(a[0])
    torch.testing.assert_close(unrolled, grads[0], rtol=1e-6, atol=1e-9)


def test_broyden_shortens_steps_that_lead_out_of_the_domain() -> None:
    params, state = torchopt.Broyden(lambda x: torch.log(x) + 3.0, tol=1e-5).run(torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(params, torch.exp(torch.tensor([-3.0, -3.0])), rtol=1e-4, atol=0.0)
    assert state.status == Status.CONVERGED


def test_broyden_tries_the_whole_step_again_after_a_search_that_failed() -> None:
    """``gamma`` has the wrong sign, so that the first step leads uphill; for n unknowns, 2 n whole steps are enough."""
    slopes = torch.tensor([0.1, 0.01, 0.001], dtype=torch.float64)
    solver = torchopt.Broyden(lambda x: -slopes * x, tol=1e-10, maxiter=10)
    _, state = solver.run(torch.tensor([1.0, 0.4, -0.2], dtype=torch.float64))
    assert state.status == Status.CONVERGED


def test_broyden_goes_on_from_an_earlier_result() -> None:
    start, a = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    make = functools.partial(
        torchopt.Broyden, lambda x, a: x + 0.5 * torch.sin(x.flip(0)) - a, tol=1e-12, history_size=8
    )
    half = make(maxiter=3).run(start, a)
    whole, rest = make(maxiter=6).run(start, a), make(maxiter=3).run(half, a)
    torch.testing.assert_close(rest.params, whole.params)
    assert int(rest.state.iter_num) == int(whole.state.iter_num) == 6
    torch.testing.assert_close(make().update(half, half.state, a).params, make(maxiter=4).run(start, a).params)
    torch.testing.assert_close(make().l2_optimality_error(half, a), half.state.error)


def test_broyden_stops_where_the_search_fails() -> None:
    solver = torchopt.Broyden(lambda x: x**2 + 1.0, stop_if_linesearch_fails=True, maxls=5)
    _, state = solver.run(torch.tensor([0.5]))
    assert state.status == Status.STALLED
    assert state.failed_linesearch


def test_one_problem_of_a_batch_fails() -> None:
    a = torch.tensor([0.5, float('nan'), 3.0], dtype=torch.float64)
    solver = torchopt.Broyden(cubic, tol=1e-9, gamma=0.5)
    params, state = torch.vmap(solver.run)(torch.ones(3, dtype=torch.float64), a)
    assert state.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    expected = torch.stack([solver.run(number(1.0), x).params for x in (a[0], a[2])])
    torch.testing.assert_close(params[[0, 2]], expected)


A = torch.tensor([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.2, 0.0, 2.0]], dtype=torch.float64)
b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def rough(matvec: Any, b: Any, init: Any = None) -> Any:
    return solve_lu(matvec, b, ridge=0.3)


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'solve': rough, 'maxiter': 40},
        {'matvec_A': lambda A, x: A @ x, 'solve': rough, 'maxiter': 40},
        {'matvec_A_bar': lambda d, x: d * x, 'solve': lambda m, b, init: solve_lu(m, b), 'maxiter': 60},
    ],
    ids=['default', 'rough', 'function', 'diagonal'],
)
def test_iterative_refinement(options: dict[str, Any]) -> None:
    solver = torchopt.IterativeRefinement(tol=1e-10, implicit_diff_solve=solve_lu, **options)
    bar = A.diagonal() if 'matvec_A_bar' in options else None
    expected = torch.linalg.solve(A, b)
    for start in (None, 5 * torch.ones(3, dtype=torch.float64)):
        params, state = solver.run(start, A, b, bar)
        torch.testing.assert_close(params, expected)
        assert state.status == Status.CONVERGED
    grads = torch.func.grad(lambda A, b: solver.run(None, A, b, bar).params.sum(), argnums=(0, 1))(A, b)
    right = torch.func.grad(lambda A, b: torch.linalg.solve(A, b).sum(), argnums=(0, 1))(A, b)
    torch.testing.assert_close(grads, right)
    assert solver.l2_optimality_error(params, A, b) < 1e-9


def test_iterative_refinement_of_trees() -> None:
    matrices, sides = {'x': A, 'y': 2 * A}, {'x': b, 'y': b}
    params = torchopt.IterativeRefinement().run(None, matrices, sides).params
    torch.testing.assert_close(params['x'], 2 * params['y'])


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ('no root', lambda: torchopt.Bisection(lambda x: x**2 + 1, 0.0, 1.0).run(), ValueError, 'opposite signs'),
    ('ends', lambda: torchopt.Bisection(cubic, 1.0, 0.0), ValueError, 'lower'),
    ('a vector', lambda: torchopt.Bisection(lambda x: torch.ones(2) * x, -1.0, 1.0).run(), ValueError, r'shape \(2,\)'),
    ('unrolled', lambda: torchopt.Bisection(cubic, 0.0, 1.0, implicit_diff=False), ValueError, 'implicit_diff'),
    ('no function', lambda: torchopt.Bisection(3, 0.0, 1.0), TypeError, 'optimality_fun'),
    ('search', lambda: torchopt.Broyden(cubic, linesearch='zoom'), ValueError, "linesearch: 'zoom'"),
    ('history', lambda: torchopt.Broyden(cubic, history_size=0), ValueError, 'history_size'),
    ('factor', lambda: torchopt.Broyden(cubic, decrease_factor=1.0), ValueError, 'decrease_factor'),
    ('shape', lambda: torchopt.Broyden(lambda x: x.sum()).run(torch.ones(2)), ValueError, 'result of fun'),
    ('no side', lambda: torchopt.IterativeRefinement().run(None, A), TypeError, 'right-hand side|b'),
    ('no solver', lambda: torchopt.IterativeRefinement(solve=3), TypeError, 'solve'),
]


@pytest.mark.parametrize(('make', 'error', 'message'), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_steps_without_run() -> None:
    """``init_state`` and ``update`` by hand, as with JAXopt."""
    solver = torchopt.Broyden(functools.partial(cubic, a=2.0), gamma=0.25)
    params, state = torch.tensor([0.0]), None
    state = solver.init_state(params)
    for _ in range(12):
        params, state = solver.update(params, state)
    torch.testing.assert_close(params, torch.tensor([1.0]), rtol=1e-4, atol=0.0)
    assert state.iter_num == 12


def test_complex_leaves_after_an_odd_number_of_real_ones() -> None:
    """A complex number was a view of a vector, which needs an even offset."""
    goal = {'a': torch.ones(3), 'c': torch.tensor([1.0 + 2.0j, -1.0j])}
    start = tree.zeros_like(goal)
    found = torchopt.Broyden(lambda x: tree.sub(x, goal)).run(start).params
    least = torchopt.LBFGS(lambda x: tree.norm(tree.sub(x, goal), squared=True)).run(start).params
    solved = torchopt.linear_solve.solve_cg(lambda x: tree.scale(2.0, x), tree.scale(2.0, goal))
    for x in (found, least, solved):
        torch.testing.assert_close(x, goal)
