# SPDX-License-Identifier: Apache-2.0
"""Smoothing by perturbation, against Optax and JAXopt with the same noise, and against closed forms."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jaxopt import perturbations as jaxopt_perturbations
from torch import Tensor

from torchopt import perturbations
from torchopt.perturbations import Gumbel, Normal, make_perturbed_argmax, make_perturbed_fun, make_perturbed_max

N, SIGMA = 6, 0.5
X = {'a': np.array([0.3, -0.8, 1.1]), 'b': np.array(0.4)}
NAMES = ['Normal', 'Gumbel']


class Injected:
    """Noise that was drawn elsewhere, by the shape of the leaf."""

    def __init__(self, noise, *drawn: np.ndarray) -> None:
        self.log_prob = noise.log_prob
        self.drawn = {z.shape: torch.tensor(np.array(z)) for z in drawn}

    def sample(self, key, sample_shape=(), dtype=None, device=None) -> Tensor:
        return self.drawn[tuple(sample_shape)].to(dtype)


def torch_fun(x):
    return {'out': (x['a'] > 0) * x['b'] + x['a'].sin(), 'sum': x['a'].sum() ** 2}


def jax_fun(x):
    return {'out': (x['a'] > 0) * x['b'] + jnp.sin(x['a']), 'sum': x['a'].sum() ** 2}


@pytest.mark.parametrize('use_baseline', [True, False])
@pytest.mark.parametrize('name', NAMES)
def test_parity_with_optax(name: str, use_baseline: bool) -> None:
    """Value, first and second derivative of a function of a tree that returns a tree."""
    with jax.enable_x64(True):
        noise, key = getattr(optax.perturbations, name)(), jax.random.key(0)
        keys = jax.random.split(key, N)
        zs = jax.vmap(lambda k: optax.tree.random_like(k, X, sampler=noise.sample))(keys)
        oracle = optax.perturbations.make_perturbed_fun(jax_fun, N, SIGMA, noise, use_baseline)

        def joined(x):
            out = oracle(key, x)
            return out['out'].sum() + 2 * out['sum']

        # One program compiles faster than its operations.
        expected = jax.jit(lambda x: (oracle(key, x), jax.grad(joined)(x), jax.hessian(joined)(x)))(X)
    ours = make_perturbed_fun(
        torch_fun, N, SIGMA, Injected(getattr(perturbations, name)(), zs['a'], zs['b']), use_baseline
    )
    x = {k: torch.tensor(v) for k, v in X.items()}

    def ours_joined(x):
        out = ours(0, x)
        return out['out'].sum() + 2 * out['sum']

    value, grad, hessian = ours(0, x), torch.func.grad(ours_joined)(x), torch.func.hessian(ours_joined)(x)
    for k in ('out', 'sum'):
        np.testing.assert_allclose(value[k], expected[0][k], rtol=1e-12)
    for k in X:
        np.testing.assert_allclose(grad[k], expected[1][k], rtol=1e-9)
        for other in X:
            np.testing.assert_allclose(hessian[k][other], expected[2][k][other], rtol=1e-8, atol=1e-10)


def one_hot_argmax(x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(x.argmax(), x.shape[0]).to(x.dtype)


def jax_one_hot_argmax(x):
    return jax.nn.one_hot(jnp.argmax(x), x.shape[0])


@pytest.mark.parametrize('control_variate', [True, False])
@pytest.mark.parametrize('name', NAMES)
def test_argmax_and_max_agree_with_jaxopt(name: str, control_variate: bool) -> None:
    with jax.enable_x64(True):
        noise, key = getattr(jaxopt_perturbations, name)(), jax.random.key(1)
        z = noise.sample(key, (N, 3))
        argmax = jaxopt_perturbations.make_perturbed_argmax(jax_one_hot_argmax, N, SIGMA, noise, control_variate)
        maximum = jaxopt_perturbations.make_perturbed_max(jax_one_hot_argmax, N, SIGMA, noise)
        v = np.array([1.0, -2.0, 0.5])
        expected = (
            argmax(X['a'], key),
            jax.jvp(lambda x: argmax(x, key), (X['a'],), (v,))[1],
            *jax.value_and_grad(lambda x: maximum(x, key))(X['a']),
        )
    injected = Injected(getattr(perturbations, name)(), z)
    ours = make_perturbed_argmax(one_hot_argmax, N, SIGMA, injected, control_variate)
    ours_max = make_perturbed_max(one_hot_argmax, N, SIGMA, injected)
    x = torch.tensor(X['a'])
    found = (
        ours(x, 0),
        torch.func.jvp(lambda x: ours(x, 0), (x,), (torch.tensor(v),))[1],
        ours_max(x, 0),
        torch.func.grad(ours_max)(x, 0),
    )
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-9)


def test_the_max_has_the_argmax_for_its_gradient() -> None:
    """By reverse and forward mode, and once more: its Hessian is the Jacobian of the argmax with the same noise."""
    x = torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64)
    argmax = make_perturbed_argmax(one_hot_argmax, 200, SIGMA)
    maximum = make_perturbed_max(one_hot_argmax, 200, SIGMA)
    assert torch.allclose(torch.func.grad(maximum)(x, 0), argmax(x, 0))
    assert torch.allclose(torch.func.jacfwd(maximum)(x, 0), argmax(x, 0))
    assert torch.allclose(torch.func.jacrev(torch.func.grad(maximum))(x, 0), torch.func.jacrev(argmax)(x, 0))


def test_closed_forms_for_gumbel_noise() -> None:
    """Argmax gives softmax, max gives logsumexp, plus the mean of the noise."""
    x = torch.tensor([0.1, 0.5, -0.4], dtype=torch.float64)
    n = 100_000
    soft = (x / SIGMA).softmax(0)
    argmax = make_perturbed_argmax(one_hot_argmax, n, SIGMA, control_variate=True)
    assert torch.allclose(argmax(x, 0), soft, atol=0.01)
    jacobian = (torch.diag(soft) - torch.outer(soft, soft)) / SIGMA
    assert torch.allclose(torch.func.jacrev(argmax)(x, 0), jacobian, atol=0.03)
    maximum = make_perturbed_max(one_hot_argmax, n, SIGMA)
    euler = 0.5772156649015329
    assert maximum(x, 0).item() == pytest.approx(SIGMA * ((x / SIGMA).logsumexp(0).item() + euler), abs=0.01)


def test_closed_forms_for_normal_noise() -> None:
    """A step becomes the normal distribution function, also in its second derivative."""
    smooth = make_perturbed_fun(lambda x: (x > 0).double(), 400_000, SIGMA, Normal())
    x = torch.tensor(0.3, dtype=torch.float64)
    density = math.exp(-0.5 * (0.3 / SIGMA) ** 2) / (SIGMA * math.sqrt(2 * math.pi))
    assert smooth(0, x).item() == pytest.approx(0.5 * math.erfc(-0.3 / SIGMA / math.sqrt(2)), abs=0.005)
    assert torch.func.grad(smooth, argnums=1)(0, x).item() == pytest.approx(density, abs=0.02)
    second = torch.func.grad(torch.func.grad(smooth, argnums=1), argnums=1)(0, x).item()
    assert second == pytest.approx(-0.3 / SIGMA**2 * density, abs=0.06)


@pytest.mark.parametrize('noise', [Normal(), Gumbel()], ids=NAMES)
def test_noise(noise) -> None:
    """The moments, the density's logarithm up to a constant, and dtypes."""
    z = noise.sample(0, (200_000,), torch.float64)
    mean, std = {'Normal': (0.0, 1.0), 'Gumbel': (0.5772, math.pi / math.sqrt(6))}[type(noise).__name__]
    assert z.mean().item() == pytest.approx(mean, abs=0.01)
    assert z.std().item() == pytest.approx(std, abs=0.01)
    reference = {'Normal': torch.distributions.Normal, 'Gumbel': torch.distributions.Gumbel}[type(noise).__name__]
    difference = noise.log_prob(z[:5]) - reference(torch.tensor(0.0, dtype=torch.float64), 1.0).log_prob(z[:5])
    assert torch.allclose(difference, difference[:1].expand(5))
    assert noise.sample(torch.Generator().manual_seed(0)).shape == ()
    assert noise.sample(0, (3,), torch.float16).dtype == torch.float16
    with pytest.raises(TypeError, match=r'Invalid key: 1.5 is a float; expected an int, a 0-d integer tensor or'):
        noise.sample(1.5)


