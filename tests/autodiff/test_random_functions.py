# SPDX-License-Identifier: Apache-2.0
"""Random functions that nest recomputation, loops and transforms have the derivatives of the plain functions.

A function is a tree of tuples: an operation, its options and its operands.  It maps a list of vectors to a vector.  An
operand that ends in ``body`` is the function inside, which gets one vector more: it may use its argument, close over
any vector outside, return either, or use neither.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func

import torchopt
from tests.oracle import assert_trees_close
from torchopt import loop

MATRIX = torch.tensor([[0.5, -0.3, 0.2], [0.1, 0.4, -0.6], [-0.2, 0.3, 0.7]], dtype=torch.float64)
Env = list[Tensor]


def random_function(draw: random.Random, depth: int, known: int) -> tuple[Any, ...]:
    """A random function of ``known`` vectors."""
    if depth == 0:
        return ('variable', draw.randrange(known))

    def operand() -> tuple[Any, ...]:
        return random_function(draw, depth - 1, known)

    def body() -> tuple[Any, ...]:
        return random_function(draw, depth - 1, known + 1)

    kind = draw.choice(['multiply', 'matrix', 'normalize', *NESTED])
    if kind == 'multiply':
        return (kind, operand(), operand())
    if kind in ('matrix', 'normalize'):
        return (kind, operand())
    option = draw.choice(NESTED[kind])
    return (kind, option, operand(), body(), body()) if kind == 'cond' else (kind, option, operand(), body())


NESTED: dict[str, list[Any]] = {
    'let': [None],
    'checkpoint': [None],
    'grad': [None, 'reverse', 'mixed'],
    'value_and_grad': [None, 'reverse', 'mixed'],
    'jvp': [None],
    'scan': [(3, None), (2, True), (3, 2), (2, 'auto')],
    'fori_loop': [1, 2],
    'vmap': ['written', 'returned'],
    'cond': [None],
}


def evaluate(function: tuple[Any, ...], env: Env, recomputes: bool) -> Tensor:
    """The value of a function, with recomputation and the loops of torchopt, or by plain torch."""
    kind, *rest = function
    if kind == 'variable':
        return env[rest[0]]
    if kind == 'multiply':
        a, b = (evaluate(f, env, recomputes) for f in rest)
        return (a * b).sin()
    if kind in ('matrix', 'normalize'):
        x = evaluate(rest[0], env, recomputes)
        return MATRIX @ x if kind == 'matrix' else x / (1 + x @ x)
    option, operand, *bodies = rest
    x = evaluate(operand, env, recomputes)
    inner, *other = [lambda c, f=f: evaluate(f, [*env, c], recomputes) for f in bodies]
    return (RECOMPUTING if recomputes else PLAIN)[kind](option, x, inner, *other)


def total(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda c: f(c).sin().sum()


def repeat(steps: int, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    for _ in range(steps):
        x = f(x).tanh()
    return x


def mapped(kind: str, x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    rows = torch.stack([x, x.sin()])
    if kind == 'returned':  # f may return a tensor from outside, and a mode does not intercept what vmap does with it
        return torch.vmap(f)(rows).cos().sum(0)
    # The result depends on c, since otherwise torch refuses to change it in place.
    rows = torch.vmap(lambda c: (f(c) * c).cos())(rows)
    rows += 1.0
    return rows.sum(0)


def product(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[0] * pair[1]


PLAIN: dict[str, Callable[..., Tensor]] = {
    'let': lambda _, x, f: f(x),
    'checkpoint': lambda _, x, f: f(x),
    'grad': lambda _, x, f: func.grad(total(f))(x),
    'value_and_grad': lambda _, x, f: product(func.grad_and_value(total(f))(x)),
    'jvp': lambda _, x, f: func.jvp(f, (x,), (x.cos(),))[1],
    'scan': lambda option, x, f: repeat(option[0], x, f),
    'fori_loop': repeat,
    'vmap': mapped,
    'cond': lambda _, x, f, g: torch.where(x.sum() > 0.1, f(x), g(x)),
}
RECOMPUTING: dict[str, Callable[..., Tensor]] = {
    **PLAIN,
    'checkpoint': lambda _, x, f: torchopt.checkpoint(f)(x),
    'grad': lambda mode, x, f: torchopt.grad(total(f), checkpoint=mode)(x),
    'value_and_grad': lambda mode, x, f: product(torchopt.value_and_grad(total(f), checkpoint=mode)(x)),
    'jvp': lambda _, x, f: func.jvp(torchopt.checkpoint(f), (x,), (x.cos(),))[1],
    'scan': lambda option, x, f: loop.scan(
        lambda c, _: (f(c).tanh(), None), x, None, length=option[0], checkpoint=option[1]
    )[0],
    'fori_loop': lambda steps, x, f: loop.fori_loop(0, steps, lambda _, c: f(c).tanh(), x),
    'cond': lambda _, x, f, g: loop.cond(x.sum() > 0.1, f, g, x),
}


def by_autograd(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
    """First and second derivatives without transforms."""

    def derivatives(x: Tensor) -> Any:
        x = x.clone().requires_grad_()
        options: Any = {'allow_unused': True, 'materialize_grads': True}
        zeros = torch.zeros_like(x)
        value = f(x)
        first = torch.autograd.grad(value, x, create_graph=True, **options)[0] if value.requires_grad else zeros
        second = torch.autograd.grad(first.sin().sum(), x, **options)[0] if first.requires_grad else zeros
        return first.detach(), second

    return derivatives


TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Any]]] = {
    'autograd': by_autograd,
    'grad': func.grad,
    'jacfwd': func.jacfwd,
    'hessian': func.hessian,
    'reverse over reverse': lambda f: func.jacrev(func.grad(f)),
    'forward over forward': lambda f: func.jacfwd(func.jacfwd(f)),
    'vmap of grad': lambda f: lambda x: torch.vmap(func.grad(f))(torch.stack([x, x.cos()])),
    'vmap of hessian': lambda f: lambda x: torch.vmap(func.hessian(f))(torch.stack([x, x.cos()])),
    'grad of vmap': lambda f: func.grad(lambda x: torch.vmap(f)(torch.stack([x, x.cos()])).sum()),
}


@pytest.mark.filterwarnings('ignore:checkpoint=:UserWarning')
@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('transform', TRANSFORMS)
def test_derivatives(transform: str, seed: int) -> None:
    draw = random.Random(f'{transform}, {seed}')
    function = random_function(draw, draw.choice([2, 3, 3]), 1)
    x = torch.tensor([draw.gauss(0, 1) for _ in range(3)], dtype=torch.float64)
    of = TRANSFORMS[transform]
    want = of(lambda x: evaluate(function, [x], False).sum())(x)
    assert_trees_close(of(lambda x: evaluate(function, [x], True).sum())(x), want, 1e-9)
