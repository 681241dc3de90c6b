# SPDX-License-Identifier: Apache-2.0
"""A matvec closes over tensors in many ways; each gives a gradient, or an error, and never a wrong number."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import torchopt
from tests.linear_solve.test_solutions import matrix, vector
from torchopt.autodiff import closure_convert
from torchopt.implicit_diff import custom_root
from torchopt.linear_solve import solve_cg, solve_lu, solve_normal_cg

solve = functools.partial(solve_cg, tol=1e-14)


LINEAR = nn.Linear(4, 4, bias=False)


def as_module(S: torch.Tensor) -> Callable[..., Any]:
    """A module that has the matrix among its parameters, a tensor with a graph."""
    module = nn.Sequential(copy.deepcopy(LINEAR))
    del module[0].weight
    module[0].weight = S
    return module


def quadratic(S: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x @ S @ x / 2 + (x**4).sum() / 12


POINT = vector(4, seed=7)

MATVECS: dict[str, Callable[[torch.Tensor], Callable[..., Any]]] = {
    'bound method': lambda S: S.matmul,
    'lambda': lambda S: lambda v: S @ v,
    'operator and scalar': lambda S: lambda v: S.T @ v * 1.0 + 0 * v,
    'partial': lambda S: functools.partial(torch.matmul, S),
    'default argument': lambda S: lambda v, S=S: torch.mv(S, v),
    'keyword': lambda S: lambda v: torch.matmul(input=S, other=v),
    'list of tensors': lambda S: lambda v: torch.linalg.multi_dot([S, v]),
    'factors': lambda S: functools.partial(lambda L, v: L @ (L.T @ v), torch.linalg.cholesky(S)),
    'module': as_module,
    'functional_call': lambda S: lambda v: torch.func.functional_call(LINEAR, {'weight': S}, (v,)),
    'indexing': lambda S: lambda v: torch.stack([S[i] @ v for i in range(4)]),
    'torch.func.jvp': lambda S: lambda v: torch.func.jvp(lambda z: S @ z, (v,), (v,))[1],
    'checkpoint': lambda S: lambda v: torch.utils.checkpoint.checkpoint(torch.matmul, S, v, use_reentrant=False),
}


@pytest.mark.parametrize('name', MATVECS)
def test_each_way_to_close_over_a_tensor(name: str) -> None:
    A, b = matrix(4).requires_grad_(), vector(4).requires_grad_()

    def x(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return solve(MATVECS[name]((A + A.mT) / 2), b)

    assert gradcheck(x, (A, b))
    assert gradgradcheck(x, (A, b))


@pytest.mark.parametrize('name', sorted(set(MATVECS) - {'checkpoint'}))
def test_under_torch_func(name: str) -> None:
    A, b = matrix(4), vector(4)
    ours = lambda A: solve(MATVECS[name]((A + A.mT) / 2), b)  # noqa: E731
    exact = lambda A: torch.linalg.inv((A + A.mT) / 2) @ b  # noqa: E731
    for mode in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(mode(ours)(A), mode(exact)(A), rtol=1e-8, atol=1e-9)
    As = torch.stack([matrix(4, seed) for seed in range(3)])
    torch.testing.assert_close(torch.vmap(ours)(As), torch.vmap(exact)(As))
    mapped = torch.vmap(torch.func.grad(lambda A: ours(A).sum()))(As)
    torch.testing.assert_close(mapped, torch.vmap(torch.func.grad(lambda A: exact(A).sum()))(As), rtol=1e-8, atol=1e-9)


def hessian_product_by_a_graph(S: torch.Tensor, x: torch.Tensor) -> Callable[..., Any]:
    (g,) = torch.autograd.grad(quadratic(S, x), x, create_graph=True)
    return lambda v: torch.autograd.grad(g, x, v, create_graph=True)[0]


def hessian_product_by_func_vjp(S: torch.Tensor, x: torch.Tensor) -> Callable[..., Any]:
    pull = torch.func.vjp(torch.func.grad(lambda x: quadratic(S, x)), x)[1]
    return lambda v: pull(v)[0]


def hessian_product_inside(S: torch.Tensor, x: torch.Tensor) -> Callable[..., Any]:
    return lambda v: torch.func.jvp(torch.func.grad(lambda x: quadratic(S, x)), (x,), (v,))[1]


def hessian_product_by_vjp_inside(S: torch.Tensor, x: torch.Tensor) -> Callable[..., Any]:
    return lambda v: torch.func.vjp(torch.func.grad(lambda x: quadratic(S, x)), x)[1](v)[0]


def exact_newton_step(S: torch.Tensor, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve((S + S.mT) / 2 + torch.diag(x**2), b)


HIDDEN = [hessian_product_by_a_graph, hessian_product_by_func_vjp, hessian_product_by_vjp_inside]


@pytest.mark.parametrize('product', [hessian_product_inside, *HIDDEN])
def test_hessian_products_have_first_derivatives(product: Callable[..., Any]) -> None:
    S, x, b = (t.requires_grad_() for t in (matrix(4), POINT.clone(), vector(4)))
    found = torch.autograd.grad(solve(product(S, x), b).sum(), (S, x, b))
    expected = torch.autograd.grad(exact_newton_step(S, x, b).sum(), (S, x, b))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('product', HIDDEN)
def test_second_derivatives_are_right_or_refused(product: Callable[..., Any]) -> None:
    S, x, b = (t.requires_grad_() for t in (matrix(4), POINT.clone(), vector(4)))
    (g,) = torch.autograd.grad(solve(product(S, x), b).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r'solve_cg: second derivatives'):
        torch.autograd.grad(g.sum(), S, allow_unused=True)


@pytest.mark.parametrize('product', HIDDEN)
def test_second_derivatives_in_the_cotangent_are_refused_too(product: Callable[..., Any]) -> None:
    x, b, factor = POINT.clone().requires_grad_(), vector(4), torch.ones((), dtype=torch.float64, requires_grad=True)
    loss = factor * solve(product(matrix(4), x), b).sum()
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=r'solve_cg: second derivatives'):
        torch.autograd.grad(g.sum(), factor, allow_unused=True)


@pytest.mark.long
def test_second_derivatives_of_a_product_computed_inside() -> None:
    b = vector(4)
    S, x = matrix(4).requires_grad_(), POINT.clone().requires_grad_()
    assert gradgradcheck(lambda S, x: solve(hessian_product_inside((S + S.mT) / 2, x), b), (S, x))


class Doubled(torch.autograd.Function):
    """A function whose use of a tensor no mode sees."""

    @staticmethod
    def forward(ctx: Any, S: torch.Tensor) -> torch.Tensor:
        return 2 * S.detach()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 2 * g


def scripted_product(B: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """A function for ``torch.jit.script``, whose operations no mode sees."""
    return B @ v


def by_two_outputs_of_a_node(S: torch.Tensor) -> Callable[..., Any]:
    seen, hidden = torch.stack([S, S]).unbind()
    return lambda v: seen @ v + Doubled.apply(hidden) @ v


def by_another_thread(S: torch.Tensor) -> Callable[..., Any]:
    def product(v: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(1) as pool:
            return 3 * pool.submit(torch.mv, S, v).result()

    return product


def by_another_thread_too(S: torch.Tensor) -> Callable[..., Any]:
    """The nodes of the other thread get later sequence numbers, as if they were created in this run."""
    count, one = torch._C._autograd._get_sequence_nr, torch.ones(()).requires_grad_()
    until = count() + 100

    def double() -> torch.Tensor:
        while count() < until:
            one.clone()
        return 2 * S

    def product(v: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(1) as pool:
            return S @ v + pool.submit(double).result() @ v

    return product


def by_a_function_with_a_closure(S: torch.Tensor) -> Callable[..., Any]:
    return torch.overrides.wrap_torch_function(lambda v: (v,))(lambda v: 3 * S @ v)


# Products with 3 S, in which no mode sees all uses of S.
PARTLY_HIDDEN: dict[str, Callable[[torch.Tensor], Callable[..., Any]]] = {
    'autograd Function': lambda S: lambda v: 1.5 * Doubled.apply(S) @ v,
    'the same tensor seen first': lambda S: lambda v: S @ v + Doubled.apply(S) @ v,
    'the same tensor seen last': lambda S: lambda v: Doubled.apply(S) @ v + S @ v,
    'the same tensor within vmap': lambda S: lambda v: S @ v + 2 * torch.vmap(lambda row: row @ v)(S),
    'the same tensor within vjp': lambda S: lambda v: S @ v + 2 * torch.func.vjp(lambda S: S @ v, S)[0],
    'the same tensor within jvp': lambda S: lambda v: S @ v + 2 * torch.func.jvp(lambda S: S @ v, (S,), (S,))[1],
    'two outputs of a node': by_two_outputs_of_a_node,
    'another thread': by_another_thread,
    'another thread, and this one': by_another_thread_too,
    'the samples of a vmap': lambda S: lambda v: S @ v + torch.vmap(lambda row: 2 * row @ v)(S),
    'a function with a closure': by_a_function_with_a_closure,
}


@pytest.mark.parametrize('name', PARTLY_HIDDEN)
def test_uses_that_no_mode_sees(name: str) -> None:
    S, b = matrix(4).requires_grad_(), vector(4)

    def derivative() -> torch.Tensor:
        return torch.autograd.grad(solve(PARTLY_HIDDEN[name](S), b).sum(), S)[0]

    with ThreadPoolExecutor(1) as pool:  # in a new thread, whose sequence numbers are small, as those of the others
        found = pool.submit(derivative).result()
    (expected,) = torch.autograd.grad(torch.linalg.solve(3 * S, b).sum(), S)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_a_tangent_that_no_mode_sees_is_not_lost() -> None:
    S, B, b = matrix(4).requires_grad_(), matrix(4, seed=5), vector(4)
    script = torch.jit.script(scripted_product)  # type: ignore[no-untyped-call]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(B, torch.eye(4, dtype=B.dtype))
        assert not closure_convert(lambda x: [S @ x[0] + script(dual, x[0])], [b]).is_complete


def test_each_use_that_a_mode_sees_takes_two_runs() -> None:
    runs = []
    S = matrix(4).requires_grad_()

    def product(v: torch.Tensor) -> torch.Tensor:
        runs.append(None)
        return (S + S.T) @ v / 2

    found = closure_convert(lambda x: [product(*x)], [vector(4)])
    assert found.is_complete and found.captured[0] is S and len(runs) == 2


SOLVERS = {
    'solve_cg': solve,
    'with a ridge': functools.partial(solve, ridge=0.0),
    'with a preconditioner': functools.partial(solve, M=lambda r: r / 2),
    'solve_normal_cg': functools.partial(solve_normal_cg, tol=1e-14),
    'solve_lu': solve_lu,
    'custom_root': lambda matvec, b: custom_root(lambda x: [y - b for y in [matvec(*x)]])(lambda init: init)(
        [solve_lu(matvec, b)]
    )[0],
}


@pytest.mark.parametrize('name', SOLVERS)
@pytest.mark.parametrize('second', [False, True])
def test_variables_of_a_loop_have_their_values_of_the_solve_in_the_backward_pass(name: str, second: bool) -> None:
    penalties = [torch.tensor(float(k), dtype=torch.float64, requires_grad=True) for k in (1, 2)]
    b = vector(4)

    def gradients(solve: Callable[..., Any]) -> list[torch.Tensor]:
        solutions = []
        for k, penalty in enumerate(penalties):
            factor, A = 1.0 + k, matrix(4, seed=k)
            solutions.append(solve(lambda v: factor * (A @ v) + penalty * v, b))  # noqa: B023 (the subject of this test)
        found = torch.autograd.grad(torch.stack(solutions).square().sum(), penalties, create_graph=second)
        return list(torch.autograd.grad(sum(found), penalties) if second else found)

    expected = gradients(lambda matvec, b: torch.linalg.solve(torch.vmap(matvec)(torch.eye(4, dtype=b.dtype)).T, b))
    torch.testing.assert_close(gradients(SOLVERS[name]), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('late', [False, True], ids=['hooks before', 'hooks after the solve'])
@pytest.mark.parametrize('is_leaf', [True, False])
@pytest.mark.parametrize('solver', [solve, functools.partial(solve_normal_cg, tol=1e-14), solve_lu, 'root', 'LBFGS'])
def test_hooks_of_tensors_run_once(solver: Any, is_leaf: bool, late: bool) -> None:
    A, b, calls = matrix(4).requires_grad_(), vector(4), []
    M = A if is_leaf else A * 1.0

    def hook(x: torch.Tensor) -> None:
        x.register_hook(lambda g: calls.append(1) or 2.0 * g)
        if not is_leaf:
            x.retain_grad()

    if not late:
        hook(M)
    if solver == 'root':
        x = custom_root(lambda x: M @ x - b)(lambda _: torch.linalg.solve(M.detach(), b))(None)
    elif solver == 'LBFGS':
        objective = lambda x: 0.5 * ((M @ x) ** 2).sum() - b @ (M @ x)  # noqa: E731
        x = torchopt.LBFGS(objective, tol=1e-12, maxiter=200).run(torch.zeros_like(b)).params
    else:
        x = solver(lambda v: M @ v, b)
    if late:
        hook(M)
    x.sum().backward()
    exact = matrix(4).requires_grad_()
    (expected,) = torch.autograd.grad(torch.linalg.solve(exact, b).sum(), exact)
    torch.testing.assert_close(A.grad, 2.0 * expected, rtol=1e-6, atol=1e-8)
    assert len(calls) == 1
    if not is_leaf:
        torch.testing.assert_close(M.grad, A.grad)


@pytest.mark.parametrize('solver', [solve, solve_lu, functools.partial(solve_normal_cg, tol=1e-14)])
@pytest.mark.parametrize('context', [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_the_backward_pass_may_run_in_any_mode(context: Any, solver: Any) -> None:
    A, b = matrix(4).requires_grad_(), vector(4).requires_grad_()
    value, expected = solver(lambda v: A @ v, b).sum(), torch.linalg.solve(A, b).sum()
    with context():
        found = torch.autograd.grad(value, [A, b])
    for x, y in zip(found, torch.autograd.grad(expected, [A, b])):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-8)


def test_leaves_created_inside_and_detached_tensors_have_second_derivatives() -> None:
    A, b = matrix(4), vector(4).requires_grad_()

    def created(v: torch.Tensor) -> torch.Tensor:
        return torch.tensor(2.0, dtype=torch.float64, requires_grad=True) * (A @ v)

    (found,) = torch.autograd.grad(solve(created, b).sum(), b, create_graph=True)
    torch.testing.assert_close(found, torch.linalg.solve(2.0 * A, torch.ones_like(b)))
    w, S = torch.ones((), dtype=torch.float64, requires_grad=True), matrix(4).requires_grad_()

    def twice(x: torch.Tensor) -> torch.Tensor:
        (g,) = torch.autograd.grad(x.square().sum(), S, create_graph=True)
        return torch.autograd.grad(g.square().sum(), S)[0]

    found = twice(solve(lambda v: (S + S.mT) @ v / 2 + w.detach() * v, b.detach()))
    exact = torch.linalg.solve((S + S.mT) / 2 + torch.eye(4, dtype=b.dtype), b.detach())
    torch.testing.assert_close(found, twice(exact))


def test_a_leaf_that_the_product_creates_is_no_input() -> None:
    A, b = matrix(4), vector(4)

    @torch.enable_grad()
    def product(v: torch.Tensor) -> torch.Tensor:
        x = torch.zeros_like(b).requires_grad_()
        (g,) = torch.autograd.grad(x @ A @ x / 2, x, create_graph=True)
        return torch.autograd.grad(g, x, v, create_graph=True)[0] + 0.0 * x

    assert not solve(product, b).requires_grad
    penalty = torch.ones((), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(solve(lambda v: product(v) + penalty * v, b).sum(), penalty)
    (expected,) = torch.autograd.grad(torch.linalg.solve(A + penalty * torch.eye(4, dtype=b.dtype), b).sum(), penalty)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('solve', [solve, functools.partial(solve_normal_cg, tol=1e-14)], ids=['cg', 'normal_cg'])
def test_a_product_that_keeps_a_result_has_first_derivatives(solve: Callable[..., Any]) -> None:
    S, b, kept = matrix(4).requires_grad_(), vector(4), []

    def product(v: torch.Tensor) -> torch.Tensor:
        if not kept:
            kept.append(torch.linalg.cholesky(S))
        return kept[0] @ (kept[0].T @ v)

    x = solve(product, b).sum()
    (expected,) = torch.autograd.grad(torch.cholesky_solve(b[:, None], torch.linalg.cholesky(S)).sum(), S)
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(x, S, retain_graph=True)[0], expected)


@pytest.mark.parametrize('options', [{'ridge': 0.1}, {'M': lambda r: r}])
def test_hidden_graphs_do_not_go_with_all_options(options: dict[str, Any]) -> None:
    S, x = matrix(4).requires_grad_(), POINT.clone().requires_grad_()
    with pytest.raises(RuntimeError, match='graph that was recorded before'):
        solve(hessian_product_by_a_graph(S, x), vector(4), **options)
    with pytest.raises(RuntimeError, match='graph that was recorded before'):
        solve_normal_cg(hessian_product_by_a_graph(S, x), vector(4))


def test_hidden_graphs_under_torch_func_are_refused() -> None:
    def loss(S: torch.Tensor) -> torch.Tensor:
        return solve(hessian_product_by_func_vjp(S, POINT), vector(4)).sum()

    with pytest.raises(RuntimeError, match=r'solve_cg: under torch.func'):
        torch.func.grad(loss)(matrix(4))


def test_a_product_without_a_graph_is_a_constant_matrix() -> None:
    x = POINT.clone().requires_grad_()
    (g,) = torch.autograd.grad(quadratic(matrix(4), x), x, create_graph=True)
    b = vector(4).requires_grad_()
    step = solve(lambda v: torch.autograd.grad(g, x, v, retain_graph=True)[0], b)
    found = torch.autograd.grad(step.sum(), (b, x), allow_unused=True)
    torch.testing.assert_close(found[0], exact_newton_step(matrix(4), POINT, torch.ones(4, dtype=torch.float64)))
    assert found[1] is None


def test_solvers_inside_of_solvers() -> None:
    A, B = matrix(3).requires_grad_(), matrix(3, seed=5).requires_grad_()
    b = vector(3)

    def x(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        A, B = (A + A.mT) / 2, (B + B.mT) / 2
        return solve_lu(lambda v: A @ v + solve(B.matmul, v), b)

    assert gradcheck(x, (A, B), check_forward_ad=True)
    assert gradgradcheck(x, (A, B))
