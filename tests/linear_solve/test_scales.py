# SPDX-License-Identifier: Apache-2.0
"""Random systems of all scales and ranks: every solver is right, or says that it is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from torchopt import linear_solve
from torchopt.linear_solve import LinearSolveWarning, Outcome, solve_cg, solve_iterative_refinement, solve_normal_cg

NAMES = [
    'solve_cg',
    'solve_normal_cg',
    'solve_bicgstab',
    'solve_gmres',
    'solve_lu',
    'solve_cholesky',
    'solve_qr',
    'solve_inv',
    'solve_iterative_refinement',
]
ITERATIVE = [name for name in NAMES if name not in ('solve_lu', 'solve_cholesky', 'solve_qr', 'solve_inv')]
every_name = pytest.mark.parametrize('name', NAMES)
every_dtype = pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=['float32', 'float64'])
double = torch.float64


class Random:
    """A positive definite system with a condition number up to 30, of unit scale and in double precision."""

    def __init__(self, *seed: int, largest: int = 40) -> None:
        self.rng = np.random.default_rng(seed)
        self.n = n = int(self.rng.integers(1, largest + 1))
        q = torch.linalg.qr(self.normal(n, n))[0]
        self.A = (q * torch.logspace(-1.5, 0, n, dtype=double)) @ q.mT
        self.A = (self.A + self.A.mT) / 2
        self.b, self.c = self.normal(n), self.normal(n)
        self.x, self.u = torch.linalg.solve(self.A, self.b), torch.linalg.solve(self.A, self.c)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.as_tensor(self.rng.standard_normal(shape))

    def scale(self, most: float = 30) -> float:
        return float(10 ** self.rng.uniform(-most, most))


def holds(dtype: torch.dtype, x: torch.Tensor) -> bool:
    """Whether a dtype holds all digits of a vector, and of what a product with it adds up."""
    info = torch.finfo(dtype)
    return float(x.abs().max()) < info.max / 1e3 and float(x.norm()) > info.tiny * 1e3


def is_close(x: torch.Tensor, wanted: torch.Tensor, rtol: float = 2e-3) -> bool:
    scale = float(wanted.abs().max())
    return bool((x.double() / scale - wanted / scale).norm() <= rtol * (wanted / scale).norm())


def run(solve: Callable[[], Any]) -> tuple[Any, bool]:
    """What a solver returns, None if it refuses; and whether it warned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            x = solve()
        except (ValueError, torch.linalg.LinAlgError):
            return None, True
    return x, any(issubclass(w.category, LinearSolveWarning) for w in caught)


@every_dtype
@every_name
def test_values_at_every_scale(name: str, dtype: torch.dtype) -> None:
    solve = getattr(linear_solve, name)
    for seed in range(20):
        system = Random(0, seed)
        of_A, of_b = system.scale(), system.scale()
        A, b, wanted = (of_A * system.A).to(dtype), (of_b * system.b).to(dtype), system.x * (of_b / of_A)
        x, warned = run(lambda A=A, b=b: solve(A.matmul, b))
        if holds(dtype, wanted):
            assert x is not None and is_close(x, wanted), (seed, of_A, of_b)
        else:
            assert warned or is_close(x, wanted), (seed, of_A, of_b)


@every_dtype
@every_name
def test_gradients_at_every_scale(name: str, dtype: torch.dtype) -> None:
    solve = getattr(linear_solve, name)
    for seed in range(12):
        system = Random(1, seed, largest=20)
        of_A, of_b, of_c = system.scale(8), system.scale(8), system.scale()
        A, b = (of_A * system.A).to(dtype).requires_grad_(), (of_b * system.b).to(dtype).requires_grad_()
        c = (of_c * system.c).to(dtype)
        u, x = system.u * (of_c / of_A), system.x * (of_b / of_A)
        found, warned = run(lambda A=A, b=b, c=c: torch.autograd.grad(solve(A.matmul, b), (A, b), c))
        if not holds(dtype, u):
            assert warned or is_close(found[1], u), (seed, of_A, of_b, of_c)
            continue
        assert is_close(found[1], u), (seed, of_A, of_b, of_c)
        if holds(dtype, torch.outer(u, x)):
            assert is_close(found[0], -torch.outer(u, x)), (seed, of_A, of_b, of_c)


