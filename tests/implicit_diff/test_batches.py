# SPDX-License-Identifier: Apache-2.0
"""Batches: the implicit derivatives of many small problems under ``torch.vmap`` are those of each problem alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchopt.implicit_diff import custom_root
from torchopt.linear_solve import LinearSolveWarning, direct, solve_normal_cg

f64 = torch.float64
N, SIZE = 3, 4


def matrices(kind: str, dtype: torch.dtype = f64) -> torch.Tensor:
    """Matrices that are not symmetric; in some kinds, one of them is special."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(SIZE, N, N, generator=generator, dtype=dtype) + 4.0 * torch.eye(N, dtype=dtype)
    if kind == 'nearly singular':
        a[1] = torch.diag(torch.tensor([1.0, 1e-3, 1e-6], dtype=dtype))
    if kind == 'singular':
        a[2] = torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=dtype))
    if kind == 'not finite':
        a[0, 1, 1] = torch.nan
    return a


def residual(x: Any, a: torch.Tensor, b: torch.Tensor) -> Any:
    return {
        'w': (a @ torch.cat([x['w'], x['c'][None]]))[:2] - b[:2],
        'c': (a[2] * torch.cat([x['w'], x['c'][None]])).sum() - b[2],
    }


@custom_root(residual)
def solution(init: Any, a: torch.Tensor, b: torch.Tensor) -> Any:
    x = torch.linalg.pinv(torch.nan_to_num(a)) @ b
    return {'w': x[:2], 'c': x[2]}


def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    x = solution(None, a, b)
    return (x['w'] * torch.tensor([1.0, -2.0], dtype=b.dtype)).sum() + x['c'] ** 2


def gradient(a: torch.Tensor, b: torch.Tensor) -> Any:
    return torch.func.grad(loss, argnums=(0, 1))(a, b)


def each(function: Callable[..., Any], *args: torch.Tensor) -> Any:
    return [torch.stack(column) for column in zip(*(function(*row) for row in zip(*args)))]


DERIVATIVES: dict[str, Callable[..., Any]] = {
    'reverse': gradient,
    'forward': torch.func.jacfwd(loss, argnums=(0, 1)),
    'second order': lambda a, b: [torch.func.jacfwd(lambda b: gradient(a, b)[1])(b)],
    'inside of another batch': lambda a, b: torch.vmap(lambda s: gradient(a, s * b))(
        torch.tensor([1.0, 2.0], dtype=b.dtype)
    ),
    'a matrix that is closed over': lambda a, b: [torch.func.grad(lambda b: loss(a, b))(b)],
}


@pytest.mark.parametrize('kind', ['regular', 'nearly singular', 'singular'])
@pytest.mark.parametrize('name', DERIVATIVES)
def test_batches_are_the_single_problems(name: str, kind: str) -> None:
    a = matrices(kind)
    b = a @ torch.tensor([0.5, -1.0, 2.0], dtype=f64)
    derivative = DERIVATIVES[name]
    for found, expected in zip(torch.vmap(derivative)(a, b), each(derivative, a, b)):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_regular_systems_are_solved_to_the_precision_of_the_dtype() -> None:
    for dtype, rtol in ((f64, 1e-12), (torch.float32, 1e-4)):
        a = matrices('regular', dtype)
        b = torch.ones(SIZE, N, dtype=dtype)
        _, found = torch.vmap(gradient)(a, b)
        x = torch.linalg.solve(a, b)
        bar = torch.stack(
            [torch.full((SIZE,), 1.0, dtype=dtype), torch.full((SIZE,), -2.0, dtype=dtype), 2.0 * x[:, 2]], 1
        )
        torch.testing.assert_close(found, torch.linalg.solve(a.mT, bar), rtol=rtol, atol=rtol)


def test_a_problem_without_a_solution_leaves_the_others_alone() -> None:
    a, b = matrices('not finite'), torch.ones(SIZE, N, dtype=f64)
    with pytest.warns(LinearSolveWarning):
        _, found = torch.vmap(gradient)(a, b)
    _, expected = torch.vmap(gradient)(a[1:], b[1:])
    assert not torch.isfinite(found[0]).all()
    torch.testing.assert_close(found[1:], expected, rtol=1e-7, atol=1e-9)


def gradient_by_default(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The derivative with respect to ``b`` of ``w_0 - 2 w_1 + c^2``, with the linear solver of ``solve=None``."""

    def of(b: torch.Tensor) -> torch.Tensor:
        x = custom_root(residual, solve=None)(solution.__wrapped__)(None, a, b)
        return x['w'][0] - 2.0 * x['w'][1] + x['c'] ** 2

    return torch.func.grad(of)(b)


@pytest.mark.parametrize(('kind', 'is_by_lu'), [('regular', True), ('nearly singular', True), ('singular', False)])
def test_a_batch_of_small_regular_systems_is_factorized(
    kind: str, is_by_lu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def by_cg(*args: Any) -> Any:
        calls.append(args)
        return solve_normal_cg(*args)

    monkeypatch.setattr(direct, 'solve_normal_cg', by_cg)
    a, x = matrices(kind), torch.tensor([0.5, -1.0, 2.0], dtype=f64)
    found = torch.vmap(gradient_by_default)(a, a @ x)
    assert bool(calls) is not is_by_lu
    if is_by_lu:
        bar = torch.tensor([1.0, -2.0, 2.0 * x[2]], dtype=f64).expand(SIZE, N)
        expected, rtol = torch.linalg.solve(a.mT, bar), 1e-8
    else:
        expected, rtol = torch.stack([gradient_by_default(*row) for row in zip(a, a @ x)]), 1e-6
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-8)
