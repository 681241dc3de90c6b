# SPDX-License-Identifier: Apache-2.0
"""Gradients that keep their arguments have the derivatives of those that keep their graph, under every transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import torchopt
from tests.oracle import assert_trees_close

DOUBLE = torch.float64
MODES = ('reverse', 'mixed')


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) / 2


WEIGHTS = {'a': tensor(3, 4), 'b': tensor(4, seed=1), 'c': tensor(4, 2, seed=2)}
LEARNED, CLOSED_OVER = tensor(5, seed=3), tensor(4, seed=4)
X, Y = tensor(5, 3, seed=5), torch.tensor([0, 1, 1, 0, 1])
ARGUMENTS = (WEIGHTS, LEARNED, CLOSED_OVER)
TANGENTS = ({k: torch.cos(v) for k, v in WEIGHTS.items()}, LEARNED.cos(), CLOSED_OVER.cos())
TASKS = tensor(3, 5, 3, seed=6)

Loop = Callable[..., torch.Tensor]


def make_loss(scale: torch.Tensor) -> Callable[..., Any]:
    """A loss with an auxiliary output, which closes over a tensor."""

    def loss(w: Any, learned: torch.Tensor, x: torch.Tensor) -> Any:
        h = torch.tanh(x @ w['a'] + w['b']) * scale.exp()
        each = F.cross_entropy(h @ w['c'], Y, reduction='none')
        return (each * learned.exp()).mean(), (h.square().mean(), 'text')

    return loss


def inner_loop(checkpoint: str | None, steps: int = 2) -> Loop:
    """Steps of Adam on the loss; the examples have learned weights."""

    def run(w: Any, learned: torch.Tensor, scale: torch.Tensor, x: torch.Tensor = X) -> torch.Tensor:
        optimizer = torchopt.adam(0.1, eps_root=1e-8)
        state, total = optimizer.init(w), torch.zeros((), dtype=DOUBLE)
        compute = torchopt.value_and_grad(make_loss(scale), has_aux=True, checkpoint=checkpoint)
        for _ in range(steps):
            (value, (aux, _)), g = compute(w, learned, x)
            updates, state = optimizer.update(g, state, w)
            w, total = torchopt.apply_updates(w, updates), total + value + aux
        return make_loss(scale)(w, 0 * learned, x)[0] + 0.1 * total

    return run


def grads(f: Loop) -> Callable[..., Any]:
    return torch.func.grad(f, argnums=(0, 1, 2))


def by_autograd(f: Loop, order: int = 1) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        leaves = [x.clone().requires_grad_() for x in torchopt.tree.leaves(args)]
        value = f(dict(zip('abc', leaves)), *leaves[3:])
        for k in range(order):
            found = torch.autograd.grad(value, leaves, create_graph=k + 1 < order)
            value = sum((g.sin().sum() for g in found), torch.zeros((), dtype=DOUBLE))
        return found

    return run


def squares(f: Callable[..., Any]) -> Loop:
    return lambda *args: sum((g.square().sum() for g in torchopt.tree.leaves(f(*args))), torch.zeros((), dtype=DOUBLE))


def over_tasks(f: Loop) -> Loop:
    return lambda *args: torch.vmap(lambda x: f(*args, x))(TASKS).mean()


def dual(f: Loop) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        with forward_ad.dual_level():
            duals = torchopt.tree.map(forward_ad.make_dual, args, TANGENTS)
            return forward_ad.unpack_dual(f(*duals)).tangent

    return run


def jvp(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: torch.func.jvp(f, args, TANGENTS)


TRANSFORMS: dict[str, Callable[[Loop], Callable[..., Any]]] = {
    'autograd': by_autograd,
    'autograd, second order': lambda f: by_autograd(f, 2),
    'autograd, third order': lambda f: by_autograd(f, 3),
    'grad': grads,
    'grad of grad': lambda f: grads(squares(grads(f))),
    'grad of vmap': lambda f: grads(over_tasks(f)),
    'autograd of vmap': lambda f: by_autograd(over_tasks(f)),
    'autograd of vmap, second order': lambda f: by_autograd(over_tasks(f), 2),
    'vmap of grad': lambda f: lambda *a: torch.vmap(lambda x: grads(f)(*a, x))(TASKS),
    'vmap of grad, over a closed-over tensor': lambda f: (
        lambda w, p, c: torch.vmap(lambda c: grads(f)(w, p, c))(torch.stack([c, c.sin()]))
    ),
    'vmap of vmap': lambda f: (
        lambda w, p, c: torch.vmap(lambda q: torch.vmap(lambda x: torch.func.grad(f, 1)(w, q, c, x))(TASKS[:2]))(
            torch.stack([p, p.sin()])
        )
    ),
    'jvp': jvp,
    'jvp of grad': lambda f: jvp(grads(f)),
    'grad of jvp': lambda f: grads(lambda *a: jvp(f)(*a)[1]),
    'jvp of jvp': lambda f: jvp(lambda *a: jvp(f)(*a)[1]),
    'hessian': lambda f: torch.func.hessian(f, argnums=2),
    'jacrev of grad': lambda f: torch.func.jacrev(torch.func.grad(f, 2), argnums=2),
    'dual level': dual,
}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', TRANSFORMS)
def test_all_transforms_agree(name: str, mode: str) -> None:
    transform = TRANSFORMS[name]
    steps = 1 if 'order' in name else 2
    assert_trees_close(
        transform(inner_loop(mode, steps))(*ARGUMENTS), transform(inner_loop(None, steps))(*ARGUMENTS), 1e-10
    )


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('transform', [by_autograd, grads])
def test_loops_nest(transform: Callable[[Loop], Callable[..., Any]], mode: str) -> None:
    """The loss of the outer gradient step has an inner loop."""

    def outer(checkpoint: str | None) -> Loop:
        f = inner_loop(checkpoint, steps=1)

        def run(w: Any, learned: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            g = torchopt.grad(lambda p: f(w, p, scale), checkpoint=checkpoint)(learned)
            return f(w, learned - 0.1 * g, scale)

        return run

    assert_trees_close(transform(outer(mode))(*ARGUMENTS), transform(outer(None))(*ARGUMENTS), 1e-10)


RATE = torch.tensor(0.05, dtype=DOUBLE)
OPTIMIZERS: dict[str, Callable[[torch.Tensor], Any]] = {
    'sgd': lambda rate: torchopt.sgd(rate, momentum=0.9, nesterov=True),
    'adam': torchopt.adam,
    'adamw': torchopt.adamw,
    'adamax': torchopt.adamax,
    'adagrad': torchopt.adagrad,
    'adadelta': torchopt.adadelta,
    'rmsprop': lambda rate: torchopt.rmsprop(rate, centered=True),
    'radam': torchopt.radam,
    'lion': torchopt.lion,
    'clipped': lambda rate: torchopt.chain(torchopt.clip.clip_by_global_norm(0.5), torchopt.sgd(rate)),
}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_all_optimizers_and_learned_rates(name: str, mode: str) -> None:
    def meta_gradient(checkpoint: str | None) -> Any:
        w = {k: v.clone().requires_grad_() for k, v in WEIGHTS.items()}
        frozen = w.pop('b').detach()
        rate, p, scale = (x.clone().requires_grad_() for x in (RATE, LEARNED, CLOSED_OVER))
        optimizer = OPTIMIZERS[name](rate)
        now, state = w, optimizer.init(w)
        loss = make_loss(scale)
        compute = torchopt.grad(lambda now: loss({**now, 'b': frozen}, p, X)[0], checkpoint=checkpoint)
        for _ in range(3):
            updates, state = optimizer.update(compute(now), state, now)
            now = torchopt.apply_updates(now, updates, inplace=False)
        value = loss({**now, 'b': frozen}, 0 * p, X)[0]
        return torch.autograd.grad(value, [*w.values(), rate, p, scale], allow_unused=True, materialize_grads=True)

    assert_trees_close(meta_gradient(mode), meta_gradient(None), 1e-10)


@pytest.mark.parametrize('mode', MODES)
def test_gradcheck_and_gradgradcheck(mode: str) -> None:
    w = tensor(3, seed=7).requires_grad_()

    def gradient(x: torch.Tensor, p: torch.Tensor) -> Any:
        return torchopt.value_and_grad(lambda x: (x.sin() * w * p.exp()).sum() ** 2, checkpoint=mode)(x)

    points = tensor(3).requires_grad_(), tensor(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(gradient, points, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(gradient, points)


@pytest.mark.parametrize('mode', MODES)
def test_auxiliary_outputs_of_all_kinds(mode: str) -> None:
    def fun(x: torch.Tensor) -> Any:
        return (x**3).sum(), {'int': x.argmax(), 'bool': x > 0, 'text': 'a', 'none': None, 'float': 2 * x}

    def value(x: torch.Tensor, mode: str | None = mode) -> Any:
        g, aux = torchopt.grad(fun, has_aux=True, checkpoint=mode)(x)
        return g, aux['float'], aux['int']

    x = tensor(3)
    g, aux = torchopt.grad(fun, has_aux=True, checkpoint=mode)(x)
    assert (aux['text'], aux['none'], aux['int'].item(), aux['bool'].tolist()) == (
        'a',
        None,
        x.argmax(),
        (x > 0).tolist(),
    )
    assert_trees_close((g, aux['float']), (3 * x**2, 2 * x), 1e-12)
    moved = torch.func.jvp(lambda x: value(x)[:2], (x,), (x,))[1]
    assert_trees_close(moved, (6 * x * x, 2 * x), 1e-12)
    assert_trees_close(torch.vmap(value)(x[:, None]), torch.vmap(lambda x: value(x, None))(x[:, None]), 1e-12)


@pytest.mark.parametrize('mode', MODES)
def test_gradients_as_without_checkpoint(mode: str) -> None:
    """Unused arguments, None, numbers, NumPy's and JAX's ways to call; grad modes."""
    fun = torchopt.value_and_grad(lambda p, x, k=1: (p['w'] ** 2 * x).sum() * k, argnums=(0, -1), checkpoint=mode)
    params = {'w': tensor(2), 'unused': tensor(1), 'none': None}
    value, (g, gx) = fun(params, 2.0, k=3)
    assert_trees_close(g, {'w': 12 * params['w'], 'unused': torch.zeros(1, dtype=DOUBLE), 'none': None}, 1e-12)
    assert_trees_close(gx, 3 * (params['w'] ** 2).sum(), 1e-6)
    assert not value.requires_grad
    params['w'].requires_grad_()
    assert fun(params, 2.0)[1][0]['w'].requires_grad
    for mode_of_torch in (torch.no_grad, torch.inference_mode):
        with mode_of_torch():
            assert not fun(params, 2.0)[1][0]['w'].requires_grad


def test_the_graph_is_compiled_in_one_piece() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return x - torchopt.grad(lambda x: (x**3).sum(), checkpoint='mixed')(x)  # type: ignore[no-any-return]

    x = tensor(3)
    assert_trees_close(torch.compile(step, backend='eager', fullgraph=True)(x), x - 3 * x**2, 1e-12)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"Invalid checkpoint: True; expected None, 'reverse' or 'mixed'"):
        torchopt.grad(torch.sum, checkpoint=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r'expected a real 0-d tensor. Return its mean or its sum'):
        torchopt.grad(lambda x: x * 2, checkpoint='reverse')(tensor(3))
    with pytest.raises(TypeError, match='Invalid fun: an int; expected a function'):
        torchopt.checkpoint(3)  # type: ignore[arg-type]


DETERMINANTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    'det': torch.linalg.det,
    'slogdet': lambda m: torch.linalg.slogdet(m)[1],
    'logdet': torch.logdet,
    'solve': lambda m: torch.linalg.solve(m, m[0].sin()).sum(),
    'solve_ex': lambda m: torch.linalg.solve_ex(m.cos(), m)[0].sum(),
    'logdet under vmap': lambda m: torch.vmap(torch.logdet)(torch.stack([m, m.T @ m])).sum(),
}


@pytest.mark.parametrize('mode', ['reverse', 'mixed'])
@pytest.mark.parametrize('name', DETERMINANTS)
def test_backward_passes_that_use_factors_of_a_matrix(name: str, mode: str) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return DETERMINANTS[name](4 * torch.eye(3, dtype=DOUBLE) + x.view(3, 3))

    x, v = torch.arange(9, dtype=DOUBLE).sin(), torch.arange(9, dtype=DOUBLE).cos()
    expected = torch.func.hessian(f)(x) @ v
    leaf = x.clone().requires_grad_()
    gradient = torchopt.grad(f, checkpoint=mode)
    assert_trees_close(torch.autograd.grad(gradient(leaf) @ v, leaf)[0], expected, 1e-10)
    assert_trees_close(torch.func.jvp(gradient, (x,), (v,))[1], expected, 1e-10)
    assert_trees_close(torch.func.jacrev(gradient)(x) @ v, expected, 1e-10)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(gradient(forward_ad.make_dual(x, v))).tangent
    assert_trees_close(tangent, expected, 1e-10)
    assert_trees_close(torchopt.forward_value_and_grad(lambda x: gradient(x) @ v)(x)[1], expected, 1e-10)


def directional(p: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    value, slope = torch.func.jvp(lambda z: torch.tanh(z @ p), (x,), (torch.ones_like(x),))
    return (value + slope**2).sum()


USES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    'jvp': directional,
    'jacfwd': lambda p, x: torch.func.jacfwd(lambda q: torch.sin(x @ q))(p).square().sum(),
    'grad': lambda p, x: torch.func.grad(lambda q: torch.tanh(x @ q).sum())(p).square().sum(),
    'hessian': lambda p, x: torch.func.hessian(lambda q: torch.tanh(x @ q).sum())(p).square().sum(),
    'vmap': lambda p, x: torch.vmap(lambda row: torch.tanh(row @ p) ** 2)(x).sum(),
}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', USES)
def test_functions_that_use_derivatives(name: str, mode: str) -> None:
    """Forward mode inside a function that is itself differentiated by forward mode."""
    p, x = torch.linspace(-1, 1, 3, dtype=DOUBLE).requires_grad_(), torch.linspace(-1, 2, 12, dtype=DOUBLE).view(4, 3)

    def product(checkpoint: str | None) -> torch.Tensor:
        gradient = torchopt.grad(USES[name], checkpoint=checkpoint)(p, x)
        return torch.autograd.grad((gradient**3).sum(), p)[0]

    assert_trees_close(product(mode), product(None), 1e-10)


@pytest.mark.parametrize('size', [3, 20_000])
def test_another_gradient_of_short_and_long_arguments(size: int) -> None:
    """An object was changed so that only the gradient differs."""
    share = [1.0]
    x = torch.linspace(1, 2, size, dtype=DOUBLE).requires_grad_()
    gradient = torchopt.grad(
        lambda x: (share[0] * x + (1 - share[0]) * x.detach()).square().sum(), checkpoint='reverse'
    )
    refused, same = gradient(x), gradient(x)
    torch.autograd.grad(same.sum(), x)
    share[0] = 0.5
    with pytest.raises(RuntimeError, match='another gradient when it is recomputed'):
        torch.autograd.grad(refused.sum(), x)


class Scaled(torch.overrides.TorchFunctionMode):
    """Multiply each tanh by a tensor that no argument contains."""

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.scale = scale

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * self.scale if func is torch.tanh else result


def test_tensors_of_outer_modes_are_refused() -> None:
    x = tensor(3).requires_grad_()
    gradient = torchopt.grad(lambda x: torch.tanh(x).sum(), checkpoint='reverse')
    with Scaled(torch.tensor(2.0, requires_grad=True)), pytest.raises(RuntimeError, match='neither its argument nor'):
        gradient(x)
