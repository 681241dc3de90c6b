# SPDX-License-Identifier: Apache-2.0
"""Products that are repeated from a tape equal those that go through autograd, or are not repeated."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.linear_solve.test_solutions import matrix, vector
from torchopt.autodiff.products import pullback
from torchopt.autodiff.tape import taped
from torchopt.linear_solve import solve_gmres
from torchopt.linear_solve.operators import Jacobian

A = matrix(6)


class ByNumpy(torch.autograd.Function):
    """What torch does not dispatch: neither operation is seen below autograd."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(A.numpy() @ x.detach().numpy())

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(A.numpy().T @ g.numpy())


def accumulated(x: torch.Tensor) -> torch.Tensor:
    """Many uses of the same tensor, whose gradients autograd adds up in place."""
    y = x
    for i in range(4):
        y = y + torch.sin(x) * A[i] + x.roll(i)
    return y


def written(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(6, dtype=x.dtype)
    y[::2] = x[::2] ** 3
    y[1::2].add_(x[:3])
    return y + A @ x


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    'matrix': lambda x: A @ x,
    'gradient': torch.func.grad(lambda x: (x @ A @ x) ** 2 + torch.cosh(x).sum()),
    'accumulated': accumulated,
    'written': written,
    'indexing': lambda x: x[torch.tensor([0, 0, 3, 5, 2, 1])] ** 2 + x,
    'masks': lambda x: torch.where(x > 0, x**2, -x) + torch.relu(A @ x),
    'parts': lambda x: torch.cat([x[:2] * x[4:], *torch.split(A @ x, [1, 3, 2])[1:], x.sum()[None]])[:6],
    'linalg': lambda x: torch.linalg.solve(A + torch.diag(x**2), x),
    'checkpoint': lambda x: checkpoint(lambda x: torch.tanh(A @ x), x, use_reentrant=False),
    'convolution': lambda x: torch.nn.functional.conv1d(x[None, None], A[None, :1, :3], padding=1)[0, 0] ** 2,
    'constant in part': lambda x: torch.cat([x[:3] ** 2, torch.ones(3, dtype=x.dtype)]),
    'not dispatched': lambda x: ByNumpy.apply(x) + x,
}


# The same to torch.func, which looks through neither.
TRANSPARENT = {'checkpoint': lambda x: torch.tanh(A @ x), 'not dispatched': lambda x: A @ x + x}


@pytest.mark.parametrize('transposed', [False, True], ids=['map', 'transpose'])
@pytest.mark.parametrize('name', FUNCTIONS)
def test_repeated_products(name: str, transposed: bool) -> None:
    if name == 'not dispatched' and not transposed:
        pytest.skip('its backward pass cannot be differentiated')
    x = vector(6) + 0.1
    jacobian = torch.func.jacrev(TRANSPARENT.get(name, FUNCTIONS[name]))(x)
    operator = Jacobian(lambda theta, x: [FUNCTIONS[name](*x)], 1)
    product = operator.prepare([x], [x])[transposed]
    for seed in range(5):
        v = vector(6, seed=seed)
        (found,) = product([v])
        torch.testing.assert_close(found, (jacobian.mT if transposed else jacobian) @ v)


def test_what_is_repeated_and_what_is_not() -> None:
    def calls_of_autograd(f: Callable[[torch.Tensor], torch.Tensor]) -> int:
        x = vector(6).requires_grad_()
        transpose = pullback([f(x)], [x])
        count = 0

        def counted(u: Any) -> Any:
            nonlocal count
            count += 1
            return transpose(u)

        product = taped(counted)
        for seed in range(10):
            product([vector(6, seed=seed)])
        return count

    assert calls_of_autograd(FUNCTIONS['gradient']) == 2
    assert calls_of_autograd(FUNCTIONS['not dispatched']) == 10
    assert calls_of_autograd(lambda x: torch.nn.functional.dropout(x, 0.5) + x) == 2  # its mask is a constant by then


def test_a_repetition_that_is_not_exact_is_not_believed() -> None:
    """It is off in the last digits only, as where an unseen operation adds something small."""
    small, count = torch.zeros(6, dtype=torch.float64), 0

    def product(u: Any) -> Any:
        nonlocal count
        count += 1
        np.add(u[0].numpy(), 0, out=small.numpy())  # torch does not see it
        return [u[0] + 1e-15 * small.clone()]

    run = taped(product)
    for seed in range(5):
        (found,) = run([v := vector(6, seed=seed)])
        assert torch.equal(found, v + 1e-15 * v)
    assert count == 5


def test_the_same_vector_again_decides_nothing() -> None:
    unseen = torch.zeros(6, dtype=torch.float64)

    def product(u: Any) -> Any:
        np.copyto(unseen.numpy(), u[0].numpy())
        return [u[0] + unseen.clone()]

    run = taped(product)
    for seed in (0, 0, 0, 1, 2, 3):
        (found,) = run([v := vector(6, seed=seed)])
        assert torch.equal(found, 2 * v)


def test_constants_are_freed_with_the_product() -> None:
    def use() -> weakref.ref[torch.Tensor]:
        constant = vector(6)
        product = taped(lambda u: [u[0] * constant])
        for seed in range(4):
            product([vector(6, seed=seed)])
        return weakref.ref(constant)

    gc.disable()  # which would break a cycle
    try:
        assert use()() is None
    finally:
        gc.enable()


def test_random_products_are_not_repeated() -> None:
    count = 0

    def noisy(u: Any) -> Any:
        nonlocal count
        count += 1
        return [torch.bernoulli(torch.sigmoid(u[0]))]

    product = taped(noisy)
    for _ in range(5):
        product([vector(6)])
    assert count == 5


def test_results_do_not_share_memory() -> None:
    product = taped(lambda u: [2 * u[0]])
    kept = [product([vector(6, seed=seed)])[0] for seed in range(5)]
    for seed, y in enumerate(kept):
        torch.testing.assert_close(y, 2 * vector(6, seed=seed))


def test_a_solver_on_a_function_that_is_not_dispatched() -> None:
    b = vector(6)
    torch.testing.assert_close(
        solve_gmres(lambda v: torch.from_numpy(A.numpy() @ v.numpy()), b, tol=1e-12), torch.linalg.solve(A, b)
    )
    assert np.isfinite(A.numpy()).all()
