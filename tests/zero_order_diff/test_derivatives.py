# SPDX-License-Identifier: Apache-2.0
"""Second derivatives, and every transform of torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt.zero_order_diff import zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)
GAUSSIAN = ('naive', 'forward', 'antithetic', 'orthogonal')
X = torch.tensor([0.3, -0.8, 1.1], dtype=torch.float64)
A = torch.tensor([[2.0, 0.5, 0], [0.5, 1.0, 0.3], [0, 0.3, -3.0]], dtype=torch.float64)


def quadratic(x: Tensor) -> Tensor:
    return 0.5 * x @ A @ x + x.sum()


def black_box(x: Tensor) -> Tensor:
    """The same in NumPy."""
    v = x.numpy()
    return torch.tensor(0.5 * v @ A.numpy() @ v + v.sum())


def product(f, v: Tensor, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(x), x, create_graph=True)
    return torch.autograd.grad(g @ v, x)[0]


@pytest.mark.parametrize('method', GAUSSIAN)
@pytest.mark.parametrize('problem', ['quadratic', 'sine'])
def test_the_second_derivative_is_unbiased(method: str, problem: str) -> None:
    """The Hessian of the smoothed function times a vector, within 3 standard errors of 40,000 samples."""
    sigma = 0.7
    f, expected = {
        'quadratic': (quadratic, A),
        'sine': (lambda x: x.sin().sum(), torch.diag(-math.exp(-(sigma**2) / 2) * X.sin())),
    }[problem]
    v = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    estimate = zero_order(NORMAL, method, num_samples=200, sigma=sigma, generator=generator)(f)
    rows = torch.stack([product(estimate, v, X) for _ in range(200)])
    error = (rows.mean(0) - expected @ v).abs()
    assert (error <= 3 * rows.std(0) / math.sqrt(len(rows))).all(), error


@pytest.mark.parametrize('method', GAUSSIAN)
def test_the_second_derivative_is_the_formula(method: str) -> None:
    """By hand, from the directions that the same seed draws; no more evaluations than the gradient takes."""
    sigma, n, v, calls, drawn = 0.4, 5, torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), [], []

    def f(x: Tensor) -> Tensor:
        calls.append(x)
        return x.prod() + x.sin().sum()

    estimate = zero_order(NORMAL, method, num_samples=n, sigma=sigma, seed=3, vectorize=False)(f)
    found = product(estimate, v, X)
    pairs = method in ('antithetic', 'orthogonal')
    assert len(calls) == 1 + n * (2 if pairs else 1)
    drawn = torch.stack([(x - X) / sigma for x in calls[1 :: 2 if pairs else 1]])
    h = torch.zeros(3, dtype=torch.float64)
    for z in drawn:
        plus, minus, center = (f(X + s * sigma * z) for s in (1, -1, 0))
        weight = {'naive': plus, 'forward': plus - center}.get(method, (plus + minus) / 2 - center)
        h += weight * (z * (z @ v) - v) / (n * sigma**2)
    assert torch.allclose(found, h, rtol=1e-10)


NOT_NORMAL = [
    (NORMAL, 'spsa'),
    (torch.distributions.Uniform(-math.sqrt(3), math.sqrt(3)), 'forward'),
    (torch.randn, 'naive'),
    (torch.randn, 'orthogonal'),
]


@pytest.mark.parametrize(('distribution', 'method'), NOT_NORMAL)
def test_for_other_directions_the_second_derivative_is_that_of_the_estimate(distribution, method: str) -> None:
    """Finite differences of the gradient with the same directions."""
    estimate = zero_order(distribution, method, num_samples=10, sigma=0.3, seed=0, chunk_size=4)(
        lambda x: quadratic(x) + x.sin().prod()
    )
    v, h = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), 1e-5
    gradient = torch.func.grad(estimate)
    steps = h * torch.eye(3, dtype=torch.float64)
    expected = torch.stack([(gradient(X + e) - gradient(X - e)) @ v / (2 * h) for e in steps])
    torch.testing.assert_close(product(estimate, v, X), expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(RuntimeError, match='forward-mode derivatives only'):
        torch.func.jacfwd(gradient)(X)


@pytest.mark.parametrize(
    'f',
    [lambda x: black_box(x.detach()), lambda x: x.sign().sum(), lambda x: (x > 0).double().sum()],
    ids=['NumPy', 'sign', 'comparison'],
)
@pytest.mark.parametrize(('distribution', 'method'), NOT_NORMAL)
def test_a_second_derivative_that_is_not_defined_is_refused(distribution, method: str, f) -> None:
    x = X.clone().requires_grad_()
    estimate = zero_order(distribution, method, num_samples=10, sigma=0.1)(
        lambda x: f(x.detach() if f is black_box else x)
    )
    (g,) = torch.autograd.grad(estimate(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r'cannot be differentiated with respect to its argnums.*Normal\(0.0, 1.0\)'):
        torch.autograd.grad(g.sum(), x)


@pytest.mark.parametrize('method', ['spsa', 'forward'])
def test_what_comes_after_can_be_differentiated_twice_all_the_same(method: str) -> None:
    """The gradient is linear in what flows in, whatever the estimator."""
    x, scale = X.clone().requires_grad_(), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    estimate = zero_order(torch.randn, method, num_samples=10, sigma=0.1, seed=0)(quadratic)
    (expected,) = torch.autograd.grad(estimate(x), x)
    (g,) = torch.autograd.grad(scale**2 * estimate(x), x, create_graph=True)
    assert torch.allclose(g, 9 * expected)
    assert torch.allclose(torch.autograd.grad(g.sum(), scale)[0], 6 * expected.sum())


def test_third_derivatives_are_refused() -> None:
    estimate = zero_order(NORMAL, num_samples=10)(quadratic)
    with pytest.raises(RuntimeError, match='no third derivatives'):
        torch.func.grad(lambda x: torch.func.hessian(estimate)(x).sum())(X)


def test_mixed_second_derivatives() -> None:
    """Of a function of two arguments, as a meta-gradient needs them."""
    x, y = X.clone().requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    estimate = zero_order(NORMAL, 'antithetic', argnums=(0, 1), num_samples=100_000, sigma=0.5, seed=0)
    (g,) = torch.autograd.grad(estimate(lambda x, y: y * x.sum())(x, y), x, create_graph=True)
    assert torch.autograd.grad(g.sum(), y)[0].item() == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize('vectorize', [None, False], ids=['vmap', 'loop'])
@pytest.mark.parametrize('method', [*GAUSSIAN, 'spsa'])
@pytest.mark.parametrize('distribution', [NORMAL, torch.randn], ids=['normal', 'function'])
def test_the_gradient_has_derivatives_in_arguments_that_are_not_perturbed(distribution, method, vectorize) -> None:
    """The function is a^2 times another, so with the same directions the derivative is 2 / a times the gradient."""
    estimate = zero_order(distribution, method, num_samples=9, sigma=0.4, seed=0, chunk_size=4, vectorize=vectorize)(
        lambda x, given: given['a'] ** 2 * quadratic(x) + given['b'].sum()
    )
    a, b = torch.tensor(1.5, dtype=torch.float64, requires_grad=True), torch.ones(2, requires_grad=True)
    v, x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64), X.clone().requires_grad_()
    torch.manual_seed(0)
    (g,) = torch.autograd.grad(estimate(x, {'a': a, 'b': b}), x, create_graph=True)
    if method in ('naive', 'forward'):  # the weights of the values do not add up to zero
        b_bar = torch.autograd.grad(g @ v, b, retain_graph=True)[0]
        assert (b_bar.abs() > 1e-3).all() == (method == 'naive')
        b = b.detach()
        (g,) = torch.autograd.grad(estimate(x, {'a': a, 'b': 0 * b}), x, create_graph=True)
    (found,) = torch.autograd.grad(g @ v, a, retain_graph=True)
    torch.testing.assert_close(found, 2 / a.detach() * (g.detach() @ v))
    of_gradient = torch.func.grad(lambda x, a: estimate(x, {'a': a, 'b': 0 * b.detach()}))
    through_func = torch.func.grad(lambda a: of_gradient(X, a) @ v)(a.detach())
    torch.testing.assert_close(through_func, found)
    batch = torch.stack([a.detach(), 2 * a.detach()])
    each = torch.vmap(torch.func.grad(lambda a: of_gradient(X, a) @ v), randomness='same')(batch)
    torch.testing.assert_close(each, torch.stack([found, 2 * found]))


@pytest.mark.parametrize('distribution', [NORMAL, torch.randn], ids=['normal', 'function'])
@pytest.mark.parametrize('method', ['forward', 'antithetic'])
def test_derivatives_that_are_zero_are_no_errors(distribution, method: str) -> None:
    x, a, unused = (t.requires_grad_() for t in (X.clone(), torch.tensor(2.0), torch.tensor(1.0)))
    estimate = zero_order(distribution, method, num_samples=5, sigma=0.1)(lambda x, a, unused: x.sum() + a**2)
    (g,) = torch.autograd.grad(estimate(x, a, unused), x, create_graph=True)
    for found in torch.autograd.grad(g.sum(), (a, unused), retain_graph=True):
        assert abs(found.item()) < 1e-6
    if distribution is not NORMAL:  # Stein's estimate is zero in expectation only
        torch.testing.assert_close(torch.autograd.grad(g.sum(), x)[0], torch.zeros_like(x))
    with pytest.raises(RuntimeError, match='forward-mode derivatives only with respect to its argnums'):
        torch.func.jacfwd(lambda a: torch.func.grad(estimate)(X, a, a))(torch.tensor(2.0))


@pytest.mark.parametrize('f', [quadratic, black_box])
def test_transforms_agree_with_autograd(f) -> None:
    """The same seed, so the same numbers, by whichever transform."""
    estimate = zero_order(NORMAL, 'antithetic', num_samples=50, sigma=0.5, seed=0)(f)
    x = X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(estimate(x), x)
    hessian = torch.stack([product(estimate, v, X) for v in torch.eye(3, dtype=torch.float64)])
    func = torch.func
    assert torch.equal(func.grad(estimate)(X), expected)
    assert torch.allclose(func.jacrev(estimate)(X), expected)
    assert torch.allclose(func.jacfwd(estimate)(X), expected)
    value, tangent = func.jvp(estimate, (X,), (torch.arange(3.0, dtype=torch.float64),))
    assert torch.allclose(value, quadratic(X))
    assert torch.allclose(tangent, expected @ torch.arange(3.0, dtype=torch.float64))
    for twice in (func.hessian, lambda f: func.jacrev(func.jacrev(f)), lambda f: func.jacrev(func.jacfwd(f))):
        assert torch.allclose(twice(estimate)(X), hessian)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(estimate(forward_ad.make_dual(X, torch.ones_like(X))))
    assert torch.allclose(dual.tangent, expected.sum())
    compiled = torch.compile(lambda x: 2 * estimate(x), backend='aot_eager')
    assert torch.allclose(torch.autograd.grad(compiled(x), x)[0], 2 * expected)


@pytest.mark.parametrize('f', [quadratic, black_box])
def test_vmap_takes_one_after_another(f) -> None:
    estimate = zero_order(NORMAL, 'antithetic', num_samples=50, sigma=0.5, seed=0)(f)
    xs = torch.stack([X, 2 * X])
    each = torch.stack([torch.func.grad(estimate)(x) for x in xs])
    vmap, grad = torch.func.vmap, torch.func.grad
    assert torch.allclose(vmap(estimate)(xs), torch.stack([quadratic(x) for x in xs]))
    assert torch.allclose(vmap(grad(estimate))(xs), each)
    assert torch.allclose(vmap(grad(estimate), in_dims=1)(xs.T), each)
    assert torch.allclose(grad(lambda xs: vmap(estimate)(xs).sum())(xs), each)
    assert torch.allclose(vmap(vmap(grad(estimate)))(xs[None]), each[None])
    assert torch.equal(vmap(lambda c: c * grad(estimate)(X))(torch.ones(2, dtype=torch.float64)), each[[0, 0]])


def test_vmap_over_other_arguments() -> None:
    estimate = zero_order(NORMAL, 'antithetic', num_samples=20, sigma=0.5, seed=0)(lambda x, c: (c * x).sum())
    cs = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = torch.func.vmap(torch.func.grad(estimate), in_dims=(None, 0))(X, cs)
    assert torch.allclose(found[1], -2 * found[0])


def test_elements_of_a_batch_have_directions_of_their_own() -> None:
    """Unless vmap is asked for the same."""
    torch.manual_seed(0)
    estimate = torch.func.grad(zero_order(NORMAL, num_samples=5)(quadratic))
    different = torch.func.vmap(estimate)(torch.stack([X, X]))
    assert not torch.equal(different[0], different[1])
    same = torch.func.vmap(estimate, randomness='same')(torch.stack([X, X]))
    assert torch.equal(same[0], same[1])


def test_forward_over_forward() -> None:
    """Left alone, torch drops the inner tangent of a custom function there, and finds zero."""
    estimate = zero_order(NORMAL, num_samples=5, seed=0)(quadratic)
    found = torch.func.jacfwd(torch.func.jacfwd(estimate))(X)
    torch.testing.assert_close(found, torch.func.jacrev(torch.func.jacrev(estimate))(X))
    assert found.abs().max() > 0


def test_the_callers_mode_is_not_the_functions() -> None:
    """The function may differentiate inside, whether or not the caller records a graph."""

    def trained(x: Tensor) -> Tensor:
        w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            (g,) = torch.autograd.grad(((w - x) ** 2).sum(), w)
            w = (w - 0.25 * g).detach().requires_grad_()
        return w.sum()

    estimate = zero_order(NORMAL, 'antithetic', num_samples=1000, sigma=0.1, seed=0)(trained)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            value = estimate(X)
        assert not value.requires_grad
        assert value == pytest.approx(0.75 * X.sum().item())
    x = X.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(estimate(x), x)[0], torch.full_like(X, 0.75), atol=0.1)
    with torch.inference_mode():
        assert zero_order(NORMAL)(quadratic)(X + 0.0) == quadratic(X)


def test_autocast_of_the_forward_pass_holds_in_the_backward_pass() -> None:
    seen = []

    def f(x: Tensor) -> Tensor:
        seen.append((x @ x).dtype)
        return x.square().sum()

    x = torch.ones(2, requires_grad=True)
    estimate = zero_order(NORMAL, num_samples=2, vectorize=False)(f)
    with torch.autocast('cpu', torch.bfloat16):
        value = estimate(x)
    value.backward()
    assert seen == [torch.bfloat16] * 3
    assert np.isfinite(x.grad.numpy()).all()