def pulled_late(f: Callable[..., Any], A: torch.Tensor, V: torch.Tensor) -> torch.Tensor:
    """The pullback is called after its transform has ended, once more, and in a batch."""
    x, pull = vjp(f, A)
    (first,), (again,) = pull(x), pull(x)
    (batch,) = vmap(pull)(torch.stack([x, 2 * x]))
    return torch.stack([first, again, *batch])


def in_dual_level(f: Callable[..., Any], A: torch.Tensor, A_dot: torch.Tensor) -> torch.Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(A, A_dot))).tangent


TRANSFORMS: dict[str, Callable[[Callable[..., Any], torch.Tensor, torch.Tensor], torch.Tensor]] = {
    'grad': lambda f, A, V: grad(lambda A: f(A).sum())(A),
    'jvp': lambda f, A, V: jvp(f, (A,), (V,))[1],
    'vjp called late': pulled_late,
    'dual level': in_dual_level,
    'vmap': lambda f, A, V: vmap(f)(torch.stack([A, 1e-6 * A])),
    'vmap of grad': lambda f, A, V: vmap(grad(lambda A: f(A).square().sum()))(torch.stack([A, A + 0.3 * A.mT @ A])),
    'forward over reverse': lambda f, A, V: jvp(grad(lambda A: f(A).square().sum()), (A,), (V,))[1],
    'reverse over forward': lambda f, A, V: grad(lambda A: jvp(f, (A,), (V,))[1].square().sum())(A),
}


@pytest.mark.parametrize('transform', TRANSFORMS)
@every_name
def test_transforms_of_small_systems(name: str, transform: str) -> None:
    # Numbers of size 1e-12: single precision does not hold what a method multiplies, nor, in second derivatives of
    # least squares, the fourth power of the inverse.  Scaled to size one it is the same system.
    of_A = 1e-7 if name == 'solve_normal_cg' and 'over' in transform else 1e-12
    solve = getattr(linear_solve, name)
    system = Random(2, 0, largest=5)
    symmetric = lambda A: (A + A.mT) / 2  # noqa: E731
    V = symmetric(system.normal(system.n, system.n))
    exact = TRANSFORMS[transform](lambda A: torch.linalg.inv(symmetric(A)) @ system.b, system.A, V)
    with warnings.catch_warnings():
        warnings.simplefilter('error', LinearSolveWarning)
        found = TRANSFORMS[transform](
            lambda A: 1e-3 * solve((of_A * symmetric(A)).matmul, (1e3 * of_A * system.b).float()),
            system.A.float(),
            V.float(),
        )
    torch.testing.assert_close(found.double(), exact, rtol=5e-3, atol=5e-3 * float(exact.abs().max()))