def test_keys() -> None:
    """A seed is a value, a generator a stream; other generators are left alone."""
    smooth = make_perturbed_fun(lambda x: x.square().sum(), 5)
    x, state = torch.ones(2), torch.get_rng_state()
    assert smooth(3, x) == smooth(3, x) != smooth(4, x)
    generator = torch.Generator().manual_seed(3)
    first, second = smooth(generator, x), smooth(generator, x)
    assert first != second
    assert first == smooth(torch.Generator().manual_seed(3), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_black_boxes_counts_and_none() -> None:
    """A function that vmap cannot map goes in a loop; integers and truth values are averaged."""

    def in_numpy(x):
        return torch.tensor(int((x['w'].detach().numpy() > 0).sum())), x['w'] > 0

    smooth = make_perturbed_fun(in_numpy, 50, 0.5, Normal())
    x = {'w': torch.tensor([0.1, -0.2]), 'none': None}
    count, positive = smooth(0, x)
    assert count == pytest.approx(positive.sum().item())
    x['w'].requires_grad_()
    (grad,) = torch.autograd.grad(smooth(0, x)[0], x['w'])
    assert grad.shape == (2,)


def test_vmap_over_the_argument() -> None:
    smooth = make_perturbed_fun(lambda x: x.square().sum(), 5, 0.5)
    xs = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    found = torch.func.vmap(lambda x: torch.func.grad(smooth, argnums=1)(0, x))(xs)
    expected = torch.stack([torch.func.grad(smooth, argnums=1)(0, x) for x in xs])
    assert torch.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize('make', [make_perturbed_fun, make_perturbed_argmax, make_perturbed_max])
@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'num_samples': 0}, ValueError, 'Invalid num_samples: 0; expected an int >= 1'),
        ({'num_samples': 1.5}, TypeError, 'Invalid num_samples: 1.5 is a float'),
        ({'sigma': 0.0}, ValueError, 'Invalid sigma: 0.0'),
    ],
)
def test_bad_options(make, options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(one_hot_argmax, **options)


@pytest.mark.parametrize('leaf', [torch.arange(3), 1.0, torch.ones(2, dtype=torch.complex64)])
def test_bad_arguments(leaf) -> None:
    with pytest.raises(TypeError, match=r"Invalid argument: x\['w'\] is .*; expected a tensor of a real floating"):
        make_perturbed_fun(lambda x: x['w'].sum())(0, {'w': leaf})
