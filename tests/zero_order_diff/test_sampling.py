# SPDX-License-Identifier: Apache-2.0
"""Where directions come from, and how the function is evaluated."""

from __future__ import annotations

import functools
import multiprocessing
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from torchopt.zero_order_diff import ESTIMATORS, zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)
LAPLACE = torch.distributions.Laplace(0.0, 0.5**0.5)
SOURCES = {'normal': NORMAL, 'laplace': LAPLACE, 'randn': torch.randn}
X = torch.tensor([0.3, -0.8, 1.1])
every_source = pytest.mark.parametrize('distribution', SOURCES.values(), ids=SOURCES)


def square(x: Tensor) -> Tensor:
    return x.square().sum()


def in_numpy(x: Tensor, scale: float = 1.0) -> Tensor:
    return torch.tensor(scale * (x.numpy() ** 2).sum())


def gradient(f, *args, x: Tensor = X, **options) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(zero_order(*args, **options)(f)(x), x)[0]


@every_source
def test_a_seed_gives_the_same_directions_in_every_pass(distribution) -> None:
    """Common random numbers; nobody else's numbers change."""
    estimate = zero_order(distribution, 'forward', num_samples=5, sigma=0.1, seed=4)(square)
    state = torch.get_rng_state()
    x = X.clone().requires_grad_()
    first, second = (torch.autograd.grad(estimate(x), x)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(gradient(square, distribution, 'forward', num_samples=5, sigma=0.1, seed=5), first)
    # The value differs from point to point, the directions do not: the difference of estimates is smooth.
    near = (X + 1e-3).requires_grad_()
    assert torch.allclose(torch.autograd.grad(estimate(near), near)[0], first, atol=0.05)


@every_source
def test_a_generator_goes_on_from_pass_to_pass(distribution) -> None:
    state = torch.get_rng_state()

    def two() -> list[Tensor]:
        generator = torch.Generator().manual_seed(4)
        estimate = zero_order(distribution, num_samples=5, generator=generator)(square)
        x = X.clone().requires_grad_()
        return [torch.autograd.grad(estimate(x), x)[0] for _ in range(2)]

    (a, b), (c, d) = two(), two()
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert not torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


@every_source
def test_without_either_the_global_generator_decides_at_the_backward_pass(distribution) -> None:
    x = X.clone().requires_grad_()
    estimate = zero_order(distribution, num_samples=5)(square)
    found = []
    for _ in range(2):
        value = estimate(x)
        torch.manual_seed(0)
        found.append(torch.autograd.grad(value, x)[0])
    assert torch.equal(*found)
    torch.manual_seed(0)
    estimate(x)
    assert not torch.equal(torch.autograd.grad(estimate(x), x)[0], torch.autograd.grad(estimate(x), x)[0])


@pytest.mark.parametrize('method', ESTIMATORS)
def test_vmap_loop_and_executors_agree(method: str) -> None:
    options = {'num_samples': 7, 'sigma': 0.1, 'seed': 0}
    expected = gradient(square, NORMAL, method, vectorize=True, **options)
    context = multiprocessing.get_context('fork')
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2, mp_context=context) as processes:
        for more in ({'vectorize': False}, {'executor': threads}, {'executor': processes}):
            assert torch.allclose(gradient(square, NORMAL, method, **options, **more), expected, atol=1e-5), more


def test_processes_find_a_function_whose_name_the_decorator_took(monkeypatch: pytest.MonkeyPatch) -> None:
    x = X.clone().requires_grad_()
    estimate = functools.partial(zero_order, NORMAL, 'forward', num_samples=4, sigma=0.1, seed=0)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context('fork')) as executor:
        monkeypatch.setattr(sys.modules[__name__], 'decorated', estimate(executor=executor)(decorated))
        found = torch.autograd.grad(decorated(x, scale=2.0), x)[0]
    assert torch.allclose(found, torch.autograd.grad(estimate()(in_numpy)(x, scale=2.0), x)[0], atol=1e-5)


def decorated(x: Tensor, scale: float) -> Tensor:
    return in_numpy(x, scale)


def test_an_error_in_another_process_arrives() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('fork')) as executor,
        pytest.raises(ZeroDivisionError),
    ):
        gradient(fails_off_the_point, NORMAL, executor=executor)


def fails_off_the_point(x: Tensor) -> Tensor:
    if not torch.equal(x, X):
        raise ZeroDivisionError('off the point')
    return x.sum()


def test_a_black_box_is_found_out_once() -> None:
    """``vmap`` is tried at the first backward pass, and not again."""
    batched = []

    def f(x: Tensor) -> Tensor:
        batched.append(torch._C._functorch.is_batchedtensor(x))
        return in_numpy(x)

    x = X.clone().requires_grad_()
    estimate = zero_order(NORMAL, num_samples=3)(f)
    for _ in range(2):
        estimate(x).backward()
    assert batched == [False, True, False, False, False] + [False] * 4
    with pytest.raises(RuntimeError, match="doesn't have storage"):
        zero_order(NORMAL, vectorize=True)(in_numpy)(x).backward()


def test_vmap_calls_once_for_all_samples_of_a_chunk() -> None:
    shapes = []

    def f(x: Tensor) -> Tensor:
        shapes.append(tuple(torch._C._functorch.get_unwrapped(x).shape) if x.dim() and is_batched(x) else None)
        return x.sum()

    gradient(f, NORMAL, num_samples=10, chunk_size=4)
    assert shapes == [None, (4, 3), (4, 3), (2, 3)]


def is_batched(x: Tensor) -> bool:
    return torch._C._functorch.is_batchedtensor(x)


@every_source
def test_no_more_directions_are_drawn_at_a_time_than_the_chunk_holds(distribution) -> None:
    asked = []

    def sample(shape: torch.Size) -> Tensor:
        asked.append(tuple(shape))
        return torch.ones(shape)

    found = gradient(square, sample, 'antithetic', num_samples=10, sigma=0.1, chunk_size=4)
    assert asked == [(4, 3), (4, 3), (2, 3)]
    assert torch.allclose(found, torch.full((3,), 2 * X.sum().item()), atol=1e-4)
    options = {'num_samples': 6000, 'sigma': 0.1, 'seed': 0, 'chunk_size': 7}
    assert torch.allclose(gradient(square, distribution, 'antithetic', **options), 2 * X, atol=0.2)


def test_chunks_have_different_directions() -> None:
    found = gradient(square, NORMAL, 'naive', num_samples=2, seed=0, chunk_size=1)
    assert not torch.allclose(found, gradient(square, NORMAL, 'naive', num_samples=1, seed=0))


def test_random_functions_draw_for_each_sample() -> None:
    """Under vmap as in a loop: the mean over dropout masks."""
    w = torch.ones(50)

    def f(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x * w, 0.5).sum()

    torch.manual_seed(0)
    x = torch.zeros(50)
    for vectorize in (True, False):
        options = {'num_samples': 400, 'sigma': 0.1, 'seed': 0, 'vectorize': vectorize}
        found = gradient(f, NORMAL, 'forward', x=x, **options)
        assert found.mean() == pytest.approx(1.0, abs=0.3)


def test_threads_run_at_the_same_time() -> None:
    """Two samples that wait for one another."""
    barrier = threading.Barrier(2, timeout=20)

    def f(x: Tensor) -> Tensor:
        if not torch.equal(x, X):
            barrier.wait()
        return x.sum()

    with ThreadPoolExecutor(2) as executor:
        gradient(f, NORMAL, num_samples=2, executor=executor)
        gradient(f, NORMAL, 'antithetic', num_samples=1, executor=executor)
