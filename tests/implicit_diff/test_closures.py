# SPDX-License-Identifier: Apache-2.0
"""What an optimality function closes over has the derivative that an argument would have, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import torchopt
from torchopt.implicit_diff import custom_fixed_point, custom_root, root_jvp, root_vjp
from torchopt.linear_solve import solve_cg, solve_lu

f64 = torch.float64
X = torch.tensor([[1.0, 0.5], [0.3, -1.2], [0.7, 2.0]], dtype=f64)
Y = torch.tensor([1.0, -0.5, 2.0], dtype=f64)
PENALTY = torch.tensor(0.3, dtype=f64)


def ridge(X: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return torch.linalg.solve(X.T @ X + penalty * torch.eye(2, dtype=f64), X.T @ Y)


def stationarity(w: torch.Tensor, X: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return X.T @ (X @ w - Y) + penalty * w


def loss(w: torch.Tensor, X: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return 0.5 * (((X @ w - Y) ** 2).sum() + penalty * (w**2).sum())


def by_autograd_inside(w: torch.Tensor, X: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    w = w if w.requires_grad else w.detach().requires_grad_()
    return torch.autograd.grad(loss(w, X, penalty), w, create_graph=True)[0]


def by_a_linear_solve(w: torch.Tensor, X: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    return w - solve_cg(lambda v: X.T @ (X @ v) + penalty * v, X.T @ Y, tol=1e-14)


def by_another_root(w: torch.Tensor, X: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    inner = custom_root(lambda u: u + stationarity(u, X, penalty) - u, solve=solve_lu)(lambda _: ridge(X, penalty))
    return w - inner(None)


def of_gram_matrix(G: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    return custom_root(lambda w: G @ w - r, solve=solve_lu)(lambda _: torch.linalg.solve(G, r))(None)


class Linear(torch.nn.Module):
    def __init__(self, X: torch.Tensor, penalty: torch.Tensor) -> None:
        super().__init__()
        self.X, self.penalty = X, penalty

    def forward(self, w: torch.Tensor) -> torch.Tensor:
        return stationarity(w, self.X, self.penalty)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    'all closed over': lambda X, p: custom_root(lambda w: stationarity(w, X, p), solve=solve_lu)(lambda _: ridge(X, p))(
        None
    ),
    'one closed over': lambda X, p: custom_root(lambda w, p: stationarity(w, X, p), solve=solve_lu)(
        lambda _, p: ridge(X, p)
    )(None, p),
    'argument and closure': lambda X, p: custom_root(lambda w, p2: stationarity(w, X, (p + p2) / 2), solve=solve_lu)(
        lambda _, p2: ridge(X, p)
    )(None, p),
    'an argument without derivative': lambda X, p: custom_root(lambda w, y: stationarity(w, X, p), solve=solve_lu)(
        lambda _, y: ridge(X, p)
    )(None, Y),
    'intermediate': lambda X, p: of_gram_matrix(X.T @ X + p * torch.eye(2, dtype=f64), X.T @ Y),
    'module': lambda X, p: custom_root(Linear(X, p), solve=solve_lu)(lambda _: ridge(X, p))(None),
    'torch.func.grad inside': lambda X, p: custom_root(torch.func.grad(lambda w: loss(w, X, p)), solve=solve_lu)(
        lambda _: ridge(X, p)
    )(None),
    'linear solve inside': lambda X, p: custom_root(lambda w: by_a_linear_solve(w, X, p), solve=solve_lu)(
        lambda _: ridge(X, p)
    )(None),
    'root inside': lambda X, p: custom_root(lambda w: by_another_root(w, X, p), solve=solve_lu)(lambda _: ridge(X, p))(
        None
    ),
    'fixed point': lambda X, p: custom_fixed_point(lambda w: w - 0.1 * stationarity(w, X, p), solve=solve_lu)(
        lambda _: ridge(X, p)
    )(None),
    'has_aux': lambda X, p: custom_root(lambda w: stationarity(w, X, p), has_aux=True, solve=solve_lu)(
        lambda _: (ridge(X, p), 'aux')
    )(None)[0],
    'diff.implicit': lambda X, p: torchopt.diff.implicit.custom_root(
        lambda w, p: stationarity(w, X, p), argnums=1, solve=solve_lu()
    )(lambda _, p: ridge(X, p))(torch.zeros(2, dtype=f64), p),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_derivatives_of_all_orders_and_modes(name: str) -> None:
    fun, args = FUNCTIONS[name], (X.clone().requires_grad_(), PENALTY.clone().requires_grad_())
    fast = {'fast_mode': True}
    assert gradcheck(fun, args, check_forward_ad=True, **fast)
    assert gradgradcheck(fun, args, check_fwd_over_rev=True, **fast)
    # of one alone: then nothing else wants a derivative
    assert gradcheck(lambda p: fun(X, p), args[1:], check_forward_ad=True, **fast)
    assert gradcheck(lambda X: fun(X, PENALTY), args[:1], check_forward_ad=True, **fast)
    with forward_ad.dual_level():
        out = fun(X, forward_ad.make_dual(PENALTY, torch.ones_like(PENALTY)))
        tangent = forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, torch.func.jacfwd(ridge, 1)(X, PENALTY))


@pytest.mark.parametrize('name', FUNCTIONS)
def test_forward_over_reverse_without_a_graph(name: str) -> None:
    """The reverse pass inside of forward mode records no graph of its own, but has tangents."""
    p, direction = PENALTY.clone().requires_grad_(), torch.ones_like(PENALTY)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(p, direction)
        (g,) = torch.autograd.grad(FUNCTIONS[name](X, dual).sum(), dual)
        tangent = forward_ad.unpack_dual(g).tangent
    exact = torch.func.grad(torch.func.grad(lambda p: ridge(X, p).sum()))(PENALTY)
    torch.testing.assert_close(tangent, exact)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_under_torch_func(name: str) -> None:
    fun = FUNCTIONS[name]
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        for number in (0, 1):
            torch.testing.assert_close(transform(fun, number)(X, PENALTY), transform(ridge, number)(X, PENALTY))
    hessian = torch.func.jacfwd(torch.func.jacrev(fun, 1), 1)(X, PENALTY)
    torch.testing.assert_close(hessian, torch.func.jacfwd(torch.func.jacrev(ridge, 1), 1)(X, PENALTY))
    # nested levels, each of which tracks one of the two
    mixed = torch.func.grad(lambda p: torch.func.grad(lambda X: fun(X, p).sum())(X).sum())(PENALTY)
    exact = torch.func.grad(lambda p: torch.func.grad(lambda X: ridge(X, p).sum())(X).sum())(PENALTY)
    torch.testing.assert_close(mixed, exact)
    Xs, ps = torch.stack([X, X + 0.1, 2 * X]), torch.stack([PENALTY, 2 * PENALTY, 3 * PENALTY])
    for in_dims in ((0, 0), (None, 0), (0, None)):
        args = tuple(many if d == 0 else one for many, one, d in zip((Xs, ps), (X, PENALTY), in_dims))
        torch.testing.assert_close(torch.vmap(fun, in_dims)(*args), torch.vmap(ridge, in_dims)(*args))
        found = torch.vmap(torch.func.grad(lambda *a: fun(*a).sum(), (0, 1)), in_dims)(*args)
        torch.testing.assert_close(
            found, torch.vmap(torch.func.grad(lambda *a: ridge(*a).sum(), (0, 1)), in_dims)(*args)
        )
    pushed = torch.func.jvp(lambda p: torch.vmap(lambda X: fun(X, p))(Xs), (PENALTY,), (torch.ones((), dtype=f64),))
    exact = torch.func.jvp(lambda p: torch.vmap(lambda X: ridge(X, p))(Xs), (PENALTY,), (torch.ones((), dtype=f64),))
    torch.testing.assert_close(pushed, exact)


def test_optimality_by_autograd() -> None:
    """``torch.autograd.grad`` inside works outside of ``torch.func``, also with respect to what is closed over."""

    def fun(X: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return custom_root(lambda w: by_autograd_inside(w, X, p), solve=solve_lu)(lambda _: ridge(X, p))(None)

    args = (X.clone().requires_grad_(), PENALTY.clone().requires_grad_())
    assert gradcheck(fun, args)
    assert gradgradcheck(fun, args)

    def with_respect_to_a_closure(p: torch.Tensor) -> torch.Tensor:
        # d/dp of p^2 w - p is zero at w = 1 / (2 p)
        def optimality(w: torch.Tensor) -> torch.Tensor:
            return torch.autograd.grad(p**2 * w - p, p, create_graph=True)[0]

        return custom_root(optimality, solve=solve_lu)(lambda _: 1 / (2 * p))(None)

    assert gradcheck(with_respect_to_a_closure, args[1:])


def products(X: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    w = ridge(X, p)
    (pulled,) = root_vjp(lambda w, y: X.T @ (X @ w - y) + p * w, w, (Y,), torch.ones_like(w), solve=solve_lu)
    pushed = root_jvp(lambda w, y: X.T @ (X @ w - y) + p * w, w, (Y,), (torch.ones_like(Y),), solve=solve_lu)
    return pulled, pushed


def exact_products(X: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = torch.linalg.inv(X.T @ X + p * torch.eye(2, dtype=f64))
    return X @ inverse @ torch.ones(2, dtype=f64), inverse @ X.T @ torch.ones_like(Y)


def test_products_with_the_jacobian_of_a_root() -> None:
    args = (X.clone().requires_grad_(), PENALTY.clone().requires_grad_())
    torch.testing.assert_close(products(*args), exact_products(*args))
    assert gradcheck(products, args, check_forward_ad=True)
    assert gradgradcheck(products, args)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(products, 0)(X, PENALTY), transform(exact_products, 0)(X, PENALTY))
    ps = torch.stack([PENALTY, 2 * PENALTY])
    torch.testing.assert_close(torch.vmap(products, (None, 0))(X, ps), torch.vmap(exact_products, (None, 0))(X, ps))


class Inner(torchopt.nn.ImplicitMetaGradientModule, linear_solve=solve_lu()):
    """An inner problem with data that is no meta-parameter."""

    def __init__(self, scale: torch.Tensor, closed_over: Callable[[], Any]) -> None:
        super().__init__()
        self.scale = scale
        self.w = torch.nn.Parameter(torch.zeros(2, dtype=f64))
        self.closed_over = closed_over

    def objective(self) -> torch.Tensor:
        return self.scale * loss(self.w, *self.closed_over())

    def solve(self) -> None:
        with torch.no_grad():
            self.w.copy_(ridge(*self.closed_over()))


def test_modules() -> None:
    scale = torch.ones((), dtype=f64, requires_grad=True)

    def fun(X: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        inner = Inner(scale, lambda: (X, p))
        inner.solve()
        return inner.w

    args = (X.clone().requires_grad_(), PENALTY.clone().requires_grad_())
    assert gradcheck(fun, args, check_forward_ad=True)
    assert gradgradcheck(fun, args)
    torch.testing.assert_close(torch.func.jacrev(fun)(X, PENALTY), torch.func.jacrev(ridge)(X, PENALTY))


class Doubled(torch.autograd.Function):
    """A function whose use of a tensor cannot be seen."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 2 * g


