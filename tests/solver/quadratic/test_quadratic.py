# SPDX-License-Identifier: Apache-2.0
"""Quadratic programs: optimality conditions, OSQP, CVXPY and JAXopt as references; batches, ends, errors."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import osqp
import pytest
import scipy.sparse
import torch
from torch import Tensor

import torchopt
from tests.solver.derivatives import assert_derivatives
from tests.solver.quadratic.problems import KNOWN, Problem, array, random_problem
from torchopt.linear_solve import LinearSolveWarning
from torchopt.solver import KKTSolution, Status

PROBLEMS = {**KNOWN, **{f'random {seed}': random_problem(seed) for seed in range(4)}}
EXACT = torchopt.BoxOSQP(tol=1e-9)
NAN = float('nan')


def violation(problem: Problem, x: torch.Tensor, y: torch.Tensor) -> float:
    """The largest violation of the optimality conditions, computed here."""
    Q, c, A, l, u = problem.tensors()
    Ax = A @ x
    primal = torch.maximum(torch.relu(Ax - u), torch.relu(l - Ax)).max()
    dual = (Q @ x + c + A.T @ y).abs().max()
    # A positive multiplier belongs to an upper bound that binds, a negative one to a lower bound.
    loose = torch.maximum(torch.minimum(torch.relu(y), u - Ax), torch.minimum(torch.relu(-y), Ax - l)).max()
    return float(torch.stack([primal, dual, loose]).max())


@pytest.mark.parametrize('title', PROBLEMS)
def test_optimality_and_value(title: str) -> None:
    problem = PROBLEMS[title]
    Q, c, A, l, u = problem.tensors()
    sol, state = EXACT.run(params_obj=(Q, c), params_eq=A, params_ineq=(l, u))
    (x, z), y, (mu, phi) = sol
    assert state.status == Status.CONVERGED == torchopt.BoxOSQP.SOLVED
    assert violation(problem, x, y) < 1e-7
    assert state.error <= 1e-9
    assert ((l <= z) & (z <= u)).all()
    torch.testing.assert_close(mu - phi, y)
    assert ((mu >= 0) & (phi >= 0)).all()
    value = float(0.5 * x @ Q @ x + c @ x)
    if problem.value is not None:
        assert value == pytest.approx(problem.value, abs=1e-6 * max(1.0, abs(problem.value)))
    else:
        solver = osqp.OSQP()
        matrices = (
            scipy.sparse.csc_matrix(problem.Q),
            problem.c,
            scipy.sparse.csc_matrix(problem.A),
            problem.l,
            problem.u,
        )
        solver.setup(*matrices, eps_abs=1e-10, eps_rel=0, max_iter=100000, verbose=False, polishing=True)
        np.testing.assert_allclose(x, solver.solve(raise_error=False).x, atol=1e-6)


def as_one_sided(problem: Problem) -> tuple[Any, Any, Any]:
    """The same constraints as equations and inequalities."""
    Q, c, A, l, u = problem.tensors()
    equal = l == u
    upper, lower = ~equal & u.isfinite(), ~equal & l.isfinite()
    G, h = torch.cat([A[upper], -A[lower]]), torch.cat([u[upper], -l[lower]])
    return (Q, c), (A[equal], u[equal]) if equal.any() else None, (G, h) if len(h) else None


@pytest.mark.parametrize('title', ['HS21', 'HS35', 'HS51', 'HS76', 'random 0', 'random 1'])
def test_osqp_and_cvxpy_agree(title: str) -> None:
    problem = PROBLEMS[title]
    objective, equations, inequalities = as_one_sided(problem)
    Q, c, A, l, u = problem.tensors()
    expected = EXACT.run(None, (Q, c), A, (l, u)).params.primal[0]
    solver = torchopt.OSQP(tol=1e-9)
    sol, state = solver.run(None, objective, equations, inequalities)
    assert state.status == Status.CONVERGED
    torch.testing.assert_close(sol.primal, expected, atol=1e-7, rtol=0)
    assert solver.l2_optimality_error(sol, objective, equations, inequalities) < 1e-7
    assert (sol.dual_eq is None) == (equations is None) and (sol.dual_ineq is None) == (inequalities is None)
    if inequalities is not None:
        assert (sol.dual_ineq >= 0).all()
    from_cvxpy = torchopt.CvxpyQP(solver='CLARABEL').run(None, objective, equations, inequalities).params
    torch.testing.assert_close(from_cvxpy.primal, expected, atol=1e-5, rtol=0)
    assert torchopt.CvxpyQP().l2_optimality_error(from_cvxpy, objective, equations, inequalities) < 1e-4


def test_jaxopt_agrees() -> None:
    problem = random_problem(0)
    Q, c, A, l, u = problem.tensors()
    sol = EXACT.run(None, (Q, c), A, (l, u)).params
    with jax.enable_x64(True):
        linear = functools.partial(jaxopt.linear_solve.solve_normal_cg, tol=1e-14, maxiter=10000)
        solver = jaxopt.BoxOSQP(tol=1e-9, eq_qp_solve='lu', implicit_diff_solve=linear)
        Q, c, A, l, u = map(jnp.asarray, problem[:5])

        def solve(c: Any) -> Any:
            return solver.run(None, (Q, c), A, (l, u)).params

        expected, jacobian = solve(c), jax.jacobian(lambda c: solve(c).primal[0])(c)
    np.testing.assert_allclose(sol.primal[0], expected.primal[0], atol=1e-7)
    np.testing.assert_allclose(sol.dual_eq, expected.dual_eq, atol=1e-6)
    Q, c, A, l, u = problem.tensors()
    found = torch.func.jacrev(lambda c: EXACT.run(None, (Q, c), A, (l, u)).params.primal[0])(c)
    np.testing.assert_allclose(found, jacobian, atol=1e-5)


def test_equations_only() -> None:
    Q, c, A, _, u = KNOWN['HS51'].tensors()
    for options in ({}, {'refine_regularization': 0.1, 'refine_maxiter': 50}):
        solver = torchopt.EqualityConstrainedQP(tol=1e-10, **options)
        sol = solver.run(params_obj=(Q, c), params_eq=(A, u)).params
        torch.testing.assert_close(sol.primal, torch.ones(5, dtype=torch.float64))
        assert solver.l2_optimality_error(sol, (Q, c), (A, u)) < 1e-8
    solver = torchopt.EqualityConstrainedQP(tol=1e-10)

    def solve(c: Any, A: Any, b: Any) -> Any:
        return solver.run(None, (Q, c), (A, b)).params.primal

    assert_derivatives(solve, (c, A, u))
    rows = torch.vmap(lambda c: solve(c, A, u))(torch.stack([c, 2 * c]))
    torch.testing.assert_close(rows[1], solve(2 * c, A, u))


def test_box() -> None:
    """Without a matrix the bounds are those of the variables: JAXopt's issue 546."""
    Q, c = random_problem(1).tensors()[:2]
    x = EXACT.run(params_obj=(Q, c), params_ineq=(-0.3, 0.3)).params.primal[0]
    by_coordinates = torchopt.BoxCDQP(tol=1e-12).run(torch.zeros_like(c), (Q, c), (-0.3, 0.3))
    torch.testing.assert_close(x, by_coordinates.params, atol=1e-9, rtol=0)
    assert by_coordinates.state.status == Status.CONVERGED
    assert torchopt.BoxCDQP().l2_optimality_error(x, (Q, c), (-0.3, 0.3)) < 1e-8
    one_sided = EXACT.run(params_obj=(Q, c), params_ineq=(None, torch.zeros(5))).params.primal[0]
    assert one_sided.max() < 1e-9
    free = EXACT.run(params_obj=(Q, c)).params.primal[0]
    torch.testing.assert_close(free, torch.linalg.solve(Q, -c), atol=1e-8, rtol=1e-8)
    with pytest.raises(Exception):  # noqa: B017
        jaxopt.BoxOSQP().run(params_obj=(jnp.asarray(Q), jnp.asarray(c)), params_ineq=(-jnp.ones(5), jnp.ones(5)))


