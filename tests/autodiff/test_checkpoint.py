# SPDX-License-Identifier: Apache-2.0
"""What is recomputed is what was computed: surroundings are restored, and what cannot be restored is refused."""

from __future__ import annotations

import functools
import gc
import re
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as checkpoint_of_torch

import torchopt
from tests.oracle import assert_trees_close
from torchopt import loop

DOUBLE = torch.float64
MODES = ('reverse', 'mixed')
both_modes = pytest.mark.parametrize('mode', MODES)


def leaf(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def plain_gradient(fun: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    value = fun(x)
    return value, torch.autograd.grad(value, x, create_graph=True)[0]


def gradient(fun: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, mode: str | None) -> Any:
    return plain_gradient(fun, x) if mode is None else torchopt.value_and_grad(fun, checkpoint=mode)(x)


def second(fun: Callable[[torch.Tensor], torch.Tensor], mode: str | None, x: torch.Tensor, *more: torch.Tensor) -> Any:
    value, g = gradient(fun, x, mode)
    return torch.autograd.grad(value + g.sin().sum(), (x, *more), allow_unused=True)


# --- checkpoint -------------------------------------------------------------------------------------------------------


def test_checkpoint_keeps_value_and_derivatives() -> None:
    w, x = leaf(3), leaf(3, seed=1)

    def block(x: torch.Tensor, k: int = 2) -> Any:
        return {'y': (w * x).sin() ** k, 'n': k, 'index': x.argmax()}

    again = torchopt.checkpoint(block)
    assert again(x)['n'] == 2
    assert again(x)['index'] == x.argmax()
    f, g = (lambda x, b=b: b(b(x)['y'], k=3)['y'] for b in (block, again))
    assert_trees_close(torch.autograd.grad(g(x).sum(), (x, w)), torch.autograd.grad(f(x).sum(), (x, w)), 1e-12)
    point = x.detach()
    w.requires_grad_(False)
    for transform in (torch.func.jacrev, torch.func.jacfwd, lambda h: torch.func.hessian(lambda x: h(x).sum())):
        assert_trees_close(transform(g)(point), transform(f)(point), 1e-12)
    rows = torch.stack([point, point.cos()])
    assert_trees_close(torch.vmap(torch.func.jacrev(g))(rows), torch.vmap(torch.func.jacrev(f))(rows), 1e-12)
    w.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _: g(x), (x, w), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, _: g(x), (x, w))


def cubes(x: torch.Tensor) -> torch.Tensor:
    return (x.sin() * x.cos() ** 2).sum()


# Each function uses x as an argument and, as the same tensor, through its closure.
TWICE: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]] = {
    'checkpoint': (cubes, lambda x: torchopt.checkpoint(lambda c, d: (c.sin() * d.cos() * x.cos()).sum())(x, x)),
    **{
        f'gradient, {mode}': (
            lambda x: (3 * x**3).sum(),
            lambda x, m=mode: torchopt.grad(lambda c: (c**3 * x).sum(), checkpoint=m)(x).sum(),
        )
        for mode in MODES
    },
    'scan': (
        lambda x: loop.scan(lambda c, _: (c.sin() * x, None), x, None, length=4)[0].sum(),
        lambda x: loop.scan(lambda c, _: (c.sin() * x, None), x, None, length=4, checkpoint=2)[0].sum(),
    ),
}


@pytest.mark.parametrize(
    'transform',
    [
        torch.func.grad,
        torch.func.jacfwd,
        torch.func.hessian,
        lambda f: lambda x: torch.vmap(torch.func.grad(f))(x[None]),
    ],
    ids=['grad', 'jacfwd', 'hessian', 'vmap'],
)
@pytest.mark.parametrize('kind', TWICE)
def test_a_function_may_close_over_its_argument(kind: str, transform: Any) -> None:
    plain, recomputed = TWICE[kind]
    x = leaf(3).detach()
    assert_trees_close(transform(recomputed)(x), transform(plain)(x), 1e-12)


def test_results_without_a_derivative_require_no_grad() -> None:
    w = torch.ones(2, dtype=DOUBLE, requires_grad=True)

    def f(x: torch.Tensor, y: torch.Tensor) -> Any:
        with torch.no_grad():
            norm = (w * x).norm()
        return w * x / norm, norm, y, x.detach(), y * w, y > 0

    arguments = torch.arange(1.0, 3, dtype=DOUBLE).requires_grad_(), torch.ones(2, dtype=DOUBLE)
    found, expected = torchopt.checkpoint(f)(*arguments), f(*arguments)
    assert [x.requires_grad for x in found] == [x.requires_grad for x in expected]
    gradients = [torch.autograd.grad(y[0].sum() + y[4].sum(), (w, arguments[0])) for y in (found, expected)]
    assert_trees_close(*gradients, 1e-12)