def recorded_before(p: torch.Tensor) -> Callable[..., Any]:
    w = torch.zeros(2, dtype=f64)
    pull = torch.func.vjp(lambda w: (p * w**2).sum(), w)[1]
    return lambda w: w - pull(torch.ones((), dtype=f64))[0] - p.detach()


HIDDEN: dict[str, Callable[[torch.Tensor], Callable[..., Any]]] = {
    'autograd.Function': lambda p: lambda w: w - Doubled.apply(p),
    'seen elsewhere': lambda p: lambda w: w * p - p * Doubled.apply(p),
    'recorded before': recorded_before,
}


@pytest.mark.parametrize('name', HIDDEN)
def test_what_cannot_be_seen_is_refused(name: str) -> None:
    def root(p: torch.Tensor) -> torch.Tensor:
        return custom_root(HIDDEN[name](p), solve=solve_lu)(lambda _: (2 * p).expand(2))(None).sum()

    p = PENALTY.clone().requires_grad_()
    w, seen = torch.zeros(2, dtype=f64), name != 'recorded before'
    for differentiate in (
        lambda: root(p),
        lambda: root_vjp(HIDDEN[name](p), w, (), torch.ones(2, dtype=f64)),
        lambda: root_jvp(HIDDEN[name](p), w, (), ()),
        *([] if seen else [lambda: torch.func.grad(root)(PENALTY), lambda: torch.func.vjp(root, PENALTY)]),
    ):
        with pytest.raises(RuntimeError, match=r'cannot be differentiated.*as arguments of the solver'):
            differentiate()
    if seen:  # under torch.func modes see the arguments of an autograd Function
        assert torch.func.grad(root)(PENALTY).item() == pytest.approx(4.0)
        assert torch.vmap(torch.func.grad(root))(PENALTY.expand(3)).tolist() == pytest.approx([4.0] * 3)
    # Nobody differentiates.
    with torch.no_grad():
        root(p)
    root(p.detach())