def test_flat_coordinates() -> None:
    """Where the objective is linear, coordinate descent follows the slope; JAXopt's stays where it is."""
    Q, c = torch.diag(torch.tensor([1.0, 0.0, 0.0])), torch.tensor([-2.0, -1.0, 0.0])
    found = torchopt.BoxCDQP().run(torch.zeros(3), (Q, c), (0.0, 1.0)).params
    assert found.tolist() == [1.0, 1.0, 0.0]
    l, u = jnp.zeros(3), jnp.ones(3)
    theirs = jaxopt.BoxCDQP().run(jnp.zeros(3), (jnp.asarray(Q), jnp.asarray(c)), (l, u)).params
    assert theirs[1] == 0.0


def test_trees_functions_and_starts() -> None:
    Q, c = random_problem(2).tensors()[:2]
    A, l, u = torch.eye(5, dtype=torch.float64), torch.tensor(-0.3), torch.tensor(0.3)
    expected = EXACT.run(None, (Q, c), A, (l, u))
    x = expected.params.primal[0]
    trees = EXACT.run(
        None, ({'a': Q, 'b': 2 * Q}, {'a': c, 'b': 2 * c}), {'a': A, 'b': 2 * A}, (-0.6, {'a': 0.3, 'b': 0.6})
    )
    torch.testing.assert_close(trees.params.primal[0]['b'], x)
    assert trees.params.primal[1]['b'].shape == (5,)
    products = torchopt.BoxOSQP(matvec_Q=lambda P, x: P @ x, matvec_A=lambda P, x: [P @ x], tol=1e-9)
    torch.testing.assert_close(products.run(None, (Q, c), A, (l, u)).params.primal[0], x)
    function = torchopt.BoxOSQP(fun=lambda x, data: 0.5 * x @ (data[0] @ x) + data[1] @ x + 7.0, tol=1e-9)
    start = EXACT.init_params(torch.ones_like(c), (Q, c), A, (l, u))
    torch.testing.assert_close(function.run(start, (Q, c), A, (l, u)).params.primal[0], x)
    again = EXACT.run(expected.params, (Q, c), A, (l, u))
    assert again.state.iter_num <= expected.state.iter_num
    torch.testing.assert_close(again.params.primal[0], x)
    one_sided = torchopt.OSQP(matvec_A=lambda P, x: {'sum': (P @ x)[None]}, matvec_G=lambda P, x: P * x, tol=1e-9)
    ones = torch.ones(5, dtype=torch.float64)
    sol = one_sided.run(None, (Q, c), (ones, {'sum': torch.zeros(1)}), (ones, 0.3 * ones)).params
    assert abs(sol.primal.sum()) < 1e-8 and sol.primal.max() < 0.3 + 1e-8
    assert sol.dual_eq['sum'].shape == (1,)