def test_results_may_be_arguments() -> None:
    x = leaf(2)
    first, twice, third = torchopt.checkpoint(lambda x: (x, 2 * x, x))(x)
    assert_trees_close(torch.autograd.grad((first + twice + third).sum(), x)[0], torch.full_like(x, 4.0), 0.0)


def test_inner_gradients_by_autograd_and_parameters_made_inside() -> None:
    """The function takes its gradients with ``torch.autograd.grad``, with respect to an argument and a new leaf."""

    def adapt(x: torch.Tensor) -> torch.Tensor:
        shift = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
        g = torch.autograd.grad(((x + shift) ** 4).sum(), [x, shift], create_graph=True)
        return x - 0.1 * g[0] - 0.1 * g[1]

    x = leaf(3)
    found = torch.autograd.grad(torchopt.checkpoint(adapt)(x).sin().sum(), x)
    assert_trees_close(found, torch.autograd.grad(adapt(x).sin().sum(), x), 1e-12)


# --- what is restored -------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Batch statistics, dropout, a frozen and a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 3)
        self.norm, self.drop = nn.BatchNorm1d(6), nn.Dropout(0.3)
        self.second.bias.requires_grad_(False)
        self.tied = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.drop(torch.tanh(self.norm(self.first(x))))
        return self.tied(self.second(h))  # type: ignore[no-any-return]


@both_modes
@pytest.mark.parametrize('is_functional', [True, False])
def test_random_numbers_buffers_and_training_flags(is_functional: bool, mode: str) -> None:
    """All as without recomputation: derivatives, statistics, and the random numbers drawn afterwards."""

    def run(mode: str | None) -> Any:
        torch.manual_seed(0)
        net = Net().double()
        x, w, value = leaf(8, 3), leaf(8, 3, seed=1), torch.zeros(())
        start = {k: p for k, p in net.named_parameters() if p.requires_grad}
        now = start
        for _ in range(2):
            if is_functional:

                def loss(now: Any) -> torch.Tensor:
                    return (torch.func.functional_call(net, now, (x * w.exp(),))).square().mean()  # noqa: B023

                if mode is None:
                    value = loss(now)
                    g = dict(zip(now, torch.autograd.grad(value, list(now.values()), create_graph=True)))
                else:
                    value, g = torchopt.value_and_grad(loss, checkpoint=mode)(now)
                now = {k: p - 0.1 * g[k] for k, p in now.items()}
            else:
                value, g = gradient(lambda w: net(x * w).square().mean(), w, mode)
                w = w - 0.1 * g
        net.eval()
        torch.rand(3)
        ends = [*start.values(), x]
        found = torch.autograd.grad(value + sum(p.sin().sum() for p in now.values()) + w.sum(), ends)
        return [*found, *(b.clone() for b in net.buffers()), torch.rand(2), torch.tensor(net.norm.training)]

    assert_trees_close(run(mode), run(None), 1e-12)


@both_modes
def test_autocast(mode: str) -> None:
    x = leaf(4, 4).detach().float().requires_grad_()
    seen = []

    def fun(x: torch.Tensor) -> torch.Tensor:
        y = x @ x
        seen.append(y.dtype)
        return y.float().square().sum()

    with torch.autocast('cpu', dtype=torch.bfloat16):
        value, g = gradient(fun, x, mode)
    torch.autograd.grad(value + g.sum(), x)
    assert len(seen) > 1
    assert set(seen) == {torch.bfloat16}


FACTOR = 1.0


def scaled(x: torch.Tensor) -> torch.Tensor:
    return (x**3).sum() * FACTOR


