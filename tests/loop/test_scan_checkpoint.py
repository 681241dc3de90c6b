# SPDX-License-Identifier: Apache-2.0
"""Scans that compute segments again have the values and derivatives of scans that keep all graphs, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchopt
from tests.autodiff.test_checkpoint import saved_bytes
from tests.oracle import assert_trees_close
from torchopt.loop import scan

DOUBLE = torch.float64
CHOICES = (True, 1, 2, 3, 7, 20, 'auto')


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) / 2


XS, W, INIT = data(7, 3), data(3, 3, seed=1), data(3, seed=2)


def recurrent(w: torch.Tensor, init: torch.Tensor, xs: torch.Tensor, **options: Any) -> torch.Tensor:
    def f(carry: Any, x: Any) -> Any:
        h, count = carry
        h = torch.tanh(w @ h + x)
        return (h, count + 1), {'h': h.square(), 'count': count, 'none': None}

    (h, _), ys = scan(f, (init, torch.zeros((), dtype=torch.int64)), xs, **options)
    return h.sum() + (ys['h'] * torch.arange(1.0, 1 + len(xs), dtype=DOUBLE)[:, None]).sum()


def gradients(f: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    def run(*args: torch.Tensor) -> Any:
        leaves = [x.clone().requires_grad_() for x in args]
        first = torch.autograd.grad(f(*leaves), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)
        return [g.detach() for g in first], second

    return run


TRANSFORMS: dict[str, Callable[[Callable[..., torch.Tensor]], Callable[..., Any]]] = {
    'two orders': gradients,
    'grad': lambda f: torch.func.grad(f, argnums=(0, 1, 2)),
    'vmap': lambda f: lambda w, h, xs: torch.vmap(torch.func.grad(f), (None, 0, None))(w, torch.stack([h, -h]), xs),
    'jvp': lambda f: lambda *a: torch.func.jvp(f, a, tuple(x.cos() for x in a)),
    'hessian': lambda f: torch.func.hessian(f, argnums=1),
    'vectorized Hessian': lambda f: lambda *a: torch.autograd.functional.hessian(f, a, vectorize=True),
    'vectorized Hessian, forward mode': lambda f: (
        lambda *a: torch.autograd.functional.hessian(f, a, vectorize=True, outer_jacobian_strategy='forward-mode')
    ),
}


@pytest.mark.parametrize('reverse', [False, True])
@pytest.mark.parametrize('name', TRANSFORMS)
def test_transforms_agree(name: str, reverse: bool) -> None:
    transform = TRANSFORMS[name]
    wanted = transform(lambda *a: recurrent(*a, reverse=reverse))(W, INIT, XS)
    for checkpoint in CHOICES if name == 'two orders' else (3, 'auto'):
        found = transform(lambda *a, c=checkpoint: recurrent(*a, reverse=reverse, checkpoint=c))(W, INIT, XS)
        assert_trees_close(found, wanted, 1e-10)


@pytest.mark.parametrize('mode', [None, 'reverse', 'mixed'])
def test_inner_loops_with_recomputed_gradients(mode: str | None) -> None:
    """A scan of steps of Adam: segments around steps that keep their arguments, with dropout."""

    def meta(checkpoint: Any, inner: str | None) -> Any:
        rate, w0 = torch.tensor(0.1, dtype=DOUBLE, requires_grad=True), W.clone().requires_grad_()
        optimizer = torchopt.adam(rate, eps_root=1e-8)
        torch.manual_seed(0)

        def f(carry: Any, x: torch.Tensor) -> Any:
            w, state = carry
            loss = lambda w: torch.nn.functional.dropout(torch.tanh(w @ x), 0.3).square().sum()  # noqa: E731
            value, g = torchopt.value_and_grad(loss, checkpoint=inner)(w)
            updates, state = optimizer.update(g, state, w)
            return (torchopt.apply_updates(w, updates), state), value

        (w, _), values = scan(f, (w0, optimizer.init(w0)), XS, checkpoint=checkpoint)
        return torch.autograd.grad(values.sum() + w.sin().sum(), [rate, w0])

    wanted = meta(None, None)
    for checkpoint in (None, True, 3, 'auto'):
        assert_trees_close(meta(checkpoint, mode), wanted, 1e-10)


@pytest.mark.parametrize('checkpoint', [None, True, 2, 3, 'auto'])
def test_truncation_cuts_the_graph_and_nothing_else(checkpoint: Any) -> None:
    """Against a loop that detaches by hand."""

    def by_hand(w: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), dtype=DOUBLE)
        for k, x in enumerate(XS):
            h = torch.tanh(w @ h + x)
            total = total + h.square().sum() * (k + 1)
            h = h.detach() if k % 3 == 2 else h
        return h.sum() + total

    leaves = [W.clone().requires_grad_(), INIT.clone().requires_grad_()]
    wanted = by_hand(*leaves)
    found = recurrent(*leaves, XS, truncate=3, checkpoint=checkpoint)
    assert_trees_close(found.detach(), wanted.detach(), 1e-12)
    assert_trees_close(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), 1e-10)
    full = torch.autograd.grad(recurrent(*leaves, XS), leaves)
    assert not torch.allclose(torch.autograd.grad(recurrent(*leaves, XS, truncate=3), leaves)[1], full[1])


def test_segments_keep_their_first_carry() -> None:
    """Of 16 steps: 16 carries, 4 carries; between cuts of the graph nothing accumulates."""
    w = data(200, 4, seed=3)

    def kept(**options: Any) -> int:
        init = data(4).requires_grad_()
        f = lambda h, _: (torch.tanh(w @ h)[:4] * torch.sigmoid(w @ h).mean(), None)  # noqa: E731
        return saved_bytes(lambda: scan(f, init, **{'length': 16, **options})[0])

    carry = 4 * 8
    assert kept(checkpoint=True) == 16 * carry
    assert kept(checkpoint='auto') == 4 * carry
    assert kept() > 16 * 200 * 8
    assert kept(truncate=1) <= kept(length=1)


def test_running_statistics_in_the_carry() -> None:
    xs, weight = torch.randn(5, 4, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)), torch.ones(2).double()

    def run(**options: Any) -> Any:
        w = weight.clone().requires_grad_()

        def step(carry: Any, x: Any) -> Any:
            h, mean, var = carry[0], carry[1].clone(), carry[2].clone()
            h = torch.nn.functional.batch_norm(w * h + x, mean, var, training=True)
            return (h, mean, var), mean

        (h, *statistics), means = scan(step, (xs[0], torch.zeros(2).double(), weight), xs, **options)
        return torch.autograd.grad(h.pow(3).sum(), w), *statistics, means

    found, expected = run(checkpoint=2), run()
    assert_trees_close(found, expected, 1e-12)
    assert [x.requires_grad for x in found[1:]] == [x.requires_grad for x in expected[1:]] == [False, False, False]


def test_bad_options() -> None:
    for option, value in (
        ('checkpoint', 0),
        ('checkpoint', 'all'),
        ('checkpoint', 1.5),
        ('truncate', 0),
        ('truncate', True),
    ):
        with pytest.raises(ValueError, match=f'Invalid {option}: {value!r}; expected None'):
            scan(lambda c, x: (c, x), INIT, XS, **{option: value})
