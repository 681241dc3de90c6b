# SPDX-License-Identifier: Apache-2.0
"""Scans that compile their steps have the values and derivatives of scans that do not, or raise.

The backend ``'eager'`` runs the captured graphs as they are, so that nearly all tests need no compiler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchopt
from tests.oracle import assert_trees_close
from torchopt.loop import scan

DOUBLE, TOLERANCE = torch.float64, 1e-12


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) / 2


XS, W, INIT = data(4, 3), data(3, 3, seed=1), data(3, seed=2)


def recurrent(w: Tensor, init: Tensor, xs: Tensor, **options: Any) -> Tensor:
    def f(carry: Any, x: Any) -> Any:
        h, count = carry
        h = torch.tanh(w @ h + x) + init
        return (h, count + 1), {'h': h.square(), 'count': count, 'none': None}

    (h, _), ys = scan(f, (init, torch.zeros((), dtype=torch.int64)), xs, **options)
    return h.sum() + (ys['h'] * torch.arange(1.0, 1 + len(xs), dtype=DOUBLE)[:, None]).sum()


def gradients(f: Callable[..., Tensor]) -> Callable[..., Any]:
    """Value, first and second derivatives."""

    def run(*args: Tensor) -> Any:
        leaves = [x.clone().requires_grad_() for x in args]
        value = f(*leaves)
        first = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)
        return value.detach(), [g.detach() for g in first], second

    return run


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Any]]] = {
    'none': lambda f: f,
    'two orders': gradients,
    'checkpoint': lambda f: gradients(torchopt.checkpoint(f)),
    'grad': lambda f: torch.func.grad(f, argnums=(0, 1, 2)),
    'vmap': lambda f: lambda w, h, xs: torch.vmap(torch.func.grad(f), (None, 0, None))(w, torch.stack([h, -h]), xs),
    'vmap over the closure': lambda f: (
        lambda w, h, xs: torch.vmap(torch.func.grad(f, (0, 1, 2)), (0, None, None))(torch.stack([w, -w]), h, xs)
    ),
    'grad of vmap': lambda f: (
        lambda w, h, xs: torch.func.grad(
            lambda w: torch.vmap(f, (None, 0, None))(w, torch.stack([h, -h]), xs).square().sum()
        )(w)
    ),
    'jvp': lambda f: lambda *a: torch.func.jvp(f, a, tuple(x.cos() for x in a)),
    'jvp of vmap': lambda f: (
        lambda w, h, xs: torch.func.jvp(
            lambda w: torch.vmap(f, (None, 0, None))(w, torch.stack([h, -h]), xs), (w,), (w.cos(),)
        )
    ),
    'forward mode over a gradient': lambda f: torch.func.jacfwd(torch.func.grad(f, 1), 1),
    'forward mode': lambda f: torchopt.forward_value_and_grad(f, argnums=1),
    'vectorized Jacobian': lambda f: lambda *a: torch.autograd.functional.jacobian(f, a, vectorize=True),
    'vectorized Hessian': lambda f: lambda *a: torch.autograd.functional.hessian(f, a, vectorize=True),
    'vectorized Jacobian of a gradient': lambda f: (
        lambda *a: torch.autograd.functional.jacobian(torch.func.grad(f, (0, 1)), a, vectorize=True)
    ),
    'vectorized Hessian, forward mode': lambda f: (
        lambda *a: torch.autograd.functional.hessian(f, a, vectorize=True, outer_jacobian_strategy='forward-mode')
    ),
    'no_grad': torch.no_grad(),
    'inference mode': torch.inference_mode(),
}


@pytest.mark.parametrize('name', TRANSFORMS)
def test_transforms_agree(name: str) -> None:
    transform = TRANSFORMS[name]
    found = transform(lambda *a: recurrent(*a, compile='graph'))(W, INIT, XS)
    assert_trees_close(found, transform(recurrent)(W, INIT, XS), TOLERANCE)


def writing(w: Tensor, init: Tensor, xs: Tensor, *, in_place: bool, **options: Any) -> Tensor:
    """A scan whose step writes into its own tensors; torch cannot map all of these over a batch."""

    def f(h: Any, x: Any) -> Any:
        y = x.clone()
        y = y.add_(w @ h) if in_place else y + w @ h
        return y.tanh(), y

    h, ys = scan(f, init, xs, **options)
    return h.sum() + (ys * ys).sum()


@pytest.mark.parametrize('name', TRANSFORMS)
def test_transforms_agree_for_steps_that_write_in_place(name: str) -> None:
    transform = TRANSFORMS[name]
    found = transform(lambda *a: writing(*a, in_place=True, compile='graph'))(W, INIT, XS)
    assert_trees_close(found, transform(lambda *a: writing(*a, in_place=False))(W, INIT, XS), TOLERANCE)


def test_a_carry_from_outside_of_the_transform() -> None:
    found, expected = (
        torch.func.grad(lambda w, o=o: recurrent(w, INIT, XS, **o))(W) for o in ({'compile': 'eager'}, {})
    )
    assert_trees_close(found, expected, TOLERANCE)


def with_constants(w: Tensor, init: Tensor, xs: Tensor, **options: Any) -> Tensor:
    def f(h: Any, x: Any) -> Any:
        h = w[torch.tensor([0, 2])].sum(0) * h + x.sin()
        return h, h * torch.tensor([1.0, 2.0, 3.0], dtype=DOUBLE)

    h, ys = scan(f, init, xs, **options)
    return h.sum() + (ys * ys).sum()


@pytest.mark.parametrize('name', ['two orders', 'forward mode over a gradient', 'jvp of vmap'])
def test_constants_of_recomputed_steps(name: str) -> None:
    transform = TRANSFORMS[name]
    found = transform(lambda *a: with_constants(*a, compile='graph', checkpoint=2))(W, INIT, XS)
    assert_trees_close(found, transform(with_constants)(W, INIT, XS), TOLERANCE)


@pytest.mark.parametrize('options', [{'reverse': True}, {'checkpoint': 2}, {'truncate': 2}], ids=str)
def test_other_options(options: dict[str, Any]) -> None:
    found = gradients(lambda *a: recurrent(*a, compile='eager', **options))(W, INIT, XS)
    assert_trees_close(found, gradients(lambda *a: recurrent(*a, **options))(W, INIT, XS), TOLERANCE)


def test_attributes_of_arguments_as_outputs() -> None:
    def f(w: Tensor, init: Tensor, **options: Any) -> Tensor:
        w, init = torch.complex(w, w.cos()), torch.complex(init.sin(), w)

        def step(c: Tensor, _: None) -> Any:
            return w * c.sin(), [c.T, c.mT, c.H, c.mH, c.real, c.imag, c.data, c.T.real, w.T, w.real, w]

        last, ys = scan(step, init, length=3, **options)
        numbers = torch.arange(1.0, 28, dtype=DOUBLE).view(3, 3, 3)
        total = last.abs().sum()
        for y in ys:
            total = total + (y * numbers).abs().square().sum() + (y.imag.sum() if y.is_complex() else 0)
        return total

    for transform in (gradients, torch.func.grad):
        found = transform(lambda *a: f(*a, compile='graph'))(W, INIT.diag())
        assert_trees_close(found, transform(f)(W, INIT.diag()), TOLERANCE)


# Inner loops: a function of the weights, of learned numbers and of a batch, with the options of scan.


def with_transform(make: Callable[[Tensor], Any], *, frozen: bool = False) -> Callable[..., Tensor]:
    def outer(w: Tensor, theta: Tensor, x: Tensor, **options: Any) -> Tensor:
        transform = make(theta)

        def loss(params: Any) -> Tensor:
            hidden = torch.tanh(x @ params['w']) * params['scale']
            return (theta.exp() * hidden.square()).mean() + 0.1 * (params['w'] - w).square().sum()

        def step(carry: Any, _: None) -> Any:
            params, state = carry
            value, gradient = torchopt.value_and_grad(loss)(params)
            if frozen:
                gradient['scale'] = None
            updates, state = transform.update(gradient, state, params)
            return (torchopt.apply_updates(params, updates), state), value

        params = {'w': w, 'scale': torch.ones(3, dtype=DOUBLE)}
        (params, _), values = scan(step, (params, transform.init(params)), length=3, **options)
        return (x @ params['w']).sin().sum() + params['scale'].sum() + values.sum()

    return outer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 3, dtype=DOUBLE), nn.LayerNorm(3, dtype=DOUBLE)
        self.register_buffer('shift', data(3, seed=5))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.first(x)) + self.shift)


torch.manual_seed(0)
NET = Net()


def of_a_module(w: Tensor, theta: Tensor, x: Tensor, **options: Any) -> Tensor:
    """Parameters by functional_call, the others and the buffers where the module has them."""

    def step(weight: Any, row: Any) -> Any:
        def loss(weight: Any) -> Tensor:
            return torch.func.functional_call(NET, {'first.weight': weight}, (row[None],)).mul(theta).sum()

        return weight - 0.1 * torch.func.grad(loss)(weight), None

    return scan(step, w, x, **options)[0].sin().sum()


def with_frozen_leaves(w: Tensor, theta: Tensor, x: Tensor, **options: Any) -> Tensor:
    """Leaves that steps pass on, exchange, and do not use; Python numbers and None."""

    def step(carry: Any, row: Any) -> Any:
        a, b, fixed, number, none = carry
        return (b, a + number * torch.tanh(w @ row * fixed), fixed, number, none), (fixed, 2.0)

    (a, b, *_), (fixed, number) = scan(step, (theta, -theta, theta.detach(), 2, None), x, **options)
    return (a * b).sum() + fixed.sum() + number.sum()


INNER: dict[str, Callable[..., Tensor]] = {
    'sgd': with_transform(lambda theta: torchopt.sgd(0.1, momentum=0.9)),
    'adam': with_transform(lambda theta: torchopt.adam(0.1, eps_root=1e-8)),
    'adamw': with_transform(lambda theta: torchopt.adamw(0.1, eps=1e-2, weight_decay=0.1)),
    'learned adam, frozen leaf': with_transform(
        lambda theta: torchopt.adam(theta[0].exp() / 10, eps_root=1e-8), frozen=True
    ),
    'module': of_a_module,
    'leaves': with_frozen_leaves,
}


@pytest.mark.parametrize('name', INNER)
def test_inner_loops(name: str) -> None:
    found = gradients(lambda *a: INNER[name](*a, compile='graph'))(W, INIT, XS)
    assert_trees_close(found, gradients(INNER[name])(W, INIT, XS), TOLERANCE)


@pytest.mark.parametrize('compile', ['graph', 'eager'])
def test_segments_of_steps_that_call_a_module(compile: str) -> None:
    """The hook that records the modules of a segment is not captured."""
    transform = torch.func.grad(of_a_module, argnums=(0, 1))
    for checkpoint in (2, None):
        found = transform(W, INIT, XS, compile=compile, checkpoint=checkpoint)
        assert_trees_close(found, transform(W, INIT, XS), TOLERANCE)


def counting(counts: list[int]) -> Callable[..., Any]:
    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        counts.append(len(graph.graph.nodes))
        return graph

    return backend


def test_compiles_once_for_all_lengths_and_again_for_what_differs() -> None:
    counts: list[int] = []
    backend = counting(counts)

    def run(length: int, factor: float = 2.0, w: Tensor = W, init: Tensor = INIT) -> None:
        def step(h: Any, _: None) -> Any:
            return torch.tanh(factor * (w @ h)), None

        found, expected = [
            torch.func.grad(lambda h, o=o: scan(step, h, length=length, **o)[0].sum())(init)
            for o in ({'compile': backend}, {})
        ]
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected)

    run(2)
    assert len(counts) == 2  # the step and its product
    run(5)
    run(3, w=2 * W, init=-INIT)  # other values
    assert len(counts) == 2
    run(3, factor=3.0)
    assert len(counts) == 4
    run(3, w=W.float(), init=INIT.float())
    assert len(counts) == 6
    run(3, w=data(2, 2), init=data(2))
    assert len(counts) == 8


@pytest.mark.parametrize('transform', [torchopt.grad, torch.func.grad])
def test_compiles_once_although_hooks_come_and_go(transform: Any) -> None:
    import torch.distributed.fsdp  # noqa: F401  # then gradients have a hook of their own

    counts: list[int] = []
    backend = counting(counts)

    def gradient() -> Any:
        return transform(lambda w: of_a_module(w, INIT, XS, compile=backend, checkpoint=2))(W)

    first = gradient()
    captured = len(counts)
    assert_trees_close(gradient(), first, TOLERANCE)
    assert len(counts) == captured


def test_cotangents_that_are_missing_do_not_become_nan() -> None:
    """The derivative of an output that is not used may be infinite."""

    def last(x: Tensor, **options: Any) -> Tensor:
        return scan(lambda h, _: (2 * h, h.norm() + h.abs().sqrt().sum()), x, length=3, **options)[0].sum()

    x = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    found, expected = (torch.autograd.grad(last(x, **o), x)[0] for o in ({'compile': 'eager'}, {}))
    assert torch.equal(found, expected)


def test_the_compiler_of_torch() -> None:
    """In single precision, with the default backend."""

    def loss(h: Tensor, x: Tensor, target: Tensor) -> Tensor:
        return (torch.tanh(x * h) - target).square().sum()

    def outer(h: Tensor, target: Tensor, **options: Any) -> Tensor:
        def step(h: Any, x: Any) -> Any:
            return h - 0.1 * torchopt.grad(loss)(h, x, target), None

        return scan(step, h, XS.float(), **options)[0].sum()

    arguments = (INIT.float(), INIT.float().cos())
    found, expected = (
        torch.func.grad(lambda *a, o=o: outer(*a, **o), (0, 1))(*arguments) for o in ({'compile': True}, {})
    )
    assert_trees_close(found, expected, 1e-6)


KEPT: list[Any] = []
COUNT = [0]
NORM = nn.BatchNorm1d(3, dtype=DOUBLE)


class Hidden:
    def __init__(self, x: Tensor) -> None:
        self.x = x


def keeping(h: Any, _: None) -> Any:
    KEPT.append(h.sum())
    return 2 * h, None


def counted(h: Any, _: None) -> Any:
    COUNT[0] += 1
    return h / COUNT[0], None


def branching(h: Any, _: None) -> Any:
    return (h if h.sum() > 0 else -h), None


def through_autograd(h: Any, _: None) -> Any:
    x = h.detach().requires_grad_()
    return h - torch.autograd.grad(x.square().sum(), x)[0], None


class Twice(torch.autograd.Function):
    """The derivative of this identity is 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return 2 * cotangent


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    'dropout': (lambda h, _: (torch.dropout(h, 0.5, True), None), 'compile: .* draws random numbers'),
    'random numbers': (lambda h, _: (h + torch.rand(3, dtype=h.dtype), None), 'compile: .* draws random numbers'),
    'running statistics': (lambda h, _: (NORM(h[None].repeat(2, 1))[0], None), 'compile: .* running statistic'),
    'change of the carry': (lambda h, _: (h.mul_(2), None), 'compile: .* in place'),
    'change of a view': (lambda h, _: (h[1:].mul_(2).sum() + h, None), 'compile: .* in place'),
    'change of several': (lambda h, _: (torch._foreach_mul_([h, h + 1], 2.0) or h, None), 'compile: .* in place'),
    'value': (lambda h, _: (h * h.sum().item(), None), 'compile: .* reads the value'),
    'branch': (branching, 'compile: .* one graph'),
    'autograd.grad': (through_autograd, 'compile: .* one graph'),
    'autograd Function': (lambda h, _: (Twice.apply(h), None), 'compile: .* calls Twice, a torch.autograd.Function'),
    'list': (keeping, 'compile: .* stores a tensor'),
    'counter': (counted, 'compile: .* Python variable'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refusals(name: str) -> None:
    step, message = REFUSED[name]
    init = INIT.clone()
    before = copy.deepcopy(NORM.state_dict())
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            scan(step, init, length=2, compile='eager')
    assert torch.equal(init, INIT)
    assert_trees_close(NORM.state_dict(), before, 0.0)


def test_refusals_of_the_surroundings() -> None:
    def step(h: Any, _: None) -> Any:
        return 2 * h, None

    with torch.autocast('cpu'), pytest.raises(RuntimeError, match='compile: autocast is on'):
        scan(step, INIT, length=2, compile='eager')
    with pytest.raises(TypeError, match='compile: a leaf that is not a tensor changes'):
        scan(lambda carry, _: ((carry[0], carry[1] + 1), None), (INIT, 0), length=2, compile='eager')
    with pytest.raises(TypeError, match='compile: a leaf is a ndarray'):
        scan(step, INIT.numpy(), length=2, compile='eager')

    def hidden(x: Tensor) -> Tensor:
        holder = Hidden(x)
        return scan(lambda h, _: (h * holder.x, None), INIT, length=2, compile='eager')[0]

    with pytest.raises(RuntimeError, match=r'compile: .* transform of torch\.func'):
        torch.vmap(hidden)(torch.ones(2, dtype=DOUBLE))


def test_bad_values() -> None:
    with pytest.raises(TypeError, match='Invalid compile: 3'):
        scan(lambda h, _: (h, None), INIT, length=2, compile=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Invalid compile: 'nothing'"):
        scan(lambda h, _: (h, None), INIT, length=2, compile='nothing')
    with pytest.raises(TypeError, match='pair'):
        scan(lambda h, _: h, INIT, length=2, compile='eager')
    with pytest.raises(ValueError, match='Keep the shape'):
        scan(lambda h, _: (torch.cat([h, h]), None), INIT, length=2, compile='eager')


def test_a_tensor_that_is_changed_before_the_backward_pass_is_noticed() -> None:
    w, h = W.clone(), INIT.clone().requires_grad_()
    out, _ = scan(lambda h, _: (torch.tanh(w @ h), None), h, length=2, compile='eager')
    w.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


def test_autocast_of_the_backward_pass_does_not_matter() -> None:
    h = INIT.float().requires_grad_()
    w = W.float()
    out, _ = scan(lambda h, _: (torch.tanh(w @ h), None), h, length=2, compile='eager')
    with torch.autocast('cpu'):
        found = torch.autograd.grad(out.sum(), h)[0]
    out, _ = scan(lambda h, _: (torch.tanh(w @ h), None), h, length=2)
    assert torch.equal(found, torch.autograd.grad(out.sum(), h)[0])


def test_more_captures_than_torch_allows() -> None:
    def descend(rate: float) -> Tensor:
        return scan(lambda x, _: (x - rate * x.sin(), None), torch.ones(2), None, length=2, compile='eager')[0]

    with torch._dynamo.config.patch(recompile_limit=1):
        descend(0.1)
        with pytest.raises(RuntimeError, match=r'compile: .* as often as torch\._dynamo'):
            descend(0.2)


def test_saved_tensor_hooks_are_allowed_after_a_transform() -> None:
    def f(w: Tensor) -> Tensor:
        def step(h: Any, _: None) -> Any:
            return h - 0.1 * torchopt.grad(lambda h: (h @ w).square().sum())(h), None

        return scan(step, INIT, length=2, compile='eager')[0].sum()

    torch.func.grad(f)(W)  # the graph is captured inside of a gradient, and used again outside
    torch.func.jvp(f, (W,), (W,))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        pass
