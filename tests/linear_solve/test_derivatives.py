# SPDX-License-Identifier: Apache-2.0
"""The derivative of every linear solver, in the matrix and in the right-hand side, in every mode and to third order."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from tests.linear_solve.test_solutions import Case, every_solver, matrix, vector
from torchopt.linear_solve import solve_cg, solve_gmres, solve_lu, solve_normal_cg


def as_function(case: Case) -> Any:
    """``x(A, b)``; for methods that take the matrix for symmetric, of its symmetric part."""
    symmetric = case.positive or 'ns' in case.options

    def x(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return case.solve(((A + A.mT) / 2 if symmetric else A).matmul, b)

    def exact(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        # Not torch.linalg.solve, whose derivatives are wrong (torch 2.13) where forward mode goes over them.
        return torch.linalg.inv((A + A.mT) / 2 if symmetric else A) @ b

    return x, exact


@every_solver
def test_gradcheck(case: Case) -> None:
    A, b = matrix(4).requires_grad_(), vector(4).requires_grad_()
    x, _ = as_function(case)
    assert gradcheck(x, (A, b), check_forward_ad=True)
    assert gradgradcheck(x, (A, b), atol=1e-4)


@every_solver
@pytest.mark.parametrize(
    'modes', [(jacrev,), (jacfwd,), (jacrev, jacrev), (jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)]
)
def test_jacobians_under_torch_func(case: Case, modes: tuple[Any, ...]) -> None:
    A, b = matrix(3), vector(3)
    ours, exact = as_function(case)
    for mode in modes:
        ours, exact = mode(ours, argnums=0), mode(exact, argnums=0)
    torch.testing.assert_close(ours(A, b), exact(A, b), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize('case', [Case('solve_cg', {'tol': 1e-14}, True), Case('solve_lu', {})], ids=lambda c: c.name)
def test_third_order(case: Case) -> None:
    A, b = matrix(3), vector(3)
    ours, exact = as_function(case)
    scalar = lambda f: lambda t: f(A + t * torch.eye(3), b * t).square().sum()  # noqa: E731
    t = torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(
        grad(grad(grad(scalar(ours))))(t), grad(grad(grad(scalar(exact))))(t), rtol=1e-7, atol=1e-9
    )


@every_solver
def test_gradients_of_mapped_systems(case: Case) -> None:
    As, bs = torch.stack([matrix(3, seed) for seed in range(4)]), vector(4, 3)
    ours, exact = as_function(case)
    loss = lambda f: lambda A, b: f(A, b).pow(3).sum()  # noqa: E731
    for f in (grad, hessian):
        mapped = vmap(f(loss(ours)))(As, bs)
        torch.testing.assert_close(mapped, vmap(f(loss(exact)))(As, bs), rtol=1e-7, atol=1e-9)
    # the gradient of a map, with one matrix for all and one for each
    for dims, A in (((0, 0), As), ((None, 0), As[0])):
        A = A.clone().requires_grad_()
        b = bs.clone().requires_grad_()
        found = torch.autograd.grad(vmap(ours, dims)(A, b).pow(3).sum(), (A, b))
        expected = torch.autograd.grad(vmap(exact, dims)(A, b).pow(3).sum(), (A, b))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    'solve',
    [partial(solve_normal_cg, tol=1e-14), partial(solve_gmres, tol=1e-14), solve_lu],
    ids=['normal_cg', 'gmres', 'lu'],
)
def test_complex(solve: Any) -> None:
    A = (matrix(3, dtype=torch.complex128) + torch.triu(vector(3, 3, dtype=torch.complex128))).requires_grad_()
    b = vector(3, dtype=torch.complex128).requires_grad_()
    torch.testing.assert_close(solve(A.matmul, b), torch.linalg.solve(A, b))
    assert gradcheck(lambda A, b: solve(A.matmul, b), (A, b))
    assert gradgradcheck(lambda A, b: solve(A.matmul, b), (A, b))


def test_ridge_init_and_preconditioner() -> None:
    A, b = matrix(4).requires_grad_(), vector(4).requires_grad_()
    ridge = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    start, scale = vector(4, seed=3).requires_grad_(), torch.ones(4, dtype=torch.float64, requires_grad=True)

    def ours(A: Any, b: Any, ridge: Any) -> Any:
        S = (A + A.mT) / 2
        return solve_cg(S.matmul, b, ridge, start, tol=1e-14, M=lambda r: scale * r)

    assert gradcheck(ours, (A, b, ridge), check_forward_ad=True)
    assert gradgradcheck(ours, (A, b, ridge))
    x = ours(A, b, ridge).sum()
    # The solution depends on neither, so they have no gradient.
    assert torch.autograd.grad(x, (start, scale), allow_unused=True) == (None, None)
    mapped = vmap(lambda r: ours(A.detach(), b.detach(), r))(torch.tensor([0.1, 2.0], dtype=torch.float64))
    for i, r in enumerate((0.1, 2.0)):
        torch.testing.assert_close(mapped[i], torch.linalg.solve(A + r * torch.eye(4), b).detach())


def test_preconditioner_of_each_system() -> None:
    As, bs = torch.stack([matrix(3, seed) for seed in range(3)]), vector(3, 3)
    x = vmap(lambda A, b: solve_gmres(A.matmul, b, tol=1e-13, M=lambda r: r / A.diagonal()))(As, bs)
    torch.testing.assert_close(x, torch.linalg.solve(As, bs))


def test_least_squares() -> None:
    A, b = vector(5, 2).requires_grad_(), vector(5, seed=4).requires_grad_()
    start = torch.zeros(2, dtype=torch.float64)
    solve = lambda A, b: solve_normal_cg(A.matmul, b, init=start, tol=1e-14)  # noqa: E731
    assert gradcheck(solve, (A, b), check_forward_ad=True)
    assert gradgradcheck(solve, (A, b))


def test_trees_and_coupled_blocks() -> None:
    # Q21: the blocks off the diagonal count; Q18: a 0-d unknown among them.
    c = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    b = {'a': torch.tensor(1.0, dtype=torch.float64), 'b': vector(2)}

    def total(c: torch.Tensor) -> torch.Tensor:
        x = solve_lu(lambda x: {'a': 2 * x['a'] + c * x['b'].sum(), 'b': 2 * x['b'] + c * x['a']}, b)
        return x['a'] + x['b'].prod()

    assert gradcheck(total, (c,), check_forward_ad=True)
    assert gradgradcheck(total, (c,))


def test_batches_of_the_old_kind_are_refused() -> None:
    A, b = matrix(3), vector(3).requires_grad_()
    x = solve_cg(A.matmul, b)
    with pytest.raises(RuntimeError, match=r'torch.func.jacrev'):
        torch.autograd.grad(x, b, torch.eye(3, dtype=torch.float64), is_grads_batched=True)


def test_nothing_is_recorded_of_the_iteration() -> None:
    A, b = matrix(50).requires_grad_(), vector(50).requires_grad_()
    x = solve_cg(A.matmul, b, tol=1e-12)
    node = x.grad_fn
    seen = {node}
    pending = [node]
    while pending:
        for following, _ in pending.pop().next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    assert len(seen) <= 4  # the solve, A, b, and a view


def test_no_graph_where_none_is_wanted() -> None:
    A, b = matrix(4).requires_grad_(), vector(4)
    with torch.no_grad():
        assert not solve_cg(A.matmul, b).requires_grad
    assert not solve_cg(A.detach().matmul, b).requires_grad
    assert solve_cg(A.matmul, b).requires_grad


def test_jvp_of_one_argument_alone() -> None:
    A, b, t = matrix(4), vector(4), vector(4, seed=2)
    _, tangent = jvp(lambda b: solve_cg(A.matmul, b, tol=1e-14), (b,), (t,))
    torch.testing.assert_close(tangent, torch.linalg.solve(A, t))


@every_solver
@pytest.mark.filterwarnings('ignore::torchopt.linear_solve.LinearSolveWarning')
def test_a_gradient_in_autocast(case: Case) -> None:
    A = (2 * torch.eye(3)).requires_grad_()
    x = case.solve(A.matmul, torch.ones(3))
    with torch.autocast('cpu', torch.bfloat16):  # whose products have another dtype, and are exact here
        x.sum().backward()
    assert A.grad is not None and torch.equal(A.grad, torch.full((3, 3), -0.25))
