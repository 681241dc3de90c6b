# SPDX-License-Identifier: Apache-2.0
"""Differentiable steps of gradient descent, which torch's own operations take: they agree with the engine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt
from torchopt._C import dispatch

F32, F64 = torch.float32, torch.float64
TAKEN: dict[str, Any] = {
    'sgd': torchopt.sgd(0.1),
    'maximize': torchopt.sgd(0.1, maximize=True),
    'schedule': torchopt.sgd(lambda count: 0.1 * 0.5**count),
    'scale': torchopt.chain(torchopt.transform.scale(-0.3)),
    'no rate': torchopt.sgd(0.0),
}
LEFT: dict[str, Any] = {
    'weight decay': torchopt.sgd(0.1, weight_decay=0.01),
    'momentum': torchopt.sgd(0.1, momentum=0.9),
    'learned': torchopt.sgd(torch.tensor(0.1, requires_grad=True)),
    'rates': torchopt.sgd([0.1, 0.2]),
    'adam': torchopt.adam(0.1),
}
SHAPES = [(3, 5), ()], [(0,), (7,)], [(2, 2)] * 40


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each differentiable step was taken by operations of torch."""
    answers: list[bool] = []
    descend = dispatch._descend

    def spy(*args: Any) -> Any:
        moved = descend(*args)
        answers.append(moved is not None)
        return moved

    monkeypatch.setattr(dispatch, '_descend', spy)
    return answers


@pytest.fixture
def by_engine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a function with the engine only."""

    def call(function: Callable[..., Any], *args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(dispatch, '_descend', lambda *args: None)
            return function(*args)

    return call


def leaves(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = F64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


def step(tx: Any, n: int) -> Callable[..., tuple[Tensor, ...]]:
    """Two steps with the same gradients, as a function of ``n`` gradients and ``n`` parameters."""

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        grads, params = list(tensors[:n]), list(tensors[n:])
        state = tx.init(params)
        for _ in range(2):
            params, state = torchopt.update_params(tx, grads, state, params)
        return tuple(params)

    return run


@pytest.mark.parametrize('shapes', SHAPES, ids=('few', 'empty', 'many'))
@pytest.mark.parametrize('dtype', [F32, F64], ids=str)
@pytest.mark.parametrize('name', TAKEN)
def test_numbers_and_derivatives_are_those_of_the_engine(name, dtype, shapes, taken, by_engine):
    run, inputs = step(TAKEN[name], len(shapes)), [*leaves(shapes, dtype), *leaves(shapes, dtype, 1)]
    cotangents = leaves(shapes, dtype, 2)
    found = run(*inputs)
    assert taken == [True, True]
    wanted = by_engine(run, *inputs)
    assert [y.dtype for y in found] == [dtype] * len(shapes)
    eps = torch.finfo(dtype).eps  # a product is added to a number; whether it is rounded before depends on the machine
    close = functools.partial(torch.testing.assert_close, rtol=2 * eps, atol=2 * eps)
    close(found, wanted)
    close(*(torch.autograd.grad(ys, inputs, cotangents) for ys in (found, wanted)))


@pytest.mark.parametrize('name', LEFT)
def test_other_steps_are_left_to_the_engine(name, taken):
    run, inputs = step(LEFT[name], 2), [*leaves(SHAPES[0]), *leaves(SHAPES[0], seed=1)]
    run(*inputs)
    assert not any(taken)


@pytest.mark.parametrize('of_params', [F64, torch.bfloat16], ids=str)
def test_dtypes_that_torch_rounds_in_another_way_are_left_to_the_engine(of_params, taken):
    grads, params = leaves(SHAPES[0], torch.bfloat16), leaves(SHAPES[0], of_params, 1)
    step(TAKEN['sgd'], 2)(*grads, *params)
    assert taken == [False, False]


def test_leaves_of_another_shape_are_not_broadcast():
    with pytest.raises(ValueError, match=r'shape \(1, 3\), but params\[0\] has shape \(2, 3\)'):
        step(TAKEN['sgd'], 1)(*leaves([(1, 3)]), *leaves([(2, 3)], seed=1))


def test_derivatives_of_every_mode(taken, by_engine):
    run, inputs = step(TAKEN['sgd'], 2), [*leaves(SHAPES[0]), *leaves(SHAPES[0], seed=1)]
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, inputs)

    def of_batch() -> Any:
        batch = [torch.stack([x.detach(), 2 * x.detach()]) for x in inputs]
        return torch.vmap(torch.func.grad(lambda *xs: sum(y.square().sum() for y in run(*xs)), (0, 1, 2, 3)))(*batch)

    torch.testing.assert_close(of_batch(), by_engine(of_batch))
    assert all(taken)


def test_apply_updates_takes_operations_of_torch(taken):
    params, updates = leaves(SHAPES[0]), leaves(SHAPES[0], seed=1)
    new = torchopt.apply_updates(params, updates)
    assert taken == [True]
    torch.testing.assert_close(new, [p + u for p, u in zip(params, updates)], rtol=0.0, atol=0.0)