def test_steps_by_hand_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    Q, c, A, l, u = random_problem(3).tensors()
    data, solver = ((Q, c), A, (l, u)), torchopt.BoxOSQP(tol=1e-6)
    params = solver.init_params(None, *data)
    state = solver.init_state(params, *data)
    for _ in range(300):
        params, state = solver.update(params, state, *data)
    assert state.error < 1e-6 and state.iter_num == 300
    torch.testing.assert_close(params.primal[0], EXACT.run(None, *data).params.primal[0], atol=1e-5, rtol=0)
    assert solver.l2_optimality_error(params, *data) < 1e-5
    seen: list[int] = []
    shown = torchopt.BoxOSQP(tol=1e-6, verbose=1, callback=lambda params, state: seen.append(int(state.iter_num)))
    found, state = shown.run(None, *data)
    assert seen == list(range(1, int(state.iter_num) + 1)) and 'INFO: torchopt.BoxOSQP' in capsys.readouterr().out
    torch.testing.assert_close(found.primal[0], params.primal[0], atol=1e-5, rtol=0)


SOLVES = {
    'BoxOSQP': lambda Q, c, A, l, u: EXACT.run(None, (Q, c), A, (l, u)).params.primal[0],
    'BoxOSQP unrolled': lambda Q, c, A, l, u: (
        torchopt.BoxOSQP(tol=1e-8, implicit_diff=False).run(None, (Q, c), A, (l, u)).params.primal[0]
    ),
    'multipliers': lambda Q, c, A, l, u: EXACT.run(None, (Q, c), A, (l, u)).params.dual_eq,
    'OSQP': lambda Q, c, A, l, u: (
        torchopt.OSQP(tol=1e-9).run(None, (Q, c), (A[:2], u[:2]), (A[2:], u[2:])).params.primal
    ),
    'CvxpyQP': lambda Q, c, A, l, u: (
        torchopt.CvxpyQP('CLARABEL').run(None, (Q, c), (A[:2], u[:2]), (A[2:], u[2:])).params.primal
    ),
    'BoxCDQP': lambda Q, c, A, l, u: torchopt.BoxCDQP(tol=1e-12).run(None, (Q, c), (-0.1, u[0].abs())).params,
    'BoxCDQP unrolled': lambda Q, c, A, l, u: (
        torchopt.BoxCDQP(tol=1e-12, implicit_diff=False).run(None, (Q, c), (-0.1, u[0].abs())).params
    ),
}


