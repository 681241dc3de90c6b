# SPDX-License-Identifier: Apache-2.0
"""Every estimator against smoothed gradients in closed form: its mean, and its variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from torchopt.zero_order_diff import ESTIMATORS, zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)
GAUSSIAN = ('naive', 'forward', 'antithetic', 'orthogonal')
SIGMA = 0.7

X = torch.tensor([0.3, -0.8, 1.1, 0.0], dtype=torch.float64)
A = torch.tensor([[2.0, 0.5, 0, 0], [0.5, 1.0, 0.3, 0], [0, 0.3, -3.0, 0.2], [0, 0, 0.2, 0.4]], dtype=torch.float64)
B = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)


class Problem(NamedTuple):
    """A function, the gradient of its smoothing by normal noise, and what random signs estimate."""

    f: Callable[[Tensor], Tensor]
    normal: Callable[[Tensor], Tensor]
    signs: Callable[[Tensor], Tensor] | None


def density(x: Tensor) -> Tensor:
    return (-0.5 * (x / SIGMA) ** 2).exp() / (SIGMA * math.sqrt(2 * math.pi))


PROBLEMS = {
    'quadratic': Problem(lambda x: 0.5 * x @ A @ x + B @ x + 3.0, lambda x: A @ x + B, lambda x: A @ x + B),
    'sine': Problem(
        lambda x: x.sin().sum(),
        lambda x: math.exp(-(SIGMA**2) / 2) * x.cos(),
        lambda x: math.sin(SIGMA) / SIGMA * x.cos(),
    ),
    'exponential': Problem(
        lambda x: x.exp().sum(),
        lambda x: math.exp(SIGMA**2 / 2) * x.exp(),
        lambda x: math.sinh(SIGMA) / SIGMA * x.exp(),
    ),
    'step': Problem(lambda x: (x > 0).double().sum(), density, None),
    'modulus': Problem(lambda x: x.abs().sum(), lambda x: torch.erf(x / SIGMA / math.sqrt(2)), None),
}


def estimates(f, x: Tensor, method: str, groups: int, num_samples: int, sigma: float, distribution=NORMAL) -> Tensor:
    """Independent estimates of the gradient, one in each row."""
    generator = torch.Generator().manual_seed(0)
    estimate = zero_order(distribution, method, num_samples=num_samples, sigma=sigma, generator=generator)(f)
    x = x.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(estimate(x), x)[0] for _ in range(groups)])


def assert_mean(rows: Tensor, expected: Tensor) -> None:
    error = (rows.mean(0) - expected).abs()
    assert (error <= 3 * rows.std(0) / math.sqrt(len(rows)) + 1e-12).all(), error


@pytest.mark.parametrize('method', GAUSSIAN)
@pytest.mark.parametrize('problem', PROBLEMS)
def test_unbiased_for_the_smoothed_gradient(problem: str, method: str) -> None:
    """20,000 samples: their mean is within 3 standard errors in every coordinate."""
    f, gradient, _ = PROBLEMS[problem]
    assert_mean(estimates(f, X, method, 200, 100, SIGMA), gradient(X))


@pytest.mark.parametrize('problem', [name for name, p in PROBLEMS.items() if p.signs])
def test_spsa_estimates_central_differences(problem: str) -> None:
    f, _, gradient = PROBLEMS[problem]
    assert_mean(estimates(f, X, 'spsa', 200, 100, SIGMA), gradient(X))


@pytest.mark.parametrize('method', ESTIMATORS)
@pytest.mark.parametrize(
    'distribution',
    [torch.distributions.Uniform(-math.sqrt(3), math.sqrt(3)), lambda shape: torch.randint(2, shape) * 2 - 1],
    ids=['uniform', 'signs'],
)
def test_other_distributions_are_right_on_quadratics(method: str, distribution) -> None:
    f, gradient, _ = PROBLEMS['quadratic']
    assert_mean(estimates(f, X, method, 200, 100, 0.2, distribution), gradient(X))


def test_forward_divides_by_sigma_and_subtracts_the_value() -> None:
    """Q4: TorchOpt 0.7.3 multiplied, and subtracted the previous difference; it found 0.01 to 0.05 here."""
    w = torch.ones(3, requires_grad=True)
    loss = zero_order(NORMAL, 'forward', num_samples=2000, sigma=0.1, seed=0)(lambda w: (w**2).sum())
    (grad,) = torch.autograd.grad(loss(w), w)
    assert torch.allclose(grad, torch.full((3,), 2.0), atol=0.3)


def test_forward_evaluates_the_point_itself_once() -> None:
    """Injected directions: the estimate is the formula to the last digit, for each of several samples."""
    z = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.0, 3.0]], dtype=torch.float64)
    x = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)

    def f(x: Tensor) -> Tensor:
        return (x**3).sum() + x[0] * x[1]

    s, values = 0.3, {}
    for sign in (-1, 0, 1):
        values[sign] = torch.stack([f(x.detach() + sign * s * row) for row in z])[:, None]
    expected = {
        'naive': (values[1] * z).mean(0) / s,
        'forward': ((values[1] - values[0]) * z).mean(0) / s,
        'antithetic': ((values[1] - values[-1]) * z).mean(0) / (2 * s),
    }
    for method, formula in expected.items():
        estimate = zero_order(lambda shape: z, method, num_samples=3, sigma=s)(f)
        (grad,) = torch.autograd.grad(5.0 * estimate(x), x)
        assert torch.allclose(grad, 5.0 * formula, rtol=1e-12), method


# Variances.  For a linear function f(x) = a.x + c, one sample, in coordinate k:


def variance(method: str, a: Tensor, value: float, sigma: float) -> Tensor:
    squared = a @ a
    return {
        'naive': value**2 / sigma**2 + squared + a**2,
        'forward': squared + a**2,
        'antithetic': squared + a**2,
        'spsa': squared - a**2,
    }[method]


@pytest.mark.parametrize('method', ['naive', 'forward', 'antithetic', 'spsa'])
@pytest.mark.parametrize(
    ('sigma', 'num_samples', 'dimension'), [(0.5, 10, 4), (0.05, 10, 4), (0.5, 40, 4), (0.5, 10, 40)]
)
def test_variance_on_linear_functions(method: str, sigma: float, num_samples: int, dimension: int) -> None:
    """So of order 1/sigma^2 for naive and 1 for the others, of order 1/n, and of order d for |a|^2 = d."""
    a = torch.linspace(0.5, 1.5, dimension, dtype=torch.float64)
    x = torch.zeros(dimension, dtype=torch.float64)
    rows = estimates(lambda x: x @ a + 2.0, x, method, 600, num_samples, sigma)
    expected = variance(method, a, 2.0, sigma) / num_samples
    assert (rows.var(0) / expected).mean() == pytest.approx(1.0, abs=0.1)


def test_orthogonal_directions_have_less_variance() -> None:
    r"""As many as dimensions, on a linear function: only the lengths vary, :math:`2(|a|^2 + 2a_k^2)/(d(d+2))`."""
    d = 8
    a = torch.linspace(0.5, 1.5, d, dtype=torch.float64)
    rows = estimates(lambda x: x @ a, torch.zeros(d, dtype=torch.float64), 'orthogonal', 1000, d, 0.3)
    expected = 2 * (a @ a + 2 * a**2) / (d * (d + 2))
    assert (rows.var(0) / expected).mean() == pytest.approx(1.0, abs=0.1)
    assert (expected < 0.3 * variance('antithetic', a, 0.0, 0.3) / d).all()


def test_antithetic_has_no_error_of_even_order() -> None:
    """On an even function, at its center, it is exact, where forward has a variance of order sigma^2."""

    def f(x: Tensor) -> Tensor:
        return (x**2).sum() + (x**4).sum()

    zero = torch.zeros(4, dtype=torch.float64)
    assert estimates(f, zero, 'antithetic', 1, 10, 0.5).abs().max() < 1e-12
    spread = [estimates(lambda x: (x**2).sum(), zero, 'forward', 400, 10, s).std().item() for s in (0.1, 0.2)]
    assert spread[1] / spread[0] == pytest.approx(2.0, abs=0.2)


def test_orthogonal_directions_are_orthogonal_and_keep_their_lengths() -> None:
    """Over all tensors together, in groups of as many as there are dimensions."""
    seen = []

    def record(p: dict[str, Tensor]) -> Tensor:
        seen.append(torch.cat([p['w'].flatten(), p['b'][None]]))
        return p['b']

    drawn = [torch.randn(7, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(7.0)]
    by_shape = {z.shape: z for z in drawn}
    estimate = zero_order(lambda shape: by_shape[shape], 'orthogonal', num_samples=7, sigma=1.0, vectorize=False)
    p = {'w': torch.zeros(2, 2, requires_grad=True), 'b': torch.zeros((), requires_grad=True)}
    estimate(record)(p).backward()
    plus = torch.stack(seen[1::2])
    lengths = torch.cat([drawn[0].flatten(1), drawn[1][:, None]], 1).norm(dim=1)
    assert torch.allclose(plus.norm(dim=1), lengths, atol=1e-5)
    for block in plus.split(5):
        gram = block @ block.T
        assert torch.allclose(gram, torch.diag(gram.diagonal()), atol=1e-4)
    assert torch.allclose(plus[0], torch.cat([drawn[0][0].flatten(), drawn[1][:1]]), atol=1e-5)
