# SPDX-License-Identifier: Apache-2.0
"""Implicit derivatives of ill-conditioned roots are right, or there is a warning."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch

from torchopt.implicit_diff import custom_root, root_jvp, root_vjp
from torchopt.linear_solve import LinearSolveWarning, solve_gmres, solve_lu, solve_normal_cg


def jacobian(n: int, condition: float, dtype: torch.dtype, *, spread: bool) -> torch.Tensor:
    """A matrix whose singular values are spread evenly, or are 1 except for the last."""
    generator = torch.Generator().manual_seed(n)
    U, V = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0] for _ in range(2))
    s = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    if not spread:
        s[:-1] = 1.0
    return (U * s @ V.T).to(dtype)


def vector(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


SOLVERS = {'default': None, 'solve_normal_cg': solve_normal_cg, 'solve_gmres': solve_gmres, 'solve_lu': solve_lu}


@pytest.mark.parametrize('spread', [True, False], ids=['spread', 'one small'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('condition', [1e1, 1e3, 1e4, 1e6, 1e9])
@pytest.mark.parametrize('n', [3, 20])
@pytest.mark.parametrize('name', SOLVERS)
def test_the_derivative_is_right_or_there_is_a_warning(name, n, condition, dtype, spread):
    A = jacobian(n, condition, dtype, spread=spread)
    t, w = vector(n, 1).to(dtype), vector(n, 2).to(dtype)
    root = torch.linalg.solve(A.double(), t.double()).to(dtype)
    expected = torch.linalg.solve(A.double().T, w.double())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            found = root_vjp(lambda x, t: A @ x - t, root, (t,), w, solve=SOLVERS[name])[0]
        except torch.linalg.LinAlgError:
            return  # singular to the precision of its dtype
    error = (found.double() - expected).norm() / expected.norm()
    # The residual of the system is at most ten times the tolerance of 1e-5, or due to rounding.
    bound = 2 * condition * (torch.finfo(dtype).eps if name in ('default', 'solve_lu') else 1e-4)
    is_warned = any(issubclass(w.category, LinearSolveWarning) for w in caught)
    assert is_warned or error <= bound
    if name == 'default' and condition * torch.finfo(dtype).eps < 1e-4:
        assert not is_warned


@pytest.mark.parametrize('n', [5, 300])
@pytest.mark.parametrize('mode', ['vjp', 'jvp', 'vmap'])
def test_a_derivative_along_a_hidden_direction(n, mode):
    # Normal equations meet a tolerance of 1e-5 without the last direction, which makes up the whole derivative.
    scale = torch.ones(n, dtype=torch.float64)
    scale[-1] = 1e-6
    t, w = torch.ones(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    F = lambda x, t: scale * x - t  # noqa: E731
    if mode == 'jvp':
        found = root_jvp(F, t / scale, (t,), (w,))
    elif mode == 'vjp':
        found = root_vjp(F, t / scale, (t,), w)[0]
    else:
        found = torch.vmap(lambda t, w: root_vjp(F, t / scale, (t,), w)[0])(torch.stack([t, 2 * t]), w.expand(2, n))[1]
    torch.testing.assert_close(found, w / scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize('consistent', [True, False])
@pytest.mark.parametrize(
    'solve', [None, solve_normal_cg, partial(solve_normal_cg, ridge=1e-8)], ids=['default', 'solve_normal_cg', 'ridge']
)
def test_a_singular_jacobian_gives_a_warning_if_the_derivative_does_not_exist(solve, consistent):
    # The optimality function does not change along (1, 1, 1), so only differences of the root are determined.
    P = torch.eye(3, dtype=torch.float64) - 1 / 3
    t = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([1.0, -1.0, 0.0 if consistent else 5.0], dtype=torch.float64)
    root = custom_root(lambda x, t: P @ x - P @ t, solve=solve)(lambda init, t: P @ t)
    has_ridge = isinstance(solve, partial)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        (found,) = torch.autograd.grad(root(None, t) @ w, t)
    torch.testing.assert_close(found, P @ w, atol=1e-6, rtol=1e-6)
    assert any('least-squares' in str(c.message) for c in caught) == (not consistent and not has_ridge)
