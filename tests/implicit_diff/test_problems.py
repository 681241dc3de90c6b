# SPDX-License-Identifier: Apache-2.0
"""Jacobians of solutions of real problems, beside closed forms, JAXopt, and unrolled or finite differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev

from torchopt.implicit_diff import custom_fixed_point, custom_root, root_jvp, root_vjp
from torchopt.linear_solve import (
    solve_bicgstab,
    solve_cg,
    solve_gmres,
    solve_inv,
    solve_iterative_refinement,
    solve_lu,
    solve_normal_cg,
    solve_qr,
)

jax.config.update('jax_enable_x64', True)

RNG = np.random.default_rng(0)
X_NUMPY, Y_NUMPY = RNG.standard_normal((12, 4)), RNG.standard_normal(12)
SIGNS = np.sign(RNG.standard_normal(12))
X, Y = torch.from_numpy(X_NUMPY), torch.from_numpy(Y_NUMPY)
LABELS = torch.from_numpy(SIGNS)
DOUBLE = torch.float64

SOLVERS = {
    'cg': solve_cg(tol=1e-14),
    'normal_cg': solve_normal_cg(tol=1e-14),
    'bicgstab': solve_bicgstab(tol=1e-14),
    'gmres': partial(solve_gmres, tol=1e-14),
    'lu': solve_lu,
    'qr': solve_qr,
    'inv': solve_inv(),
    'refinement': solve_iterative_refinement(tol=1e-13),
    'a function of the user': lambda matvec, b: torch.linalg.solve(jacrev(matvec)(b), b),
}


def newton(optimality: Callable[..., Any], x: torch.Tensor, *args: Any, steps: int = 9) -> torch.Tensor:
    """A solver that converges to the last digit, so that only the derivative is tested."""
    for _ in range(steps):
        x = x - torch.linalg.solve(jacrev(optimality)(x, *args), optimality(x, *args))
    return x


class Problem(NamedTuple):
    """An optimality function, its solution, and its Jacobian by other means."""

    optimality: Callable[..., Any]
    solve: Callable[..., Any]
    theta: torch.Tensor
    jacobian: Callable[[], torch.Tensor]
    symmetric: bool = True


# Ridge regression: the closed form itself is differentiated.
def ridge_optimality(w: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return X.T @ (X @ w - Y) + penalty * w


def ridge(w: Any, penalty: torch.Tensor) -> torch.Tensor:
    return torch.linalg.inv(X.T @ X + penalty * torch.eye(4, dtype=DOUBLE)) @ (X.T @ Y)


# Logistic regression with one penalty per weight.
def logistic_objective(w: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.softplus(-LABELS * (X @ w)).sum() + (penalties * w**2).sum() / 2


logistic_optimality = grad(logistic_objective)


@cache
def jaxopt_logistic() -> torch.Tensor:
    def objective(w: Any, penalties: Any) -> Any:
        return jnp.logaddexp(0.0, -SIGNS * (X_NUMPY @ w)).sum() + (penalties * w**2).sum() / 2

    solver = jaxopt.LBFGS(objective, tol=1e-13, maxiter=500, implicit_diff_solve=jaxopt.linear_solve.solve_lu)
    jacobian = jax.jacrev(lambda p: solver.run(jnp.zeros(4), p).params)(jnp.array([0.5, 1.0, 2.0, 3.0]))
    return torch.tensor(np.asarray(jacobian))


# The lasso, as a fixed point of proximal gradient descent.
STEP = 1 / float(np.linalg.eigvalsh(X_NUMPY.T @ X_NUMPY)[-1])


def lasso_step(w: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    v = w - STEP * (X.T @ (X @ w - Y))
    return torch.sign(v) * torch.relu(v.abs() - STEP * penalty)


def lasso_optimality(w: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return lasso_step(w, penalty) - w


def lasso(w: Any, penalty: torch.Tensor) -> torch.Tensor:
    w = torch.zeros(4, dtype=DOUBLE)
    for _ in range(3000):
        w = lasso_step(w, penalty)
    return w


def lasso_closed_form() -> torch.Tensor:
    # On the support S the solution is (X_S' X_S)^-1 (X_S' y - penalty * signs).
    w = lasso(None, torch.tensor(1.5, dtype=DOUBLE))
    support = w != 0
    XS = X[:, support]
    jacobian = torch.zeros(4, dtype=DOUBLE)
    jacobian[support] = -torch.linalg.solve(XS.T @ XS, torch.sign(w[support]))
    return jacobian


# The dual of a multiclass support vector machine: projected gradient on a product of simplices.
CLASSES = torch.nn.functional.one_hot(torch.arange(12) % 3, 3).to(DOUBLE)
GRAM = X @ X.T


def simplex(v: torch.Tensor) -> torch.Tensor:
    ordered = v.sort(dim=-1, descending=True).values
    sums = ordered.cumsum(-1) - 1
    ranks = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype)
    count = (ordered - sums / ranks > 0).sum(-1, keepdim=True)
    return torch.relu(v - sums.gather(-1, count - 1) / count)


def svm_objective(beta: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    V = CLASSES - beta
    return (V * (GRAM @ V)).sum() / (2 * penalty) - (beta * (1 - CLASSES)).sum()


def svm_step(beta: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return simplex(beta - 0.3 * grad(svm_objective)(beta, penalty))


def svm_optimality(beta: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return svm_step(beta, penalty) - beta


def svm(beta: Any, penalty: torch.Tensor) -> torch.Tensor:
    beta = torch.full((12, 3), 1 / 3, dtype=DOUBLE)
    for _ in range(1500):
        beta = svm_step(beta, penalty)
    return beta


def svm_primal(penalty: torch.Tensor) -> torch.Tensor:
    """The weights, which are unique although the dual variables need not be."""
    return X.T @ (CLASSES - custom_root(svm_optimality, solve=solve_normal_cg(tol=1e-13))(svm)(None, penalty)) / penalty


# Equality-constrained least squares by its KKT system: the unknown is the pair of primal and dual variables.
C = torch.from_numpy(RNG.standard_normal((2, 4)))


def kkt_optimality(z: Any, y: torch.Tensor, d: torch.Tensor) -> Any:
    x, multipliers = z
    return X.T @ (X @ x - y) + C.T @ multipliers, C @ x - d


def kkt(z: Any, y: torch.Tensor, d: torch.Tensor) -> Any:
    matrix = torch.cat([torch.cat([X.T @ X, C.T], 1), torch.cat([C, torch.zeros(2, 2, dtype=DOUBLE)], 1)])
    solution = torch.linalg.inv(matrix) @ torch.cat([X.T @ y, d])
    return solution[:4], solution[4:]


# A root of an equation whose Jacobian is not symmetric.
M = torch.from_numpy(0.3 * RNG.standard_normal((4, 4)))


def equilibrium(z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return torch.tanh(M @ z + u)


def unrolled(z: Any, u: torch.Tensor) -> torch.Tensor:
    z = torch.zeros(4, dtype=DOUBLE)
    for _ in range(200):
        z = equilibrium(z, u)
    return z


PROBLEMS = {
    'ridge': Problem(
        ridge_optimality,
        ridge,
        torch.tensor(0.7, dtype=DOUBLE),
        lambda: jacrev(ridge, argnums=1)(None, torch.tensor(0.7, dtype=DOUBLE)),
    ),
    'logistic': Problem(
        logistic_optimality,
        lambda w, p: newton(logistic_optimality, torch.zeros(4, dtype=DOUBLE), p),
        torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=DOUBLE),
        jaxopt_logistic,
    ),
    'lasso': Problem(lasso_optimality, lasso, torch.tensor(1.5, dtype=DOUBLE), lasso_closed_form, symmetric=False),
    'equilibrium': Problem(
        lambda z, u: equilibrium(z, u) - z,
        unrolled,
        torch.tensor([0.1, -0.2, 0.3, 0.4], dtype=DOUBLE),
        lambda: jacrev(unrolled, argnums=1)(None, torch.tensor([0.1, -0.2, 0.3, 0.4], dtype=DOUBLE)),
        symmetric=False,
    ),
}


@pytest.mark.parametrize('mode', [jacrev, jacfwd])
@pytest.mark.parametrize('solver', SOLVERS)
@pytest.mark.parametrize('name', PROBLEMS)
def test_jacobian(name: str, solver: str, mode: Any) -> None:
    problem = PROBLEMS[name]
    if solver == 'cg' and not problem.symmetric:
        pytest.skip('needs a symmetric Jacobian')
    solve = custom_root(problem.optimality, solve=SOLVERS[solver])(problem.solve)
    found = mode(lambda theta: solve(None, theta))(problem.theta)
    torch.testing.assert_close(found, problem.jacobian(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('name', PROBLEMS)
def test_root_vjp_and_root_jvp(name: str) -> None:
    problem = PROBLEMS[name]
    x, jacobian = problem.solve(None, problem.theta), problem.jacobian()
    n = x.numel()
    rows = [root_vjp(problem.optimality, x, (problem.theta,), e, solve_lu)[0] for e in torch.eye(n, dtype=DOUBLE)]
    torch.testing.assert_close(torch.stack(rows), jacobian, rtol=1e-8, atol=1e-8)
    directions = torch.eye(max(problem.theta.numel(), 1), dtype=DOUBLE).reshape(-1, *problem.theta.shape)
    columns = [root_jvp(problem.optimality, x, (problem.theta,), (t,), solve_lu) for t in directions]
    torch.testing.assert_close(torch.stack(columns, -1).reshape(jacobian.shape), jacobian, rtol=1e-8, atol=1e-8)


def test_second_derivatives_of_the_logistic_regression() -> None:
    problem = PROBLEMS['logistic']
    solve = custom_root(problem.optimality, solve=solve_cg(tol=1e-14))(problem.solve)
    loss = lambda theta: solve(None, theta).pow(3).sum()  # noqa: E731
    found = hessian(loss)(problem.theta)
    step = 1e-5
    for i, e in enumerate(torch.eye(4, dtype=DOUBLE)):
        difference = (grad(loss)(problem.theta + step * e) - grad(loss)(problem.theta - step * e)) / (2 * step)
        torch.testing.assert_close(found[i], difference, rtol=1e-6, atol=1e-8)
    theta = problem.theta.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda t: solve(None, t), (theta,))


@pytest.mark.long
def test_dual_of_a_support_vector_machine() -> None:
    penalty = torch.tensor(10.0, dtype=torch.float64)
    found = jacrev(svm_primal)(penalty)
    assert found.abs().max() > 1e-2

    def theirs(penalty: Any) -> Any:
        K, classes = jnp.asarray(GRAM.numpy()), jnp.asarray(CLASSES.numpy())

        def objective(beta: Any, penalty: Any) -> Any:
            V = classes - beta
            return (V * (K @ V)).sum() / (2 * penalty) - (beta * (1 - classes)).sum()

        solver = jaxopt.ProjectedGradient(
            objective,
            lambda v, _: jax.vmap(jaxopt.projection.projection_simplex)(v),
            tol=1e-14,
            maxiter=20000,
            stepsize=0.3,
            acceleration=False,
            implicit_diff_solve=partial(jaxopt.linear_solve.solve_normal_cg, tol=1e-14, maxiter=2000),
        )
        beta = solver.run(jnp.full((12, 3), 1 / 3), penalty=penalty).params
        return jnp.asarray(X_NUMPY).T @ (classes - beta) / penalty

    compiled = jax.jit(theirs)  # once, for three penalties
    torch.testing.assert_close(svm_primal(penalty), torch.tensor(np.asarray(compiled(10.0))), rtol=1e-10, atol=1e-10)
    expected = np.asarray(jax.jacrev(theirs)(10.0))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-8, atol=1e-9)
    step = 1e-4
    difference = (np.asarray(compiled(10.0 + step)) - np.asarray(compiled(10.0 - step))) / (2 * step)
    torch.testing.assert_close(found, torch.from_numpy(difference), rtol=1e-6, atol=1e-8)


def test_kkt_system() -> None:
    d = torch.tensor([0.5, -1.0], dtype=DOUBLE)
    solve = custom_root(kkt_optimality, solve=solve_normal_cg(tol=1e-14))(kkt)
    for mode in (jacrev, jacfwd):
        found = mode(lambda y, d: solve(None, y, d), argnums=(0, 1))(Y, d)
        expected = mode(lambda y, d: kkt(None, y, d), argnums=(0, 1))(Y, d)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.long
def test_as_jaxopt_itself() -> None:
    """The same decorator on the same problem in both libraries, with all arguments at once."""

    def jax_optimality(w: Any, penalty: Any, data: Any) -> Any:
        X, y = data
        return {'w': X.T @ (X @ w['w'] + w['b'] - y) + penalty * w['w'], 'b': (X @ w['w'] + w['b'] - y).sum() + w['b']}

    def optimality(w: Any, penalty: Any, data: Any) -> Any:
        return jax_optimality(w, penalty, data)  # arithmetic alone, which serves tensors and arrays

    def solution(X: Any, y: Any, penalty: float) -> Any:
        A = np.block([[X.T @ X + penalty * np.eye(4), X.sum(0)[:, None]], [X.sum(0)[None], np.array([[len(y) + 1.0]])]])
        w = np.linalg.solve(A, np.concatenate([X.T @ y, [y.sum()]]))
        return {'w': w[:4], 'b': w[4]}

    fixed = solution(X_NUMPY, Y_NUMPY, 0.7)

    @jaxopt.implicit_diff.custom_root(jax_optimality, solve=jaxopt.linear_solve.solve_gmres)
    def their_solver(init: Any, penalty: Any, data: Any) -> Any:
        return jax.tree_util.tree_map(jnp.asarray, fixed)

    @custom_root(optimality, solve=partial(solve_gmres, tol=1e-13))
    def our_solver(init: Any, penalty: Any, data: Any) -> Any:
        return {k: torch.tensor(v) for k, v in fixed.items()}

    def theirs(penalty: Any, data: Any) -> Any:
        w = their_solver(None, penalty, data)
        return (w['w'] ** 2).sum() + w['b'] ** 3

    def ours(penalty: Any, data: Any) -> Any:
        w = our_solver(None, penalty, data)
        return (w['w'] ** 2).sum() + w['b'] ** 3

    data = (jnp.asarray(X_NUMPY), jnp.asarray(Y_NUMPY))
    expected = jax.grad(theirs, argnums=(0, 1))(0.7, data)
    found = grad(ours, argnums=(0, 1))(torch.tensor(0.7, dtype=DOUBLE), (X, Y))
    # JAXopt's gmres stops at 1e-5 of the right-hand side
    torch.testing.assert_close(found[0], torch.tensor(float(expected[0]), dtype=DOUBLE), rtol=1e-5, atol=1e-8)
    for a, b in zip(found[1], expected[1]):
        torch.testing.assert_close(a, torch.tensor(np.asarray(b)), rtol=1e-4, atol=1e-7)


def test_fixed_point_of_a_tree() -> None:
    def T(z: Any, u: torch.Tensor) -> Any:
        return {'a': torch.tanh(M[:2, :2] @ z['a'] + u[:2] + z['b']), 'b': torch.sin(0.3 * z['a'].sum() + u[2])}

    def iterate(z: Any, u: torch.Tensor) -> Any:
        for _ in range(300):
            z = T(z, u)
        return z

    start = {'a': torch.zeros(2, dtype=DOUBLE), 'b': torch.zeros((), dtype=DOUBLE)}
    u = torch.tensor([0.1, 0.2, 0.3], dtype=DOUBLE)
    solve = custom_fixed_point(T, solve=partial(solve_gmres, tol=1e-14))(iterate)
    for mode in (jacrev, jacfwd):
        found, expected = (mode(lambda u, f=f: f(start, u))(u) for f in (solve, iterate))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