@both_modes
def test_variables_of_the_first_run(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closures, globals and partial functions in a loop; a variable that the function itself counts up."""
    x, count, found = leaf(3), 0, []

    def counting(x: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return (x**3).sum() * count

    for k in range(1, 4):
        monkeypatch.setitem(globals(), 'FACTOR', float(k))
        inner = lambda x: (x**3).sum() * k  # noqa: B023, E731
        for fun in (lambda x: (x**3).sum() * k, inner, scaled, functools.partial(scaled), counting):  # noqa: B023
            found.append((k, gradient(fun, x, mode)[1]))
    assert count == 3
    for k, g in found:
        assert_trees_close(torch.autograd.grad(g.sum(), x)[0], 6 * k * x.detach(), 1e-12)


@both_modes
def test_parameters_that_a_module_held_then(mode: str) -> None:
    net, x = nn.Linear(3, 1).double(), leaf(3)
    start = net.weight
    _, g = gradient(lambda x: net(x).sum() ** 2, x, mode)
    net._parameters['weight'] = start.detach() * 100
    found = torch.autograd.grad(g.sum(), start)[0]
    net._parameters['weight'] = start
    _, wanted = plain_gradient(lambda x: net(x).sum() ** 2, x)
    assert_trees_close(found, torch.autograd.grad(wanted.sum(), start)[0], 1e-12)


@both_modes
def test_hooks_of_a_checkpoint_around(mode: str) -> None:
    calls = []

    def loop(x: torch.Tensor) -> torch.Tensor:
        def fun(x: torch.Tensor) -> torch.Tensor:
            calls.append(0)
            return (x**4).sum()

        for _ in range(2):
            x = x - 0.1 * gradient(fun, x, mode)[1]
        return x.sum()

    x = leaf(3)
    wanted = torch.autograd.grad(loop(x), x)
    calls.clear()
    value = checkpoint_of_torch(loop, x, use_reentrant=False)
    assert len(calls) == 2  # nothing is recomputed in the forward pass
    assert_trees_close(torch.autograd.grad(value, x), wanted, 1e-12)


def test_the_graph_lets_go_of_modules() -> None:
    """A closure refers to a module whose parameters refer to the graph: a cycle that Python cannot collect."""
    x = leaf(3).detach()

    def adapt() -> weakref.ref[nn.Linear]:
        net = nn.Linear(3, 1).double()
        weight = net.weight

        def loss(weight: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(net, {'weight': weight}, (x,)).square().sum()

        net._parameters['weight'] = weight - gradient(loss, weight, 'reverse')[1]
        net(x).sum().backward()
        return weakref.ref(net)

    gone = adapt()
    gc.collect()
    assert gone() is None


# --- what is refused --------------------------------------------------------------------------------------------------


class Cube(torch.autograd.Function):
    """``x^3 y``, without forward mode and unknown to ``torch.func``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, y)
        return x**3 * y

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = ctx.saved_tensors
        return 3 * g * x**2 * y, g * x**3


class VisibleCube(Cube):
    """The same for ``torch.func``."""

    @staticmethod
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x**3 * y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs)