@pytest.mark.parametrize('name', SOLVES)
def test_derivatives(name: str) -> None:
    """In all data, in both modes, against finite differences."""
    Q, c, A, l, u = random_problem(0).tensors()
    equal = l == u
    inputs = Q, c, A, torch.where(equal, 0.5, l.clamp(min=-9.0)), u

    def solve(Q: Any, c: Any, A: Any, l: Any, u: Any) -> Any:
        return SOLVES[name](Q + Q.T, c, A, torch.where(equal, u, l), u)

    kind = {'forward': 'unrolled' not in name, 'second': name in ('BoxOSQP', 'BoxCDQP')}
    assert_derivatives(solve, inputs, tolerance=1e-4 if 'unrolled' in name else 1e-5, **kind)


def test_derivatives_of_diffcp() -> None:
    import diffcp

    Q, c, A, l, u = random_problem(1).tensors()
    root = torch.linalg.cholesky(Q).T
    G, h = torch.cat([A[2:], -A[2:-1]]), torch.cat([u[2:], -l[2:-1]])
    n, m = len(c), len(h)
    # min t + c'x with |R x|^2 / 2 <= t as a cone: (t + 1/2, t - 1/2, R x), in the variables (t, x).
    rows = [np.hstack([np.zeros((2, 1)), A[:2].numpy()]), np.hstack([np.zeros((m, 1)), G.numpy()])]
    head = np.vstack([np.r_[-1.0, np.zeros(n)], np.r_[-1.0, np.zeros(n)], np.hstack([np.zeros((n, 1)), -root.numpy()])])
    matrix = scipy.sparse.csc_matrix(np.vstack([*rows, head]))
    right = np.concatenate([u[:2], h, [0.5, -0.5], np.zeros(n)])
    cones = {'z': 2, 'l': m, 'q': [n + 2]}
    x, _, _, _, adjoint = diffcp.solve_and_derivative(
        matrix, right, np.r_[1.0, c.numpy()], cones, solve_method='CLARABEL'
    )
    leaf = c.clone().requires_grad_()
    solver = torchopt.OSQP(tol=1e-10)
    found = solver.run(None, (Q, leaf), (A[:2], u[:2]), (G, h)).params.primal
    np.testing.assert_allclose(found.detach(), x[1:], atol=1e-5)
    weights = np.linspace(1.0, 2.0, n)
    _, _, expected = adjoint(np.r_[0.0, weights], np.zeros(len(right)), np.zeros(len(right)))
    (gradient,) = torch.autograd.grad(found @ torch.tensor(weights), leaf)
    np.testing.assert_allclose(gradient, expected[1:], atol=1e-4)


