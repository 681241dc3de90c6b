# SPDX-License-Identifier: Apache-2.0
"""Random programs: trees, chains and steps drawn by a seed, differentiated in every way and compared.

The default path, plain torch in float64, and finite differences must agree.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

import torchopt
from torchopt import contrib, transform, tree
from torchopt._C import fused

F64 = torch.float64
STEPS = 2
SHAPES = [(), (1,), (2,), (2, 1)]

DIRECTIONS: list[Callable[[], Any]] = [
    lambda: transform.scale_by_adam(0.8, 0.9),
    lambda: transform.scale_by_rms(0.8, 1e-3),
    lambda: transform.scale_by_stddev(0.8, 1e-2),
    lambda: transform.scale_by_rss(0.3),
    lambda: transform.scale_by_yogi(0.8, 0.9),
    lambda: transform.trace(0.8, nesterov=True),
    lambda: transform.ema(0.8),
    lambda: transform.add_decayed_weights(0.2),
    transform.centralize,
    transform.normalize_by_update_norm,
    transform.scale_by_trust_ratio,
    lambda: transform.scale_by_distance_over_gradients(0.1, param_dtype=None),
    lambda: torchopt.clip.clip(0.7),
    lambda: torchopt.clip.clip_by_global_norm(0.8),
    lambda: transform.apply_every(2),
]
OPTIMIZERS: list[Callable[[], Any]] = [
    lambda: torchopt.sgd(0.1, momentum=0.9),
    lambda: torchopt.adamw(0.1, weight_decay=0.2),
    lambda: torchopt.radam(0.1),
    lambda: torchopt.adadelta(0.7),
    lambda: torchopt.lamb(0.1),
    lambda: contrib.madgrad(0.1, momentum=0.5),
    lambda: contrib.cocob(alpha=10.0),
    lambda: contrib.dog(init_step=('heuristic', 0.1)),
    lambda: contrib.dowg(init_estim_sq_dist=0.1),
    lambda: contrib.prodigy(estim_lr0=0.1),
    lambda: contrib.mechanize(torchopt.sgd(0.1), eps=1e-2, s_init=0.1),
    lambda: contrib.schedule_free_sgd(0.1),
    lambda: contrib.schedule_free_adamw(0.1),
    lambda: contrib.sam(torchopt.sgd(0.1), torchopt.chain(contrib.normalize(), torchopt.sgd(0.05))),
]
WRAPPERS: list[Callable[[Any], Any]] = [
    lambda tx: tx,
    transform.flatten,
    lambda tx: transform.apply_if_finite(tx, 3),
    lambda tx: torchopt.chain(tx, transform.freeze(lambda params: tree.map(lambda p: p.dim() == 0, params))),
    lambda tx: torchopt.chain(tx, transform.set_to_zero()),
]


class Program:
    """An inner loop as a function of one vector, from which the tree of parameters is cut."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        shapes = [draw.choice(SHAPES) for _ in range(draw.randint(1, 3))]
        self.like = [torch.empty(shape, dtype=F64) for shape in shapes]
        self.nested = draw.random() < 0.5
        rules = [draw.choice(DIRECTIONS) for _ in range(draw.randint(1, 3))]
        if draw.random() < 0.5:
            inner = draw.choice(OPTIMIZERS)
            parts = [*rules[1:], inner]
        else:
            parts = [*rules, lambda: transform.scale(-0.1)]
        wrap = draw.choices(WRAPPERS, [6, 1, 1, 1, 1])[0]
        self.make = lambda: wrap(torchopt.chain(*(part() for part in parts)))
        generator = torch.Generator().manual_seed(seed)
        n = sum(x.numel() for x in self.like)
        self.start, self.direction = torch.randn(2, n, generator=generator, dtype=F64)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(self.cut(x))

    def run(self, params: Any) -> torch.Tensor:
        """The outer loss after the steps."""
        tx = self.make()
        state = tx.init(params)
        for t in range(STEPS):
            grads = tree.map(lambda p, t=t: torch.cos(2.0 * p + t) + 0.3 * p, params)
            updates, state = tx.update(grads, state, params)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return sum((p.sin() * (i + 1)).sum() + (p**2).sum() for i, p in enumerate(tree.leaves(params)))

    def cut(self, x: torch.Tensor) -> Any:
        parts = torch.split(x, [like.numel() for like in self.like])
        leaves = [part.reshape(like.shape) for part, like in zip(parts, self.like)]
        return {'a': leaves[0], 'b': [None, *leaves[1:]]} if self.nested else tuple(leaves)

    def from_leaves(self, x: torch.Tensor) -> torch.Tensor:
        """The gradient where the parameters themselves are the leaves."""
        params = tree.map(lambda p: p.detach().clone().requires_grad_(), self.cut(x))
        grads = torch.autograd.grad(self.run(params), tree.leaves(params))
        return torch.cat([g.reshape(-1) for g in grads])


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    run = fused._run
    fused.bind_kernels(None)
    try:
        yield
    finally:
        fused.bind_kernels(run)