def test_an_operation_that_fails_in_forward_mode() -> None:
    x, y = leaf(3), leaf(3, seed=1).detach()

    def fun(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(x.sin(), y)

    with pytest.warns(UserWarning, match=r"checkpoint='mixed': .*mse_loss does: write \(prediction - target\)"):
        assert_trees_close(second(fun, 'mixed', x), second(fun, None, x), 1e-12)


@pytest.mark.parametrize('function', [Cube, VisibleCube])
def test_an_autograd_function_of_the_arguments(function: Any) -> None:
    x, y = leaf(3), leaf(3, seed=1).detach()

    def fun(x: torch.Tensor) -> torch.Tensor:
        return function.apply(x.sin(), y).sum()  # type: ignore[no-any-return]

    wanted = second(fun, None, x)
    assert_trees_close(second(fun, 'reverse', x), wanted, 1e-12)
    with pytest.warns(UserWarning, match="checkpoint='mixed': the function has no forward mode, so reverse mode"):
        assert_trees_close(second(fun, 'mixed', x), wanted, 1e-12)


HIDDEN = {
    'alone': lambda function, x, w, h: function.apply(x.detach(), w),
    'with an argument': lambda function, x, w, h: function.apply(x, w),
    'seen elsewhere': lambda function, x, w, h: function.apply(x, h) * h,
    'samples of a vmap': lambda function, x, w, h: torch.vmap(torch.mul)(x, w) * w,
    'a graph of before': lambda function, x, w, h: torch.autograd.grad(h.sum(), w, create_graph=True)[0],
}


@pytest.mark.parametrize('transformed', [False, True])
def test_a_variable_that_no_operation_uses(transformed: bool) -> None:
    """As the result of ``vmap``, or in an autograd Function; also if an operation uses it as well."""
    h, w = leaf(3), leaf(3, seed=1)
    for fun in (
        lambda h: (torch.vmap(lambda _: w)(h) * h).sum(),
        lambda h: (torch.vmap(lambda _: w)(h) * h.sin() * w.cos()).sum(),
        lambda h: (VisibleCube.apply(h.sin(), w) * w).sum(),
    ):
        found = []
        for f in (fun, torchopt.checkpoint(fun)):
            value = torch.func.grad(f)(h.detach()).sin().sum() if transformed else f(h)
            found.append(list(torch.autograd.grad(value, [w] if transformed else [h, w])))
        assert_trees_close(*found, 1e-12)


@both_modes
@pytest.mark.parametrize('function', [Cube, VisibleCube])
@pytest.mark.parametrize('kind', HIDDEN)
def test_a_hidden_derivative_is_refused_or_right(kind: str, function: Any, mode: str) -> None:
    x, w = leaf(3), leaf(3, seed=1)

    def new_function() -> Any:
        h = w.exp()
        return lambda x: (HIDDEN[kind](function, x, w, h) * x.exp()).sum()

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            found = second(new_function(), mode, x, w)
        except RuntimeError as error:
            # The second message is torch's: by the graph of before, w was an origin of h.
            assert re.search('in a way that cannot be recomputed|appears to not have been used', str(error))
        else:
            assert_trees_close(found, second(new_function(), None, x, w), 1e-12)


def change(x: torch.Tensor) -> None:
    with torch.no_grad():
        x.mul_(2)


@both_modes
@pytest.mark.parametrize('which', ['an argument', 'a constant', 'a parameter', 'the point'])
def test_tensors_changed_in_place_before_the_backward_pass(which: str, mode: str) -> None:
    tensors = {
        'an argument': leaf(3).detach(),
        'a constant': leaf(3).detach(),
        'a parameter': leaf(3),
        'the point': leaf(3),
    }

    def fun(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return (x**3 * a * tensors['a constant'] * tensors['a parameter']).sum()

    _, g = torchopt.value_and_grad(fun, checkpoint=mode)(tensors['the point'], tensors['an argument'])
    change(tensors[which])
    with pytest.raises(RuntimeError, match=r'modified by an inplace operation|was changed in place later'):
        torch.autograd.grad(g.sum(), tensors['the point'])


@both_modes
def test_functions_that_change_tensors_in_place(mode: str) -> None:
    a, mean, var = torch.ones(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE), torch.ones(3, dtype=DOUBLE)

    def counts(x: torch.Tensor) -> torch.Tensor:
        a.add_(1)
        return (x**3 * a).sum()

    def normalizes(x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x.reshape(2, 3), mean, var, training=True).square().sum()

    for fun, size in ((counts, 3), (normalizes, 6)):
        with pytest.raises(RuntimeError, match=r'changes a tensor of shape .* from outside in place'):
            gradient(fun, leaf(size), mode)


@both_modes
def test_python_objects_that_changed(mode: str) -> None:
    factors = [1.0]

    def fun(x: torch.Tensor) -> torch.Tensor:
        factors[0] += 1
        return (x**3).sum() * factors[0]

    x = leaf(3)
    with pytest.raises(RuntimeError, match=r'gives another value when it is recomputed: .* Pass this object'):
        second(fun, mode, x)
    with pytest.raises(RuntimeError, match='gives another value'):
        torch.autograd.grad(torchopt.checkpoint(fun)(x), x)


@both_modes
def test_objects_that_change_the_gradient_only(mode: str) -> None:
    factor = [1.0]

    def fun(x: torch.Tensor) -> torch.Tensor:
        return (factor[0] * x + (1 - factor[0]) * x.detach()).pow(3).sum()

    for after in (0.3, -1.0):
        factor[0], x = 1.0, leaf(3)
        g = gradient(fun, x, mode)[1]
        factor[0] = after
        with pytest.raises(RuntimeError, match='gives another gradient when it is recomputed'):
            torch.autograd.grad(g.sum(), x)


@pytest.mark.parametrize('change', [lambda x, n: x * (-1) ** n, lambda x, n: x.roll(n, 0)], ids=['sign', 'order'])
def test_objects_that_change_no_absolute_value(change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    calls = []

    def fun(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return change(x**3, len(calls))

    x = leaf(3)
    with pytest.raises(RuntimeError, match='gives another value'):
        torch.autograd.grad(torchopt.checkpoint(fun)(x)[0], x)


@both_modes
@pytest.mark.filterwarnings('ignore:checkpoint=:UserWarning')
def test_attention_without_a_second_derivative(mode: str) -> None:
    x = torch.randn(1, 2, 4, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def attention(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x).sin().sum()

    def remedied(x: torch.Tensor) -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return attention(x)

    with pytest.raises(RuntimeError, match=r'cannot be differentiated: .*scaled_dot_product.*SDPBackend.MATH'):
        second(attention, mode, x)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = second(attention, None, x)
    assert_trees_close(second(remedied, mode, x), wanted, 1e-5)


# --- memory -----------------------------------------------------------------------------------------------------------


def saved_bytes(run: Callable[[], Any]) -> int:
    """The bytes of the storages that graphs keep after a run, each counted once."""
    kept: list[weakref.ref[Any]] = []

    class Saved:
        def __init__(self, x: torch.Tensor) -> None:
            self.x = x

    def pack(x: torch.Tensor) -> Saved:
        saved = Saved(x)
        kept.append(weakref.ref(saved))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.x):
        result = run()
        alive = [s.x.untyped_storage() for s in (reference() for reference in kept) if s is not None]
        del result
    return sum({storage.data_ptr(): storage.nbytes() for storage in alive}.values())


@both_modes
def test_each_step_keeps_its_parameters_and_nothing_else(mode: str) -> None:
    """Activations are 100 times as large as the parameters; of these one set a step is kept, and the data once."""
    data = torch.randn(500, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))

    def loop(steps: int, checkpoint: str | None) -> torch.Tensor:
        w = leaf(4, 4)
        for _ in range(steps):
            w = w - 0.1 * gradient(lambda w: torch.tanh(data @ w).square().mean(), w, checkpoint)[1]
        return w

    sizes = [saved_bytes(lambda k=k: loop(k, mode)) for k in (2, 3, 7)]
    parameters = 4 * 4 * 8
    assert sizes[1] - sizes[0] == parameters
    assert sizes[2] - sizes[1] == 4 * parameters
    plain = [saved_bytes(lambda k=k: loop(k, None)) for k in (2, 3)]
    assert plain[1] - plain[0] > 100 * parameters


INNER = {
    'func.grad': lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    'torchopt.grad': lambda f, x: torchopt.grad(lambda y: f(y).sum())(x),
    'jacrev': lambda f, x: torch.func.jacrev(f)(x).sum(0),
    'jacfwd': lambda f, x: torch.func.jacfwd(f)(x).sum(0),
    'vjp': lambda f, x: torch.func.vjp(f, x)[1](torch.ones_like(x))[0],
    'jvp': lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    'hessian': lambda f, x: torch.func.hessian(lambda y: f(y).sum())(x).sum(0),
}
OUTER = {
    'grad': torch.func.grad,
    'grad of grad': lambda f: torch.func.grad(lambda x: torch.func.grad(f)(x).square().sum()),
    'jacrev': torch.func.jacrev,
    'jvp': lambda f: lambda x: torch.func.jvp(f, (x,), (torch.cos(x),))[1],
    'grad under vmap': lambda f: lambda x: torch.vmap(torch.func.grad(f))(torch.stack([x, 2.0 * x])),
    'hessian': torch.func.hessian,
}


@pytest.mark.parametrize('outer', OUTER)
@pytest.mark.parametrize('inner', INNER)
def test_functions_that_differentiate(inner: str, outer: str) -> None:
    """Their results are made inside of transforms, where the first run does not see them arise."""
    w = torch.tensor([1.0, 2.0], dtype=torch.float64)
    x = torch.tensor([0.3, 0.4], dtype=torch.float64)

    def fun(x: Any) -> Any:
        return (INNER[inner](lambda y: (y * w).sin() * y, x) * w).square().sum()

    expected = OUTER[outer](fun)(x)
    torch.testing.assert_close(OUTER[outer](torchopt.checkpoint(fun))(x), expected, rtol=1e-12, atol=1e-12)

    def of_w(w: Any) -> Any:
        def fun(x: Any) -> Any:
            return (INNER[inner](lambda y: (y * w).sin() * y, x) * w).square().sum()

        return fun

    expected = OUTER[outer](lambda w: of_w(w)(x * w))(w)
    found = OUTER[outer](lambda w: torchopt.checkpoint(of_w(w))(x * w))(w)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
