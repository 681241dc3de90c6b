# SPDX-License-Identifier: Apache-2.0
"""In inference mode, where autograd records nothing, products with Jacobians are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchopt
from torchopt import linear_solve
from torchopt.implicit_diff import custom_fixed_point, custom_root, root_jvp, root_vjp

f64 = torch.float64


def matrix() -> torch.Tensor:
    return torch.tensor([[4.0, 1.0, 0.5], [1.5, 3.0, 0.2], [0.1, 0.4, 5.0]], dtype=f64)


def residual(w: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return matrix() @ w + w**3 - a


def solution(a: torch.Tensor) -> torch.Tensor:
    w = torch.zeros_like(a)
    for _ in range(20):
        w = w - torch.linalg.solve(matrix() + torch.diag(3 * w**2), residual(w, a))
    return w


def gradient(w: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    symmetric = matrix() + matrix().T
    return torch.func.grad(lambda w: 0.5 * w @ symmetric @ w + 0.25 * (w**4).sum() - w @ a)(w)


SOLVERS: dict[str, Callable[..., Any]] = {
    'cg': linear_solve.solve_cg(tol=1e-12),
    'normal_cg': linear_solve.solve_normal_cg(tol=1e-12),
    'bicgstab': linear_solve.solve_bicgstab(tol=1e-12),
    'gmres': linear_solve.solve_gmres(tol=1e-12),
    'lu': linear_solve.solve_lu(),
    'qr': linear_solve.solve_qr(),
    'inv': linear_solve.solve_inv(),
    'cholesky': linear_solve.solve_cholesky(),
    'refinement': linear_solve.solve_iterative_refinement(tol=1e-12),
}


@pytest.mark.parametrize('name', SOLVERS)
def test_solutions(name: str) -> None:
    A = matrix() + matrix().T if name in ('cg', 'cholesky') else matrix()
    b = torch.tensor([1.0, 2.0, 3.0], dtype=f64)
    expected = torch.linalg.solve(A, b)
    with torch.inference_mode():
        torch.testing.assert_close(SOLVERS[name](A.matmul, b), expected)
        made_inside = A.clone()
        torch.testing.assert_close(SOLVERS[name](lambda x: made_inside @ x, b.clone()), expected)


@pytest.mark.parametrize('name', SOLVERS)
@pytest.mark.parametrize('inside', [False, True], ids=['given', 'made inside'])
def test_products_with_the_jacobian_of_a_root(name: str, inside: bool) -> None:
    symmetric = name in ('cg', 'cholesky')
    a, v = torch.tensor([1.0, 2.0, 3.0], dtype=f64), torch.tensor([0.5, -1.0, 2.0], dtype=f64)
    w = solution(a)
    F = gradient if symmetric else residual
    J = torch.func.jacrev(F)(w, a)
    with torch.inference_mode():
        w, a, v = (w.clone(), a.clone(), v.clone()) if inside else (w, a, v)
        (pulled,) = root_vjp(F, w, (a,), v, solve=SOLVERS[name])
        pushed = root_jvp(F, w, (a,), (v,), solve=SOLVERS[name])
        torch.testing.assert_close(pulled, torch.linalg.solve(J.T, v))
        torch.testing.assert_close(pushed, torch.linalg.solve(J, v))


def test_solvers_of_roots_and_fixed_points() -> None:
    scale = torch.tensor(2.0, dtype=f64, requires_grad=True)
    root = custom_root(lambda w, a: residual(w, scale * a))(lambda _, a: solution(scale * a))
    point = custom_fixed_point(lambda w, a: w - 0.1 * residual(w, scale * a))(lambda _, a: solution(scale * a))
    a = torch.tensor([1.0, 2.0, 3.0], dtype=f64)
    with torch.inference_mode():
        for solve in (root, point):
            w = solve(None, a)
            assert not w.requires_grad
            torch.testing.assert_close(w, solution(2 * a))
            # Transforms record there too.
            grads = torch.func.grad(lambda a: solve(None, a).sum())(a)  # noqa: B023
            torch.testing.assert_close(grads, torch.func.grad(lambda a: solution(2 * a).sum())(a))


def test_a_derived_optimality_condition() -> None:
    class Inner(torchopt.nn.ImplicitMetaGradientModule):
        def __init__(self, target: torch.Tensor) -> None:
            super().__init__()
            self.target = target
            self.w = torch.nn.Parameter(torch.ones(3, dtype=f64))

        def objective(self) -> torch.Tensor:
            return ((self.w - self.target) ** 2).sum()

        def solve(self) -> None:
            """It is not solved."""

    inner = Inner(torch.zeros(3, dtype=f64, requires_grad=True))
    with torch.inference_mode():
        assert inner.optimality()[0].tolist() == [2.0, 2.0, 2.0]
