# SPDX-License-Identifier: Apache-2.0
"""Products with the inverse Hessian of limited memory: as accurate as the recursion of vectors, at any precision."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from torchopt import quasi_newton
from torchopt.quasi_newton import Memory, Ring

F64 = torch.float64


def two_loops(g: np.ndarray, s: np.ndarray, y: np.ndarray, weights: np.ndarray, gamma: float, kind: type) -> np.ndarray:
    """The recursion of Nocedal and Wright, algorithm 7.4, with vectors of one kind."""
    wide = np.float64 if kind is np.float32 else kind
    q, alphas = g.astype(kind), []
    for i in reversed(range(len(s))):
        alphas.append(weights[i] * wide(s[i].astype(kind) @ q))
        q = q - kind(alphas[-1]) * y[i].astype(kind)
    r = kind(gamma) * q
    for i, alpha in enumerate(reversed(alphas)):
        r = r + kind(alpha - weights[i] * wide(y[i].astype(kind) @ r)) * s[i].astype(kind)
    return r


def history(kind: str, condition: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs of a quadratic function with this condition number, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator, dtype=F64)
    basis = torch.linalg.qr(normal(40, 40))[0]
    s = normal(10, 40)
    if kind == 'nearly parallel':
        s = s[0] + s / condition**0.5
    elif kind == 'graded':
        s = s * torch.logspace(0, -12, 10, dtype=F64)[:, None]
    y = s @ (basis * torch.logspace(0, np.log10(condition), 40, dtype=F64)) @ basis.mT
    return s.to(dtype), y.to(dtype), normal(40).to(dtype)


@pytest.mark.parametrize('dtype', [torch.float32, F64])
@pytest.mark.parametrize('condition', [1e4, 1e8, 1e12])
@pytest.mark.parametrize('kind', ['random', 'nearly parallel', 'graded'])
def test_as_accurate_as_the_two_loops(kind: str, condition: float, dtype: torch.dtype) -> None:
    s, y, g = history(kind, condition, dtype)
    products = (s.double() * y.double()).sum(1)
    curved = products > torch.finfo(dtype).eps * s.double().norm(dim=1) * y.double().norm(dim=1)
    s, y, weights = s * curved[:, None], y * curved[:, None], torch.where(curved, 1.0 / products, 0.0)
    memory, gamma = Memory([s], [y], weights), 0.5
    (found,) = quasi_newton.inverse_hessian_product([g], memory, Ring(10, 10), gamma)
    arrays = [x.numpy() for x in (g, s, y, weights)]
    exact = two_loops(*(x.astype(np.longdouble) for x in arrays), gamma, np.longdouble)
    loops = two_loops(*arrays, gamma, np.float32 if dtype is torch.float32 else np.float64)
    error, allowed = (float(np.linalg.norm(x - exact) / np.linalg.norm(exact)) for x in (found.numpy(), loops))
    assert error <= 2.0 * allowed + 4.0 * torch.finfo(dtype).eps


@pytest.mark.parametrize('count', [1, 3, 4, 5, 6, 11])
def test_the_order_of_the_ring(count: int) -> None:
    """With a count that is known, and with one of a batch."""
    s, y, g = (x[:4] if x.dim() == 2 else x for x in history('random', 1e2, F64))
    written = min(count, 4)
    oldest = count % 4 if count >= 4 else 0
    weights = 1.0 / (s * y).sum(1)
    present = (torch.arange(4) < written)[:, None]
    memory = Memory([s * present], [y * present], weights * present[:, 0])
    order = [(oldest + i) % 4 for i in range(written)]
    wanted = two_loops(g.numpy(), s[order].numpy(), y[order].numpy(), weights[order].numpy(), 0.5, np.float64)
    (found,) = quasi_newton.inverse_hessian_product([g], memory, Ring(torch.tensor(count), 4), 0.5)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-10)
    product = lambda k: quasi_newton.inverse_hessian_product([g], memory, Ring(k, 4), 0.5)[0]  # noqa: E731
    (batch,) = torch.vmap(product)(torch.tensor([count]))
    np.testing.assert_allclose(batch.numpy(), wanted, rtol=1e-10, atol=1e-10)


def test_derivatives_in_all_arguments() -> None:
    """Of two leaves, one of which is complex, with a pair of weight zero."""
    s, y, g = (x[..., :3] for x in history('random', 1e2, F64))
    s, y = s[:3], y[:3] + s[:3]
    weights = 1.0 / (s * y).sum(1).abs()
    keep = torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    s, y, weights = s * keep[:, None], y * keep[:, None], weights * keep

    def leaves(x: torch.Tensor) -> list[torch.Tensor]:
        pairs = x[..., :2].reshape(*x.shape[:-1], 1, 2)
        return [torch.view_as_complex(pairs.contiguous()), x[..., 2:]]

    def product(
        g: torch.Tensor, s: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, gamma: torch.Tensor
    ) -> object:
        found = quasi_newton.inverse_hessian_product(
            leaves(g), Memory(leaves(s), leaves(y), weights), Ring(5, 3), gamma
        )
        return torch.cat([torch.view_as_real(found[0]).reshape(-1), found[1]])

    inputs = [x.clone().requires_grad_() for x in (g, s, y, weights, torch.tensor(0.3, dtype=F64))]
    assert torch.autograd.gradcheck(product, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(product, inputs, atol=1e-4)


def test_autocast_does_not_matter() -> None:
    s, y, g = history('random', 1e2, torch.float32)
    memory = Memory([s], [y], 1.0 / (s * y).sum(1).double())
    (wanted,) = quasi_newton.inverse_hessian_product([g], memory, Ring(10, 10), 0.5)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        (found,) = quasi_newton.inverse_hessian_product([g], memory, Ring(10, 10), 0.5)
    assert torch.equal(found, wanted)


def test_many_columns_are_converted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    s, y, g = history('random', 1e4, torch.float32)
    memory = Memory([s], [y], 1.0 / (s.double() * y.double()).sum(1))
    (wanted,) = quasi_newton.inverse_hessian_product([g], memory, Ring(10, 10), 0.5)
    monkeypatch.setattr(quasi_newton, '_COLUMNS', 7)
    (found,) = quasi_newton.inverse_hessian_product([g], memory, Ring(10, 10), 0.5)
    torch.testing.assert_close(found, wanted)
