# SPDX-License-Identifier: Apache-2.0
"""Compiled scans outside of transforms are one autograd node, whose steps keep what their backward pass needs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.oracle import assert_trees_close
from torchopt.loop import scan

DOUBLE, TOLERANCE = torch.float64, 1e-12


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) / 2


XS, W, INIT = data(4, 3), data(3, 3, seed=1), data(3, 3, seed=2)
Step = Callable[[Tensor, Tensor], Callable[[Any, Any], Any]]


def in_place(w: Tensor, _: Tensor) -> Any:
    """Writes into its own results."""

    def f(h: Any, x: Any) -> Any:
        y = w @ h
        y.mul_(2).add_(x)
        z = y.sin() + 1
        z[0] = y[1]
        z[:, 1:].mul_(2)
        return z.sin(), z

    return f


def views(w: Tensor, _: Tensor) -> Any:
    """Results that are views, not contiguous, of a broadcast, and the same tensor twice."""

    def f(h: Any, x: Any) -> Any:
        y = (w @ h + x).tanh()
        return y.t(), (y[1], y, y, x.expand(3, 3), h.t())

    return f


def untouched(w: Tensor, theta: Tensor) -> Any:
    """Results that the compiled function does not compute: arguments, rows, tensors from outside, numbers."""

    def f(h: Any, x: Any) -> Any:
        return w @ h.cos(), (h, x, theta, w, 2.0, None, torch.ones(()))

    return f


def multiple(w: Tensor, theta: Tensor) -> Any:
    """Operations with several results, integers, and parts without a derivative."""

    def f(h: Any, x: Any) -> Any:
        values, indices = (w @ h * theta).sort(0)
        q, r = torch.linalg.qr(values + torch.eye(3, dtype=DOUBLE))
        return q @ r + h.detach() * x, (indices, r.argmax(), values.detach())

    return f


def inner_gradient(w: Tensor, theta: Tensor) -> Any:
    def f(h: Any, x: Any) -> Any:
        def loss(h: Tensor) -> Tensor:
            return (theta * torch.nn.functional.layer_norm(w @ h.tanh() + x, (3,))).logsumexp(1).square().sum()

        gradient, value = torch.func.grad_and_value(loss)(h)
        return h - 0.1 * gradient, value

    return f


def complex_numbers(w: Tensor, _: Tensor) -> Any:
    def f(h: Any, x: Any) -> Any:
        z = torch.complex(h, h.cos()) @ w.to(torch.complex128)
        return z.conj().imag + x, z.conj()

    return f


STEPS: dict[str, Step] = {
    f.__name__: f for f in (in_place, views, untouched, multiple, inner_gradient, complex_numbers)
}
OPTIONS: dict[str, dict[str, Any]] = {
    'kept': {},
    'recomputed': {'checkpoint': 2},
    'truncated': {'truncate': 3, 'checkpoint': 2},
    'reverse': {'reverse': True},
}


def outer(step: Step, w: Tensor, theta: Tensor, init: Tensor, xs: Tensor, used: bool, **options: Any) -> Any:
    h, ys = scan(step(w, theta), init, xs, **options)
    total = (h * INIT).sum()
    if used:
        for y in tree_leaves(ys):
            if isinstance(y, Tensor) and (y.is_floating_point() or y.is_complex()):
                total = total + torch.view_as_real(y).sin().sum() if y.is_complex() else total + y.sin().sum()
    return total, ys


def values_of(ys: Any) -> list[Tensor]:
    tensors = [y.detach() for y in tree_leaves(ys) if isinstance(y, Tensor)]
    return [torch.view_as_real(y.resolve_conj()) if y.is_complex() else y for y in tensors]


@pytest.mark.parametrize('used', [True, False], ids=['used', 'unused'])
@pytest.mark.parametrize('name', STEPS)
def test_derivatives(name: str, used: bool) -> None:
    for options in OPTIONS.values():
        results = []
        for more in ({'compile': 'graph'}, {}):
            leaves = [x.clone().requires_grad_() for x in (W, torch.tensor(1.3, dtype=DOUBLE), INIT, XS)]
            total, ys = outer(STEPS[name], *leaves, used, **options, **more)
            first = torch.autograd.grad(total, leaves, retain_graph=True, materialize_grads=True)
            again = torch.autograd.grad(total, leaves[0], create_graph=True, materialize_grads=True)[0]
            second = (
                torch.autograd.grad(again.cos().sum(), leaves[2], materialize_grads=True)
                if name != 'multiple'
                else None
            )
            results.append((total.detach(), values_of(ys), first, second))
        assert_trees_close(*results, TOLERANCE)


def test_what_is_kept() -> None:
    """Products of matrices are kept, elementwise functions are not; with ``checkpoint``, only the carries."""
    sizes: dict[Any, int] = {}
    for checkpoint in (None, 2):
        kept: list[int] = []

        def pack(x: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(x.numel())
            return x

        w = torch.ones(3, 1, dtype=DOUBLE, requires_grad=True)
        step: Any = functools.partial(lambda w, h, _: ((h @ w).exp().sin() * w.t(), None), w)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            scan(step, torch.ones(5, 3, dtype=DOUBLE), length=4, checkpoint=checkpoint, compile='eager')
        sizes[checkpoint] = sum(kept)
    state, product, weight = 15, 5, 3
    assert sizes == {None: state + weight + 4 * (state + product + weight), 2: 2 * (state + weight)}


def test_two_graphs_for_all_lengths() -> None:
    counts: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        counts.append(len(graph.graph.nodes))
        return graph

    def run(length: int, **options: Any) -> None:
        h = INIT.clone().requires_grad_()
        y = scan(lambda h, _: ((W @ h).tanh(), None), h, length=length, compile=backend, **options)[0]
        y.sum().backward()

    run(2)
    run(5)
    run(1)
    run(6, checkpoint='auto')
    assert len(counts) == 2


def test_several_backward_passes() -> None:
    found = []
    for options in ({'compile': 'graph'}, {}):
        h = INIT.clone().requires_grad_()
        y = scan(lambda h, _: ((W @ h).tanh(), None), h, length=3, **options)[0]
        found.append([torch.autograd.grad(y, h, bar, retain_graph=True)[0] for bar in (y.detach(), h.detach())])
    assert_trees_close(*found, TOLERANCE)


def test_a_step_without_a_derivative_runs() -> None:
    def f(h: Any, _: Any) -> Any:
        return torch.igamma(h.abs() + 1, h.abs()), None

    h = INIT.clone().requires_grad_()
    found, expected = (scan(f, h, length=2, **options)[0] for options in ({'compile': 'graph'}, {}))
    torch.testing.assert_close(found.detach(), expected.detach())
    with pytest.raises(RuntimeError, match='igamma'):
        found.sum().backward()


def test_results_that_are_changed_in_place() -> None:
    h = INIT.clone().requires_grad_()
    y, ys = scan(lambda h, _: ((W @ h).exp(), h), h, length=3, compile='eager')
    loss = y.sum() + ys.sum()
    ys.detach().zero_()  # a copy
    y.detach().zero_()  # not kept, since it is elementwise
    found = torch.autograd.grad(loss, h)[0]
    y, ys = scan(lambda h, _: ((W @ h).exp(), h), h, length=3)
    assert_trees_close(found, torch.autograd.grad(y.sum() + ys.sum(), h)[0], TOLERANCE)

    y, _ = scan(lambda h, _: (W @ h, None), h, length=3, compile='eager')
    loss = y.square().sum()
    y.detach().zero_()  # kept by the square
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        loss.backward()