@every_dtype
@pytest.mark.parametrize('name', [name for name in NAMES if name != 'solve_normal_cg'])
def test_singular_systems(name: str, dtype: torch.dtype) -> None:
    for seed in range(12):
        system = Random(3, seed, largest=30)
        n = system.n + 2
        B = system.normal(n, max(1, n // 2))
        A = (B @ B.mT).to(dtype)
        b = system.normal(n).to(dtype)
        x, warned = run(lambda A=A, b=b: getattr(linear_solve, name)(A.matmul, b))
        assert warned, seed
        x, warned = run(lambda A=A, b=b: getattr(linear_solve, name)(A.matmul, A @ b))
        assert warned or float((A @ (x - b)).norm()) <= 2e-3 * float((A @ b).norm()), seed


@pytest.mark.parametrize('name', ITERATIVE)
def test_an_inconsistent_laplacian(name: str) -> None:
    # A Neumann boundary: constants are mapped to zero, and b is not orthogonal to them.
    n = 30
    A = 2 * torch.eye(n, dtype=double) - torch.diag(torch.ones(n - 1, dtype=double), 1)
    A = A - torch.diag(torch.ones(n - 1, dtype=double), -1)
    A[0, 0] = A[-1, -1] = 1
    for seed in range(5):
        b = Random(4, seed).normal(n)
        if name == 'solve_normal_cg':
            torch.testing.assert_close(solve_normal_cg(A.matmul, b, tol=1e-12), torch.linalg.pinv(A) @ b)
            continue
        _, status = getattr(linear_solve, name)(A.matmul, b, return_status=True)
        assert not status.converged
        assert float(status.residual) >= float(b.mean().abs()) * n**0.5 * 0.999


def least_norm(B: torch.Tensor, C: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``pinv(B @ C) @ b`` for matrices of full rank."""
    return C.mT @ torch.linalg.inv(C @ C.mT) @ torch.linalg.inv(B.mT @ B) @ (B.mT @ b)


def ours(B: torch.Tensor, C: torch.Tensor, b: torch.Tensor, **options: Any) -> torch.Tensor:
    A = B @ C
    start = torch.zeros(A.shape[1], dtype=A.dtype)
    return solve_normal_cg(A.matmul, b, init=start, **{'tol': 1e-12, **options})


RANKS = [(1, 2, 1), (3, 5, 3), (3, 5, 2), (5, 3, 3), (5, 3, 2), (4, 4, 4), (4, 4, 2)]


@pytest.mark.parametrize('is_consistent', [False, True], ids=['any', 'consistent'])
@pytest.mark.parametrize(('rows', 'columns', 'rank'), RANKS, ids=str)
def test_derivatives_of_least_squares(rows: int, columns: int, rank: int, is_consistent: bool) -> None:
    system = Random(5, rows, columns, rank)
    B, C = system.normal(rows, rank), system.normal(rank, columns)
    b = B @ system.normal(rank) if is_consistent else system.normal(rows)
    c = system.normal(columns)
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-7)
    close(ours(B, C, b), least_norm(B, C, b))
    argnums = (0, 1, 2)
    wanted = jacrev(least_norm, argnums)(B, C, b)
    close(jacrev(ours, argnums)(B, C, b), wanted)
    close(jacfwd(ours, argnums)(B, C, b), wanted)
    with forward_ad.dual_level():
        for i, primal in enumerate((B, C, b)):
            duals = [B, C, b]
            duals[i] = forward_ad.make_dual(primal, torch.ones_like(primal))
            tangent = forward_ad.unpack_dual(ours(*duals)).tangent
            close(tangent, wanted[i].flatten(1).sum(1))
    tracked = [t.clone().requires_grad_() for t in (B, C, b)]
    for g, w in zip(torch.autograd.grad(ours(*tracked), tracked, c), wanted):
        close(g, torch.tensordot(c, w, 1))
    # A loss whose cotangent lies in the row space, where first derivatives show nothing of the rank.
    loss = lambda f: lambda B: f(B, C, b).square().sum()  # noqa: E731
    close(hessian(loss(ours))(B), hessian(loss(least_norm))(B), rtol=1e-5, atol=1e-5)
    first = [torch.autograd.grad(loss(f)(tracked[0]), tracked[0], create_graph=True)[0] for f in (ours, least_norm)]
    second = [torch.autograd.grad(g.square().sum(), tracked[0])[0] for g in first]
    close(*second, rtol=1e-5, atol=1e-5)


def test_least_squares_in_batches_and_from_a_start() -> None:
    system = Random(6)
    As, bs, x0 = system.normal(5, 2, 3), system.normal(5, 2), system.normal(3)
    exact = lambda A, b: x0 + A.mT @ torch.linalg.inv(A @ A.mT) @ (b - A @ x0)  # noqa: E731
    solve = lambda A, b: solve_normal_cg(A.matmul, b, init=x0, tol=1e-13)  # noqa: E731
    for transform in (lambda f: f, jacrev, jacfwd, lambda f: grad(lambda A, b: f(A, b).pow(3).sum())):
        torch.testing.assert_close(vmap(transform(solve))(As, bs), vmap(transform(exact))(As, bs), rtol=1e-7, atol=1e-8)
    tracked = As.clone().requires_grad_()
    found, wanted = (torch.autograd.grad(vmap(f)(tracked, bs).pow(3).sum(), tracked)[0] for f in (solve, exact))
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('shape', [(4, 3), (2, 4)], ids=['tall', 'wide'])
def test_least_squares_with_a_ridge(shape: tuple[int, int]) -> None:
    system = Random(7, *shape)
    A, b = system.normal(*shape).requires_grad_(), system.normal(shape[0]).requires_grad_()
    ridge = torch.tensor(0.3, dtype=double, requires_grad=True)

    def solve(A: torch.Tensor, b: torch.Tensor, ridge: Any) -> torch.Tensor:
        return solve_normal_cg(A.matmul, b, ridge, torch.zeros(shape[1], dtype=A.dtype), tol=1e-14)

    assert torch.autograd.gradcheck(solve, (A, b, ridge), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, (A, b, ridge))
    for of_A, of_b in ((1e-15, 1e15), (1e15, 1e-15), (1e-12, 1e-12)):
        small = solve(of_A * A.detach().float(), of_b * b.detach().float(), 0.3 * of_A**2)
        torch.testing.assert_close(small.double() * (of_A / of_b), solve(A, b, ridge).detach(), rtol=1e-3, atol=1e-4)


@every_name
def test_inference_mode(name: str) -> None:
    system = Random(8, largest=5)
    with torch.inference_mode():
        for A in (system.A, system.A.clone()):
            torch.testing.assert_close(getattr(linear_solve, name)(A.matmul, system.b), system.x, rtol=1e-3, atol=1e-3)
    if name == 'solve_normal_cg':
        W, w = system.normal(2, 4), system.normal(2)
        with torch.inference_mode():
            start = torch.zeros(4, dtype=double)
            torch.testing.assert_close(solve_normal_cg(W.matmul, w, init=start, tol=1e-12), torch.linalg.pinv(W) @ w)


def test_zero_right_hand_sides_have_zero_solutions() -> None:
    A, start = Random(9).A, Random(9).b
    for name in ITERATIVE:
        x = getattr(linear_solve, name)(A.matmul, torch.zeros_like(start), init=start)
        assert not x.any(), name


def test_the_tolerance_of_refinement_is_absolute_for_large_and_relative_for_small_right_hand_sides() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=double))
    rough = partial(solve_iterative_refinement, A.matmul, solve=solve_cg(tol=0.1), tol=1e-6, return_status=True)
    for scale in (1e-30, 1e-8, 1e-3, 1.0, 1e4):
        b = scale * torch.ones(3, dtype=double)
        x, status = rough(b)
        assert status.converged, scale
        assert float((A @ x - b).norm()) <= 1e-6 * min(1.0, float(b.norm())), scale
    x, status = rough(1e25 * torch.ones(3, dtype=double))  # where an absolute tolerance is below rounding
    assert status.converged and is_close(x, 1e25 / A.diagonal(), 1e-14)


def test_half_precision_that_does_not_hold_the_solution() -> None:
    with pytest.warns(LinearSolveWarning, match='cannot represent'):
        assert solve_cg(lambda x: 1e-3 * x, torch.full((2,), 1e3, dtype=torch.float16)).isinf().all()
    with pytest.warns(LinearSolveWarning, match='cannot represent'):
        assert not solve_cg(lambda x: 1e3 * x, torch.full((2,), 1e-6, dtype=torch.float16)).any()


def test_a_recurrence_that_drifts_is_started_again() -> None:
    # In single precision conjugate gradients on this matrix claim a residual that they do not have.
    diagonal = torch.logspace(0, 4, 60)
    b = Random(10).normal(60).float()
    x, status = solve_cg(lambda v: diagonal * v, b, tol=1e-6, maxiter=3000, return_status=True)
    residual = (diagonal.double() * x.double() - b).norm()
    assert float(status.residual) == pytest.approx(float(residual), rel=0.3)
    assert bool(status.converged) == (float(residual) <= 1e-5 * float(b.norm()))
    assert int(status.outcome) in (Outcome.CONVERGED, Outcome.STAGNATED)
