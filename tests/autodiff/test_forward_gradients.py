# SPDX-License-Identifier: Apache-2.0
"""Gradients by forward mode are those of reverse mode, and keep nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchopt
from tests.autodiff.test_checkpoint import saved_bytes
from tests.oracle import assert_trees_close

DOUBLE = torch.float64
X = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(4, 3)


def tuned(hyper: Any, steps: int = 3) -> Any:
    """The loss after steps of Adam with learned options, and the last parameters."""
    optimizer = torchopt.adam(hyper['rate'], b1=hyper['betas'][0], eps_root=1e-8)
    w = torch.ones(3, dtype=DOUBLE)
    state = optimizer.init(w)
    for _ in range(steps):
        g = torchopt.grad(lambda w: (torch.tanh(X @ w) ** 2).mean() + (hyper['decay'] * w**2).sum())(w)
        updates, state = optimizer.update(g, state, w)
        w = torchopt.apply_updates(w, updates)
    return (torch.tanh(X @ w) ** 2).mean(), {'w': w, 'steps': steps}


def options() -> dict[str, Any]:
    number = lambda *x: torch.tensor(x, dtype=DOUBLE)  # noqa: E731
    return {'rate': number(0.1)[0], 'decay': number(0.1, 0.2, 0.0), 'betas': (number(0.9)[0], None)}


@pytest.mark.parametrize('chunk_size', [1, 2, 5, None])
def test_all_chunks_give_the_gradient_of_reverse_mode(chunk_size: int | None) -> None:
    wanted = torchopt.value_and_grad(tuned, has_aux=True)(options())
    found = torchopt.forward_value_and_grad(tuned, has_aux=True, chunk_size=chunk_size)(options())
    assert_trees_close(found, wanted, 1e-12)


def test_several_positions_keywords_and_numbers() -> None:
    fun = lambda x, y, k: (x**2 * y['a'] * k).sum()  # noqa: E731
    arguments = (
        torch.ones(2, 2, dtype=DOUBLE),
        {'a': torch.full((2, 1), 3.0, dtype=DOUBLE), 'none': None, 'empty': torch.ones(0)},
    )
    for argnums in (0, 1, (1, 0), (-1,)):
        wanted = torchopt.value_and_grad(fun, argnums)(*arguments, k=2)
        assert_trees_close(torchopt.forward_value_and_grad(fun, argnums)(*arguments, k=2), wanted, 1e-12)
    assert torchopt.forward_value_and_grad(lambda x: x**2)(3.0)[1] == 6.0
    assert torchopt.forward_value_and_grad(lambda p: torch.tensor(1.0))({}) == (torch.tensor(1.0), {})


def test_the_gradient_can_be_differentiated_and_mapped() -> None:
    def forward(rate: torch.Tensor) -> torch.Tensor:
        return torchopt.forward_value_and_grad(lambda r: tuned({**options(), 'rate': r})[0])(rate)[1]

    rates = torch.tensor([0.05, 0.1], dtype=DOUBLE)
    reverse = torchopt.grad(lambda r: tuned({**options(), 'rate': r})[0])
    assert_trees_close(torch.vmap(forward)(rates), torch.vmap(reverse)(rates), 1e-12)
    assert_trees_close(torch.func.grad(forward)(rates[0]), torch.func.grad(reverse)(rates[0]), 1e-10)


def test_nothing_is_kept() -> None:
    def descent(rate: torch.Tensor) -> torch.Tensor:
        w = torch.ones(3, dtype=DOUBLE)
        for _ in range(5):
            w = w - rate * (4 * w**3 + X.mean(0))
        return (w**4).sum()

    rate = options()['rate']
    assert saved_bytes(lambda: torchopt.forward_value_and_grad(descent)(rate)) == 0
    assert saved_bytes(lambda: descent(rate.clone().requires_grad_())) > 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match='Invalid chunk_size: 0; expected None or an int >= 1'):
        torchopt.forward_value_and_grad(torch.sum, chunk_size=0)
    with pytest.raises(TypeError, match='Invalid fun: an int; expected a function'):
        torchopt.forward_value_and_grad(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match='expected a real 0-d tensor'):
        torchopt.forward_value_and_grad(lambda x: x)(torch.ones(2))
    with pytest.raises(TypeError, match='expected a real floating dtype'):
        torchopt.forward_value_and_grad(torch.sum)(torch.ones(2).int())
    for loss, message in (
        (
            torch.nn.functional.mse_loss,
            r'mse_loss does: write \(prediction - target\).*Or call torchopt.value_and_grad',
        ),
        (torch.nn.functional.huber_loss, 'fun has no forward mode: .*huber_loss_backward'),
    ):
        with pytest.raises(NotImplementedError, match=message):
            torchopt.forward_value_and_grad(lambda x, loss=loss: torchopt.grad(loss)(x, X).square().sum())(X.cos())


def by_autograd(w: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
    return gradient.square().sum()


def by_backward(w: torch.Tensor) -> torch.Tensor:
    x = torch.ones_like(w).requires_grad_()
    (x**2).sum().backward()
    return (w * x.grad).square().sum()


@pytest.mark.parametrize('loss', [by_autograd, by_backward])
def test_losses_that_call_autograd(loss: Any) -> None:
    """Forward mode and transforms of torch.func name the remedy; reverse mode alone differentiates such losses."""
    w = torch.tensor([1.0, 2.0], dtype=DOUBLE)
    remedy = 'calls torch.autograd.grad or backward.*by torchopt.grad or torch.func.grad'
    with pytest.raises(NotImplementedError, match=remedy):
        torchopt.forward_value_and_grad(loss)(w)
    for checkpoint in ('reverse', 'mixed'):
        gradient = torchopt.grad(loss, checkpoint=checkpoint)
        with pytest.raises(RuntimeError, match=f'{remedy}.*checkpoint=None'):
            torch.func.grad(lambda w, gradient=gradient: gradient(w).sum())(w)
        with pytest.raises(RuntimeError, match=f'{remedy}.*checkpoint=None'):
            torch.vmap(gradient)(w[None])

    def second(checkpoint: str) -> torch.Tensor:
        at = w.clone().requires_grad_()
        return torch.autograd.grad(torchopt.grad(loss, checkpoint=checkpoint)(at).sum(), at)[0]

    expected = second('reverse')
    torch.testing.assert_close(expected, 108.0 * w**2 if loss is by_autograd else torch.full_like(w, 8.0))
    if loss is by_autograd:
        torch.testing.assert_close(second('mixed'), expected)
        return
    with pytest.warns(UserWarning, match=f"checkpoint='mixed': .*{remedy}"):
        torch.testing.assert_close(second('mixed'), expected)