def test_functions_of_arguments_may_hide_what_they_do() -> None:
    def root(p: torch.Tensor) -> torch.Tensor:
        return custom_root(lambda w, p: w - Doubled.apply(p), solve=solve_lu)(lambda _, p: 2 * p)(None, p)

    assert torch.autograd.grad(root(p := PENALTY.clone().requires_grad_()), p)[0] == 2.0
    assert torch.func.grad(root)(PENALTY) == 2.0


def test_parameters_made_inside_are_not_closed_over() -> None:
    def optimality(w: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        net = torch.nn.Linear(1, 1, bias=False, dtype=f64)
        torch.nn.init.ones_(net.weight)
        return net(w) - a

    a = torch.ones(1, dtype=f64, requires_grad=True)
    x = custom_root(optimality, solve=solve_lu)(lambda _, a: a)(None, a)
    assert torch.autograd.grad(x.sum(), a)[0] == 1.0


def test_a_change_in_place_between_the_passes_is_refused() -> None:
    p = PENALTY.clone().requires_grad_()
    w = custom_root(lambda w: stationarity(w, X, p), solve=solve_lu)(lambda _: ridge(X, p))(None)
    with torch.no_grad():
        p.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        w.sum().backward()


def test_a_network_that_is_closed_over_gets_gradients() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    target = custom_root(lambda w: w - net(Y[:2]), solve=solve_lu)(lambda _: net(Y[:2]))
    target(None).square().sum().backward()
    expected = copy.deepcopy(net)
    expected.zero_grad()
    expected(Y[:2]).square().sum().backward()
    for p, q in zip(net.parameters(), expected.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
