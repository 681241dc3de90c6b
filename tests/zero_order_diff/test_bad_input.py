# SPDX-License-Identifier: Apache-2.0
"""What is refused: every message names what was wrong and what to do."""

from __future__ import annotations

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.distributions import Cauchy, Gumbel, Laplace, Normal, StudentT, Uniform

from torchopt import perturbations
from torchopt.zero_order_diff import ESTIMATORS, zero_order

NORMAL = Normal(0.0, 1.0)


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'method': 'central'}, ValueError, "Invalid method: 'central'; expected one of 'naive'"),
        ({'num_samples': 0}, ValueError, 'Invalid num_samples: 0; expected an int >= 1'),
        ({'num_samples': 2.0}, TypeError, 'Invalid num_samples: 2.0 is a float'),
        ({'num_samples': True}, TypeError, 'Invalid num_samples: True is a bool'),
        ({'sigma': 0.0}, ValueError, 'Invalid sigma: 0.0; expected a number > 0'),
        ({'sigma': -1}, ValueError, 'Invalid sigma: -1'),
        ({'sigma': float('nan')}, ValueError, 'Invalid sigma: nan'),
        ({'sigma': float('inf')}, ValueError, 'Invalid sigma: inf; expected a finite number'),
        ({'sigma': 'small'}, TypeError, "Invalid sigma: 'small' is a str"),
        ({'chunk_size': 0}, ValueError, 'Invalid chunk_size: 0'),
        ({'argnums': ()}, TypeError, r'Invalid argnums: \(\); expected an int or a sequence of at least one'),
        ({'argnums': (0, 1.0)}, TypeError, 'Invalid argnums'),
        ({'argnums': None}, TypeError, 'Invalid argnums: None'),
        ({'seed': 1.5}, TypeError, 'Invalid seed: 1.5 is a float'),
        ({'generator': 3}, TypeError, 'Invalid generator: 3 is an int; .* Pass an int as seed'),
        ({'seed': 1, 'generator': torch.Generator()}, TypeError, 'generator and seed were both given'),
        ({'executor': 2}, TypeError, 'Invalid executor: 2; expected an executor of concurrent.futures'),
        ({'executor': ThreadPoolExecutor(1), 'vectorize': True}, TypeError, 'vectorize not True'),
        ({'distribution': 3}, TypeError, '`distribution` must be a callable or an instance of `Samplable`'),
        ({'distribution': None}, TypeError, '`distribution` must be a callable or an instance of `Samplable`'),
        ({'distribution': Normal(0.0, 2.0)}, ValueError, 'has variance 4; expected 1. Divide its scale by 2'),
        ({'distribution': Normal(0.0, 2.0).sample}, ValueError, 'has variance 4; expected 1. Divide its scale by 2'),
        ({'distribution': Laplace(0.0, 1.0)}, ValueError, 'has variance 2; expected 1. Divide its scale by 1.41421'),
        ({'distribution': Uniform(0.0, 12**0.5)}, ValueError, r'has mean 1.73205; expected a symmetric distribution'),
        ({'distribution': Gumbel(0.0, 1.0)}, ValueError, 'has mean 0.577'),
        ({'distribution': Cauchy(0.0, 1.0)}, ValueError, 'has mean nan'),
        ({'distribution': StudentT(2.0)}, ValueError, 'has variance inf; .* Use one whose variance is finite'),
        (
            {'distribution': Normal(torch.zeros(3), 1.0)},
            ValueError,
            r'has shape \(3,\); expected a distribution of scalars',
        ),
    ],
)
def test_the_decorator_refuses(options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        zero_order(**{'distribution': NORMAL, **options})


def test_approximate_moments_will_do() -> None:
    zero_order(Uniform(-1.732, 1.732))
    zero_order(torch.distributions.Independent(NORMAL, 0))


def total(x: Tensor, *rest) -> Tensor:
    return x.sum()


def backward(f, *args, **options) -> None:
    x = torch.ones(3, requires_grad=True)
    zero_order(**{'distribution': NORMAL, 'seed': 0, **options})(f)(x, *args).backward()


@pytest.mark.parametrize(
    ('f', 'args', 'options', 'error', 'message'),
    [
        (total, (), {'argnums': 1}, ValueError, 'argnums has 1, but the function was called with 1 positional'),
        (total, (), {'argnums': -2}, ValueError, 'argnums has -2'),
        (total, (3,), {'argnums': (0, 1)}, TypeError, 'argnums has 1, but that argument, an int, contains no tensor'),
        (total, (torch.arange(3),), {'argnums': 1}, TypeError, 'a Tensor, contains no tensor of a floating dtype'),
        (lambda x: 1.0, (), {}, TypeError, '`output` must be a tensor. The function returned a float'),
        (lambda x: x, (), {}, RuntimeError, r'`output` must be a scalar tensor. .* of shape \(3,\); .* its mean'),
        (lambda x: (x > 0).sum(), (), {}, TypeError, 'real floating dtype. The function returned torch.int64'),
        (lambda x: x.sum() * 1j, (), {}, TypeError, 'real floating dtype. The function returned torch.complex64'),
        (total, (), {'distribution': lambda s: torch.randn(s[1:])}, ValueError, r'shape \(3,\) where \(1, 3\) was'),
        (total, (), {'distribution': lambda s: torch.randn(7, 3)}, ValueError, r'shape \(7, 3\) where \(1, 3\) was'),
    ],
)
def test_the_function_is_refused(f, args, options, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        backward(f, *args, **options)


def test_no_function() -> None:
    with pytest.raises(TypeError, match='zero_order decorates a function; 3 is an int'):
        zero_order(NORMAL)(3)


def _zero_order(method: str, x: Tensor, sigma: float) -> Tensor:
    f = zero_order(NORMAL, method, num_samples=4, sigma=sigma, seed=0)(lambda x: x.abs().square().sum().float())
    x = x.clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


def _perturbed(x: Tensor, sigma: float) -> Tensor:
    f = perturbations.make_perturbed_fun(lambda x: x.square().sum(), num_samples=4, sigma=sigma)
    return torch.func.grad(lambda x: f(0, x))(x)


PERTURBED = {
    **{method: functools.partial(_zero_order, method) for method in ESTIMATORS},
    'make_perturbed_fun': _perturbed,
}


@pytest.mark.parametrize('method', PERTURBED)
@pytest.mark.parametrize(
    ('x', 'sigma', 'is_lost'),
    [
        (torch.tensor([1.0, 2.0]), 1e-8, True),
        (torch.tensor([1.0, -3e7]), 1.0, True),
        (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), 1e-3, True),
        (torch.tensor([1.0, 2.0]), 1e-3, False),
        (torch.tensor([1.0, 2.0], dtype=torch.float64), 1e-8, False),
        (torch.zeros(2), 1e-30, False),
        (torch.zeros(0), 1e-8, False),
        (torch.tensor(2.0), 1e-8, True),
    ],
)
def test_perturbations_that_are_lost_to_rounding(method: str, x: Tensor, sigma: float, is_lost: bool) -> None:
    """The gradient would be zero in silence."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        PERTURBED[method](x, sigma)
    lost = [str(w.message) for w in caught if 'lost to rounding' in str(w.message)]
    assert bool(lost) is is_lost
    assert all(f'sigma={sigma:g}' in message and str(x.dtype) in message for message in lost)


@pytest.mark.parametrize('vectorize', [True, False])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_values_that_are_no_numbers_are_reported_with_their_sample(value: float, vectorize: bool) -> None:
    """In the second chunk of a pair, on the other side."""
    z = torch.arange(1.0, 8.0).reshape(7, 1).expand(7, 3)
    drawn = iter([z[:3], z[3:6], z[6:]])

    def f(x: Tensor) -> Tensor:
        return torch.where(x[0] < 1 - 4.5, value, x.sum())

    with pytest.raises(ValueError, match=rf'returned {value} at x - sigma \* z for sample 4 of 7, counted from 0'):
        backward(
            f,
            distribution=lambda shape: next(drawn),
            method='antithetic',
            num_samples=7,
            chunk_size=3,
            vectorize=vectorize,
        )


def test_a_point_without_a_value() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.where((x == 1).all(), float('nan'), x.sum())

    with pytest.raises(ValueError, match='returned nan at the point itself'):
        backward(f, method='forward', num_samples=3)
    backward(f, method='antithetic', num_samples=3)  # which does not need it


@pytest.mark.parametrize('vectorize', [None, False])
def test_a_function_that_changes_its_input_is_reported(vectorize: bool | None) -> None:
    def changes_parameter(x: Tensor) -> Tensor:
        return x.mul_(2).sum()

    with pytest.raises(RuntimeError, match=r'changed its input args\[0\] in place.*x = x.clone\(\)'):
        backward(changes_parameter, vectorize=vectorize)

    def changes_data(x: Tensor, batch: dict[str, list[Tensor]]) -> Tensor:
        batch['images'][0].add_(1)
        return x.sum()

    with pytest.raises(RuntimeError, match=r"changed its input args\[1\]\['images'\]\[0\] in place"):
        backward(changes_data, {'images': [torch.ones(2)]}, vectorize=vectorize)

    calls = []

    def changes_later(x: Tensor, batch: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) > 1:
            batch.add_(1)
        return x.sum()

    with pytest.raises(RuntimeError, match=r'changed its input args\[1\] in place'):
        backward(changes_later, torch.ones(2), vectorize=vectorize)
