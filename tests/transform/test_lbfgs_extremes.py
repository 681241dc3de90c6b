# SPDX-License-Identifier: Apache-2.0
"""L-BFGS where numbers are tiny, huge or without curvature: finite, of the right scale, and always a descent."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

import torchopt
from torchopt import transform, tree

F32, F64 = torch.float32, torch.float64


def solve(fun: Any, p: torch.Tensor, steps: int, tx: Any = None) -> torch.Tensor:
    tx = tx or torchopt.lbfgs()
    state = tx.init(p)
    for _ in range(steps):
        grad, value = torch.func.grad_and_value(fun)(p)
        updates, state = tx.update(grad, state, p, value=value, grad=grad, value_fn=fun)
        p = p + updates
    return p


def slope(g: Any, u: Any) -> float:
    pairs = zip(tree.leaves(g), tree.leaves(u))
    return sum((a.to(torch.complex128).conj() * b.to(torch.complex128)).real.sum().item() for a, b in pairs)


CONVERGING = {
    'log cosh': (lambda x: torch.log(torch.cosh(x)).sum(), 0.0),
    'fourth power': (lambda x: (x**4).sum(), 1e-5),
    'sixth power': (lambda x: (x**6).sum(), 1e-2),
    'quadratic': (lambda x: (x**2 * torch.tensor([3.0, 1.0], dtype=x.dtype)).sum(), 0.0),
    'ill-conditioned': (lambda x: (x**2 * torch.tensor([1e8, 1.0], dtype=x.dtype)).sum(), 0.0),
    'nearly flat': (lambda x: (x**2 * torch.tensor([1.0, 1e-6], dtype=x.dtype)).sum(), 0.0),
}


@pytest.mark.parametrize('dtype', [F32, F64])
@pytest.mark.parametrize('name', CONVERGING)
def test_stays_where_it_has_converged(name: str, dtype: torch.dtype) -> None:
    fun, atol = CONVERGING[name]
    for steps in (20, 45):
        found = solve(fun, torch.tensor([1.3, -0.7], dtype=dtype), steps)
        assert found.isfinite().all()
    torch.testing.assert_close(found, torch.zeros(2, dtype=dtype), rtol=0.0, atol=max(atol, 1e-30))


def directions(tx: Any, points: list[Any], gradients: list[Any]) -> list[Any]:
    state, found = tx.init(points[0]), []
    for p, g in zip(points, gradients):
        u, state = tx.update(g, state, p)
        found.append(u)
    return found


BENT = [((0.0, 0.0), (1.0, 1.0)), ((-1.0, 0.0), (2.0, 1.0)), ((-2.0, 0.0), (3.5, 1.0))]


@pytest.mark.parametrize('scaled', [True, False])
def test_pairs_without_positive_curvature_are_skipped(scaled: bool) -> None:
    points, gradients = ([torch.tensor(pair[i]) for pair in BENT] for i in (0, 1))
    tx = transform.scale_by_lbfgs(3, scaled)
    for g, u in zip(gradients[1:], directions(tx, points, gradients)[1:]):
        torch.testing.assert_close(u, g)  # nothing is known of the curvature
    # The memory holds nothing of them: a later pair counts as if it were the only one.
    good = [torch.tensor([1.0, 0.5]), torch.tensor([3.0, 0.5])], [torch.tensor([1.0, 3.0]), torch.tensor([5.0, 3.5])]
    restarted = [torch.zeros(2), *points, good[0][0]], [torch.zeros(2), *gradients, gradients[-1] - 1.0]
    found = directions(tx, [*restarted[0], good[0][1]], [*restarted[1], restarted[1][-1] + good[1][1] - good[1][0]])
    s, y, g = good[0][1] - good[0][0], good[1][1] - good[1][0], restarted[1][-1] + good[1][1] - good[1][0]
    gamma = (s @ y) / (y @ y) if scaled else torch.tensor(1.0)
    q = g - (s @ g) / (s @ y) * y
    torch.testing.assert_close(found[-1], gamma * q + s * (s @ g - gamma * (y @ q)) / (s @ y))


def dense(pairs: list[Any], g: torch.Tensor) -> torch.Tensor:
    """The recursion of the documentation with matrices, in double precision."""
    s, y = pairs[-1]
    h = (s @ y) / (y @ y) * torch.eye(len(g), dtype=F64)
    for s, y in pairs:
        v = torch.eye(len(g), dtype=F64) - torch.outer(y, s) / (s @ y)
        h = v.T @ h @ v + torch.outer(s, s) / (s @ y)
    return h @ g


SCALES = [1e-30, 1e-15, 1.0, 1e15, 1e30]


@pytest.mark.parametrize('dtype', [F32, F64, torch.complex64])
def test_the_scale_of_numbers_does_not_matter(dtype: torch.dtype) -> None:
    """Parameters and gradients of any two magnitudes have the direction of those of magnitude one."""
    rng = np.random.default_rng(3)
    root = rng.standard_normal((4, 4))
    hessian = torch.as_tensor(root @ root.T + np.eye(4))
    points = [torch.as_tensor(rng.standard_normal(4)) for _ in range(4)]
    gradients = [hessian @ p for p in points]
    pairs = [(points[i + 1] - points[i], gradients[i + 1] - gradients[i]) for i in range(3)]
    wanted = dense(pairs, gradients[-1])
    for a, b in itertools.product(SCALES, SCALES):
        split = lambda x, scale: {'a': (x * scale)[:1].to(dtype), 'b': (x * scale)[1:].to(dtype)}  # noqa: E731
        tx = transform.scale_by_lbfgs(3)
        u = directions(tx, [split(p, a) for p in points], [split(g, b) for g in gradients])[-1]
        found = torch.cat([u['a'], u['b']]).to(torch.complex128).real / a
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.norm().item(), msg=f'{a}, {b}')


@pytest.mark.parametrize('scale', [1e-30, 1e-19, 1e19, 1e30])
def test_the_first_step_is_at_most_one_long(scale: float) -> None:
    g = torch.tensor([3.0, -4.0]) * scale
    tx = transform.scale_by_lbfgs()
    u, _ = tx.update(g, tx.init(g), g)
    torch.testing.assert_close(u, g if scale < 1.0 else torch.tensor([0.6, -0.8]))


def test_always_a_descent() -> None:
    """Of gradients that belong to no function, of any scale, in every dtype."""
    generator = torch.Generator().manual_seed(0)
    for dtype, largest in ((F32, 30), (F64, 100), (torch.complex64, 30), (torch.bfloat16, 30), (torch.float16, 3)):
        for trial in range(40):
            tx = transform.scale_by_lbfgs(1 + trial % 5, trial % 3 > 0)
            state = None
            for _ in range(8):
                exponents = (torch.rand(3, generator=generator) * 2 - 1) * largest
                real = [torch.randn(4, generator=generator, dtype=F64) * 10**x for x in exponents.double()]
                g, p = real[0].to(dtype), (real[1] if trial % 2 else real[1] + 1.0).to(dtype)
                u, state = tx.update(g, state or tx.init(p), p)
                assert u.isfinite().all(), (dtype, trial)
                assert slope(g, u) > 0 or not u.any(), (dtype, trial)  # zeros where it is too short for the dtype


def test_each_sample_of_a_batch_is_judged_alone() -> None:
    points, gradients = ([torch.tensor(pair[i]) for pair in BENT] for i in (0, 1))
    good = [p + torch.tensor([0.0, 1.0]) * i for i, p in enumerate(points)]
    samples = [(points, gradients), (good, [3.0 * p for p in good]), (good, [1e-30 * p for p in good])]
    tx = transform.scale_by_lbfgs(3)
    inputs = [torch.stack([torch.stack(sample[i]) for sample in samples]) for i in (0, 1)]
    together = torch.func.vmap(lambda p, g: torch.stack(directions(tx, list(p), list(g))))(*inputs)
    for found, sample in zip(together, samples):
        torch.testing.assert_close(found, torch.stack(directions(tx, *sample)), rtol=1e-5, atol=0.0)


def test_compiled() -> None:
    torch.compiler.reset()
    tx = transform.scale_by_lbfgs(2)
    step = torch.compile(tx.update, fullgraph=True, backend='eager')
    p = torch.tensor([0.5, 2.0])
    state = tx.init(p)
    for pair in BENT:
        p, g = map(torch.tensor, pair)
        found, following = step(g, state, p)
        wanted, state = tx.update(g, state, p)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(tree.leaves(following), tree.leaves(state))


@pytest.mark.parametrize('start', [[0.9, -0.6], [0.0, 0.0], [1e-100, -1e-100]])
def test_derivatives_are_finite_differences(start: list[float]) -> None:
    """Through steps with pairs of negative curvature, at a stationary point, and where products underflow."""

    def final(x: torch.Tensor) -> torch.Tensor:
        tx = torchopt.lbfgs(0.7, memory_size=2, linesearch=None)
        state, p = tx.init(x), x
        for _ in range(4):
            updates, state = tx.update(torch.tensor([0.5, 0.3], dtype=F64) * torch.sin(3 * p), state, p)
            p = p + updates
        return p * torch.tensor([1.0, 2.0], dtype=F64)

    x = torch.tensor(start, dtype=F64)
    by_reverse, by_forward = torch.func.jacrev(final)(x), torch.func.jacfwd(final)(x)
    torch.testing.assert_close(by_reverse, by_forward)
    assert by_reverse.isfinite().all()
    if x.abs().max() > 1e-3:
        h = 1e-6
        units = torch.eye(2, dtype=F64)
        exact = torch.stack([(final(x + h * e) - final(x - h * e)) / (2 * h) for e in units], dim=1)
        torch.testing.assert_close(by_reverse, exact, rtol=1e-5, atol=1e-8)
    assert torch.func.hessian(lambda x: final(x).square().sum())(x).isfinite().all()