def first_derivatives(f: Program, x: torch.Tensor, v: torch.Tensor) -> dict[str, Any]:
    """The derivative along a direction, in every way."""
    value, pull = torch.func.vjp(f, x)  # of which the pullback is called when its transform is over
    found = {
        'grad': torch.func.grad(f)(x) @ v,
        'leaves': f.from_leaves(x) @ v,
        'jvp': torch.func.jvp(f, (x,), (v,))[1],
        'vmap of grad': (torch.func.vmap(torch.func.grad(f))(torch.stack([x + 1.0, x])) @ v)[1],
        'vmap of jvp': torch.func.vmap(lambda u: torch.func.jvp(f, (x,), (u,))[1])(torch.stack([x, v]))[1],
        'late vjp': pull(torch.ones_like(value))[0] @ v,
    }
    found['late vjp, again'] = pull(torch.ones_like(value))[0] @ v
    with forward_ad.dual_level():
        found['dual level'] = forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent
    return found


def second_derivatives(f: Program, x: torch.Tensor, v: torch.Tensor) -> dict[str, Any]:
    """The derivative of the gradient along a direction."""
    found = {'forward over reverse': torch.func.jvp(torch.func.grad(f), (x,), (v,))[1]}
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone().requires_grad_(), v.clone())
        (gradient,) = torch.autograd.grad(f(dual), dual)
        found['dual level over reverse'] = forward_ad.unpack_dual(gradient).tangent
    start = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(start), start, create_graph=True)
    # The Hessian is symmetric.
    (found['reverse over reverse'],) = torch.autograd.grad(gradient @ v, start)
    return found


def disagreements(f: Program) -> list[str]:
    """What does not agree with differences, or default and plain path with each other."""
    x, v, h = f.start, f.direction, 1e-5
    wrong = []
    slope = (f(x + h * v) - f(x - h * v)) / (2 * h)
    gradient = torch.func.grad(f)
    curve = (gradient(x + h * v) - gradient(x - h * v)) / (2 * h)
    values = {'value': f(x), 'vmap': torch.func.vmap(f)(torch.stack([x + 1.0, x]))[1]}
    default = {**values, **first_derivatives(f, x, v), **second_derivatives(f, x, v)}
    with plain_torch():
        plain = {'value': f(x), 'vmap': f(x), **first_derivatives(f, x, v), **second_derivatives(f, x, v)}
    for name, found in default.items():
        wanted = values['value'] if name in values else curve if 'over' in name else slope
        if found is None or not torch.allclose(found, plain[name], rtol=1e-8, atol=1e-9):
            wrong.append(f'{name}: {found}, in plain torch {plain[name]}')
        if found is None or not torch.allclose(found, wanted, rtol=1e-4, atol=1e-5):
            wrong.append(f'{name}: {found}, by differences {wanted}')
    return wrong


@pytest.mark.parametrize('seed', range(30))
def test_random_programs(seed: int) -> None:
    assert not disagreements(Program(seed))