def test_batches_end_one_by_one() -> None:
    """Also with problems that have no solution among them."""
    problems = [random_problem(seed).tensors() for seed in range(5)]
    Q, c, A, l, u = map(torch.stack, zip(*problems))
    l[1, 2:4], u[1, 2:4], A[1, 3] = torch.tensor([2.0, -4.0]), torch.tensor([3.0, -3.0]), A[1, 2]
    Q[3], A[3] = 0.0, 0.0
    l[3], u[3] = -1.0, 1.0
    solver = torchopt.BoxOSQP(tol=1e-8)

    def solve(Q: Any, c: Any, A: Any, l: Any, u: Any) -> Any:
        sol, state = solver.run(None, (Q, c), A, (l, u))
        return sol.primal[0], state.status, state.iter_num

    x, status, _ = torch.vmap(solve)(Q, c, A, l, u)
    ends = [Status.CONVERGED, Status.INFEASIBLE, Status.CONVERGED, Status.UNBOUNDED, Status.CONVERGED]
    assert status.tolist() == ends
    for i in (0, 2, 4):
        torch.testing.assert_close(x[i], solve(Q[i], c[i], A[i], l[i], u[i])[0], atol=1e-7, rtol=0)
    shared = torch.vmap(lambda c: solve(Q[0], c, A[0], l[0], u[0])[0])(c)
    torch.testing.assert_close(shared[0], x[0], atol=1e-7, rtol=0)
    boxes = torch.vmap(lambda c: torchopt.BoxCDQP(tol=1e-10).run(None, (Q[0], c), (-0.3, 0.3)).params)(c)
    unrolled = torch.vmap(
        lambda c: torchopt.BoxCDQP(tol=1e-10, implicit_diff=False).run(None, (Q[0], c), (-0.3, 0.3)).params
    )(c)
    torch.testing.assert_close(boxes, unrolled, atol=1e-8, rtol=0)
    gradients = torch.vmap(torch.func.grad(lambda c: solve(Q[0], c, A[0], l[0], u[0])[0].sum()))(c)
    torch.testing.assert_close(gradients[2], torch.func.grad(lambda c: solve(Q[0], c, A[0], l[0], u[0])[0].sum())(c[2]))


def test_a_feasible_problem_far_away_is_not_called_infeasible() -> None:
    """JAXopt's certificate has the wrong sign (issue 342): it takes multipliers that hardly change for a proof."""
    Q, c = torch.eye(2, dtype=torch.float64), torch.tensor([-1.0, 0.0], dtype=torch.float64)
    G, h = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([0.0, 0.0], dtype=torch.float64)
    far = (
        torch.tensor([[1e-4, 0.0], [-1e-4, 0.0]], dtype=torch.float64),
        torch.tensor([1.01, -1.0], dtype=torch.float64),
    )
    for constraints in ((G, h), far):
        sol, state = torchopt.OSQP(tol=1e-6).run(None, (Q, c), None, constraints)
        assert state.status == Status.CONVERGED
        assert (constraints[0] @ sol.primal <= constraints[1] + 1e-6).all()
    theirs = jaxopt.OSQP(check_primal_dual_infeasability=True, tol=1e-6).run(
        None, (jnp.asarray(Q), jnp.asarray(c)), None, tuple(map(jnp.asarray, far))
    )
    assert theirs.state.status != jaxopt.BoxOSQP.SOLVED


def test_single_precision_and_limits() -> None:
    Q, c, A, l, u = random_problem(0).tensors(torch.float32)
    sol, state = torchopt.BoxOSQP().run(None, (Q, c), A, (l, u))
    assert sol.primal[0].dtype == state.error.dtype == torch.float32 and state.error <= 1e-3
    exact = EXACT.run(None, (Q.double(), c.double()), A.double(), (l.double(), u.double())).params.primal[0]
    torch.testing.assert_close(sol.primal[0].double(), exact, atol=1e-3, rtol=0)
    stopped = torchopt.BoxOSQP(tol=0.0, maxiter=3).run(None, (Q, c), A, (l, u)).state
    assert stopped.status == Status.MAXITER and stopped.iter_num == 3
    half = torchopt.BoxOSQP().run(None, (Q.bfloat16(), c.bfloat16()), None, (-1.0, 1.0)).params.primal[0]
    assert half.dtype == torch.bfloat16


def unconverged(problem: Problem) -> Any:
    Q, c, A, l, u = problem.tensors()
    return EXACT.run(None, (Q, c), A, (l, u)).state.status


def test_proofs() -> None:
    no_point = Problem(np.eye(2), array(0, 0), array([1, 1], [1, 1]), array(1, -np.inf), array(np.inf, 0))
    assert unconverged(no_point) == Status.INFEASIBLE == torchopt.BoxOSQP.PRIMAL_INFEASIBLE
    no_end = Problem(np.diag([1.0, 0.0]), array(0, -1), array([1, 0]), array(-1.0), array(1.0))
    assert unconverged(no_end) == Status.UNBOUNDED == torchopt.BoxOSQP.DUAL_INFEASIBLE
    with pytest.raises(ValueError, match='infeasible'):
        Q, c = torch.eye(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        G, h = torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([-1.0, -1.0], dtype=torch.float64)
        torchopt.CvxpyQP().run(None, (Q, c), None, (G, h))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_proofs_in_every_precision(dtype: torch.dtype) -> None:
    """One batch: rows that contradict each other or nearly do, and objectives with or almost without a bound."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y, A = random(16, 5), random(16, 2), random(16, 2, 5)
    middle = (A @ x.unsqueeze(-1)).squeeze(-1)
    row, top = (y.unsqueeze(1) @ A), (y * middle + y.abs()).sum(-1, keepdim=True)  # the most that the rows permit
    Q, c = torch.eye(5, dtype=torch.float64), random(16, 5)
    for gap, end in ((1.0, Status.INFEASIBLE), (-0.1, Status.CONVERGED)):
        data = torch.cat([A, row], 1), torch.cat([middle - 1.0, top + gap], 1), torch.cat([middle + 1.0, top + 9.0], 1)
        solver = torchopt.BoxOSQP(tol=1e-3)
        single = [v.to(dtype) for v in (c, *data)]
        status = torch.vmap(lambda c, A, l, u, s=solver: s.run(None, (Q.to(dtype), c), A, (l, u)).state.status)(*single)
        assert status.tolist() == [end] * 16
    for curvature, end in ((0.0, Status.UNBOUNDED), (2.0**-8, Status.CONVERGED)):
        Q = torch.diag(torch.tensor([1.0, curvature], dtype=dtype))
        sign = torch.tensor([-1.0, 1.0], dtype=dtype)
        rows, one = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.ones(1, dtype=dtype)
        bounds = -one, one
        assert torchopt.BoxOSQP(tol=1e-3).run(None, (Q, sign), rows, bounds).state.status == end
        one_sided = torch.cat([rows, -rows]), torch.ones(2, dtype=dtype)
        assert torchopt.OSQP(tol=1e-3).run(None, (Q, sign), None, one_sided).state.status == end


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
@pytest.mark.parametrize('solve', [torchopt.linear_solve.solve_gmres, torchopt.linear_solve.solve_normal_cg])
def test_equations_that_contradict_each_other(solve: Any, dtype: torch.dtype) -> None:
    Q, c = 2.0 * torch.eye(2, dtype=dtype), torch.ones(2, dtype=dtype)
    solver, once = torchopt.EqualityConstrainedQP(solve=solve, tol=1e-4), torch.ones(2, 2, dtype=dtype)
    for size in (1e-6, 1.0, 1e6):
        with pytest.warns(LinearSolveWarning, match='contradict each other'):
            solver.run(None, (Q, c), (once, torch.tensor([size, 2.0 * size], dtype=dtype)))
        nearly = once + torch.tensor([[0.0, 0.0], [0.0, 1e-2]], dtype=dtype)
        for A, b in ((once, (size, size)), (nearly, (size, 2.0 * size))):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore', LinearSolveWarning)
                warnings.filterwarnings('error', message='.*contradict each other')
                solver.run(None, (Q, c), (A, torch.tensor(b, dtype=dtype)))


Q2, c2 = torch.eye(2), torch.ones(2)
BOX, CD, ONE = torchopt.BoxOSQP(), torchopt.BoxCDQP(), torchopt.OSQP()
ERRORS = {
    'bounds cross': (lambda: BOX.run(None, (Q2, c2), None, (1.0, 0.0)), ValueError, 'the bounds cross'),
    'bounds of coordinates cross': (lambda: CD.run(None, (Q2, c2), (1.0, 0.0)), ValueError, 'the bounds cross'),
    'indefinite': (lambda: BOX.run(None, (-Q2, c2), None, (0.0, 1.0)), ValueError, 'Q has a negative eigenvalue, -1'),
    'nan': (lambda: BOX.run(None, (Q2, NAN * c2), None, (0.0, 1.0)), ValueError, 'params_obj has values that are NaN'),
    'nan bound': (lambda: BOX.run(None, (Q2, c2), None, (NAN, 1.0)), ValueError, 'or one is NaN'),
    'integers': (lambda: BOX.run(None, (Q2, c2.long()), None, (0.0, 1.0)), TypeError, r'params_obj\[1\] has dtype'),
    'shape of Q': (
        lambda: BOX.run(None, (Q2, torch.ones(3)), None, (0.0, 1.0)),
        ValueError,
        r'params_obj\[0\] has shape',
    ),
    'not square': (lambda: CD.run(None, (torch.ones(3, 2), c2), (0.0, 1.0)), ValueError, 'must be square'),
    'shape of A': (lambda: BOX.run(None, (Q2, c2), torch.ones(1, 3), (0.0, 1.0)), ValueError, 'params_eq has shape'),
    'shape of l': (lambda: BOX.run(None, (Q2, c2), Q2, (torch.ones(3), 1.0)), ValueError, r'params_ineq\[0\] has'),
    'no pair': (lambda: BOX.run(None, Q2, None, (0.0, 1.0)), ValueError, 'expected a pair'),
    'no constraints': (lambda: ONE.run(None, (Q2, c2)), ValueError, 'expected constraints'),
    'shape of h': (lambda: ONE.run(None, (Q2, c2), None, (Q2, torch.ones(3))), ValueError, r'params_ineq\[1\] has'),
    'start': (lambda: CD.run(torch.ones(3), (Q2, c2), (0.0, 1.0)), ValueError, 'init_params has shape'),
    'two objectives': (lambda: torchopt.BoxOSQP(fun=max, matvec_Q=max), ValueError, 'both define the objective'),
    'fun without a start': (lambda: torchopt.BoxOSQP(fun=max).run(None, (Q2, c2)), ValueError, 'init_params is None'),
    'unknown factorization': (lambda: torchopt.BoxOSQP(eq_qp_solve='qr'), ValueError, 'Invalid eq_qp_solve'),
    'momentum': (lambda: torchopt.BoxOSQP(momentum=2.0), ValueError, 'Invalid momentum'),
    'batch of CVXPY': (
        lambda: torch.vmap(lambda c: torchopt.CvxpyQP().run(None, (Q2, c)).params.primal)(Q2),
        NotImplementedError,
        'Use OSQP for batches',
    ),
    'start of multipliers': (
        lambda: BOX.run(KKTSolution((c2, c2), torch.ones(3), None), (Q2, c2), None, (0.0, 1.0)),
        ValueError,
        'init_params.dual_eq has shape',
    ),
}


@pytest.mark.parametrize(('call', 'error', 'message'), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize('kind', ['OSQP, equations', 'OSQP, inequalities', 'EqualityConstrainedQP'])
def test_batches_with_one_kind_of_constraints(kind: str) -> None:
    """`torch.vmap` returns tensors only, so `()` stands for multipliers of constraints that do not exist."""
    Q, A, b = (
        2.0 * torch.eye(3, dtype=torch.float64),
        torch.ones(1, 3, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
    )
    rows = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.1, 0.2]], dtype=torch.float64)
    solver: Any = torchopt.EqualityConstrainedQP() if kind == 'EqualityConstrainedQP' else torchopt.OSQP(tol=1e-10)
    name = 'params_ineq' if kind == 'OSQP, inequalities' else 'params_eq'

    def run(c: torch.Tensor, init_params: Any = None) -> Any:
        return solver.run(init_params, params_obj=(Q, c), **{name: (A, b)})

    batch = torch.vmap(run)(rows)
    again = torch.vmap(run)(rows, batch.params)
    for i, c in enumerate(rows):
        alone = run(c).params.primal
        torch.testing.assert_close(batch.params.primal[i], alone, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(again.params.primal[i], alone, rtol=1e-7, atol=1e-9)
    assert [part for part in batch.params if not isinstance(part, torch.Tensor)] == [()]
