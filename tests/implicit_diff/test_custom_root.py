# SPDX-License-Identifier: Apache-2.0
"""How solvers are called and wrapped: arguments of every kind, auxiliary outputs, transforms, and errors."""

from __future__ import annotations

import copy
import gc
import inspect
import warnings
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from torchopt.implicit_diff import custom_fixed_point, custom_root, root_jvp, root_vjp
from torchopt.linear_solve import LinearSolveWarning, solve_cg, solve_lu, solve_normal_cg

tensor = partial(torch.tensor, dtype=torch.float64)


def F(x: Any, a: Any, b: Any = 2.0) -> Any:
    return x**2 - a * b


def sqrt(init: Any, a: Any, b: Any = 2.0) -> Any:
    return (a * b) ** 0.5


def test_positional_keyword_and_default_arguments() -> None:
    solve = custom_root(F)(sqrt)
    a, b = tensor(8.0, requires_grad=True), tensor(2.0, requires_grad=True)
    for call in (
        lambda: solve(None, a, b),
        lambda: solve(None, a, b=b),
        lambda: solve(None, b=b, a=a),
        lambda: solve(init=None, a=a, b=b),
    ):
        x = call()
        assert x.item() == 4.0
        assert [g.item() for g in torch.autograd.grad(x, (a, b))] == pytest.approx([0.25, 1.0])
    assert torch.autograd.grad(solve(None, a), a)[0].item() == pytest.approx(0.25)


def test_keyword_only_arguments() -> None:  # Q15
    def optimality(x: Any, a: Any, *, b: Any) -> Any:
        return x**2 - a * b

    @custom_root(optimality)
    def solve(init: Any, a: Any, *, b: Any, maxiter: int = 3) -> Any:
        assert maxiter in (3, 5)
        return (a * b) ** 0.5

    a, b = tensor(8.0, requires_grad=True), tensor(2.0, requires_grad=True)
    for x in (solve(None, a, b=b), solve(None, a, b=b, maxiter=5)):
        assert [g.item() for g in torch.autograd.grad(x, (a, b))] == pytest.approx([0.25, 1.0])


def test_an_option_of_the_solver_that_would_lose_a_gradient_is_refused() -> None:
    @custom_root(F)
    def solve(init: Any, a: Any, *, scale: Any) -> Any:
        return (2 * a) ** 0.5

    with pytest.raises(TypeError, match="'scale', which requires a gradient"):
        solve(None, tensor(8.0), scale=tensor(1.0, requires_grad=True))
    assert solve(None, tensor(8.0), scale=tensor(1.0)).item() == 4.0


def test_reference_signature() -> None:
    def optimality(*args: Any) -> Any:
        return F(*args)

    a, b = tensor(8.0, requires_grad=True), tensor(2.0, requires_grad=True)
    for reference in (F, inspect.signature(F)):
        solve = custom_root(optimality, reference_signature=reference)(sqrt)
        x = solve(None, b=b, a=a)
        assert [g.item() for g in torch.autograd.grad(x, (a, b))] == pytest.approx([0.25, 1.0])


def test_other_arguments_than_tensors() -> None:
    def optimality(x: Any, data: Any, power: int, name: str, mask: Any, nothing: Any) -> Any:
        return {'x': torch.where(mask, x['x'] ** power - data['a'][0], x['x']), 'count': None}

    @custom_root(optimality)
    def solve(init: Any, data: Any, power: int, name: str, mask: Any, nothing: Any) -> Any:
        assert (power, name, nothing) == (2, 'x', None)
        return {'x': torch.where(mask, data['a'][0] ** 0.5, 0.0), 'count': torch.tensor(3)}

    a = tensor([4.0, 9.0], requires_grad=True)
    result = solve(None, {'a': [a], 'i': torch.tensor(1)}, 2, 'x', torch.tensor([True, False]), None)
    assert int(result['count']) == 3
    (g,) = torch.autograd.grad(result['x'].sum(), a)
    assert g.tolist() == pytest.approx([0.25, 0.0])


def test_the_initial_solution_has_no_gradient_and_is_not_changed() -> None:
    init = tensor(1.0, requires_grad=True)

    @custom_root(F, solve=solve_cg())
    def solve(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        assert x.is_leaf and x.requires_grad  # to be trained, if the solver likes
        with torch.no_grad():
            x.fill_(4.0)
        return x

    a = tensor(8.0, requires_grad=True)
    x = solve(init, a)
    assert torch.autograd.grad(x, (init, a), allow_unused=True)[0] is None
    assert init.item() == 1.0


def test_a_solver_may_use_any_means() -> None:
    @custom_root(F, solve=solve_cg())
    def solve(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        optimizer = torch.optim.SGD([x], lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            (x**3 / 3 - 2 * a * x).backward()
            optimizer.step()
        return x

    a = tensor(8.0, requires_grad=True)
    x = solve(tensor(3.0), a)
    assert x.item() == pytest.approx(4.0)
    assert a.grad is None
    assert torch.autograd.grad(x, a)[0].item() == pytest.approx(0.25)


def test_auxiliary_results() -> None:
    @custom_root(F, has_aux=True)
    def solve(init: Any, a: Any) -> Any:
        return (2 * a) ** 0.5, {'steps': torch.tensor(7), 'error': a * 0}

    a = tensor(8.0, requires_grad=True)
    x, aux = solve(None, a)
    assert int(aux['steps']) == 7 and not aux['error'].requires_grad
    assert torch.autograd.grad(x, a)[0].item() == pytest.approx(0.25)
    g, (_, inner) = torch.vmap(torch.func.grad_and_value(lambda a: solve(None, a), has_aux=True))(tensor([8.0, 2.0]))
    assert g.tolist() == pytest.approx([0.25, 0.5])
    assert inner['error'].tolist() == [0.0, 0.0]
    with pytest.raises(TypeError, match='has_aux=True'):
        custom_root(F, has_aux=True)(sqrt)(None, a)


def test_no_graph_where_none_is_wanted() -> None:
    solve = custom_root(F)(sqrt)
    assert not solve(None, tensor(8.0)).requires_grad
    with torch.no_grad():
        assert not solve(None, tensor(8.0, requires_grad=True)).requires_grad
    assert solve(None, tensor(8.0, requires_grad=True)).requires_grad


def test_only_arguments_that_need_gradients_are_differentiated() -> None:
    """What needs none may stand where no derivative exists."""

    class NoDerivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, b: torch.Tensor) -> torch.Tensor:
            return b.clone()

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> Any:
            raise AssertionError('differentiated')

    solve = custom_root(lambda x, a, b: x**2 - a * NoDerivative.apply(b))(sqrt)
    a = tensor(8.0, requires_grad=True)
    assert torch.autograd.grad(solve(None, a, tensor(2.0)), a)[0].item() == pytest.approx(0.25)


def test_second_order_and_forward_mode_of_autograd() -> None:
    solve = custom_root(F)(sqrt)
    a = tensor(8.0, requires_grad=True)
    (g,) = torch.autograd.grad(solve(None, a), a, create_graph=True)
    (h,) = torch.autograd.grad(g, a)
    assert h.item() == pytest.approx(-1 / 64)
    with forward_ad.dual_level():
        x = solve(None, forward_ad.make_dual(tensor(8.0), tensor(1.0)))
        assert forward_ad.unpack_dual(x).tangent.item() == pytest.approx(0.25)


@pytest.mark.parametrize('order', range(1, 5))
def test_derivatives_of_every_order(order: int) -> None:
    f = custom_root(F)(sqrt)
    derivative = partial(f, None)
    exact = lambda a: (2 * a) ** 0.5  # noqa: E731
    for _ in range(order):
        derivative, exact = torch.func.grad(derivative), torch.func.grad(exact)
    assert derivative(tensor(8.0)).item() == pytest.approx(exact(tensor(8.0)).item(), rel=1e-6)


def test_under_vmap() -> None:
    a = tensor([8.0, 2.0, 0.5])
    solve = custom_root(F)(sqrt)
    f = lambda a: solve(None, a)  # noqa: E731
    torch.testing.assert_close(torch.vmap(f)(a), (2 * a) ** 0.5)
    torch.testing.assert_close(torch.vmap(torch.func.grad(f))(a), (2 * a) ** -0.5)
    torch.testing.assert_close(torch.vmap(torch.func.jacfwd(f))(a), (2 * a) ** -0.5)
    torch.testing.assert_close(torch.func.jacrev(torch.vmap(f))(a), torch.diag((2 * a) ** -0.5))
    torch.testing.assert_close(torch.func.jacfwd(torch.vmap(f))(a), torch.diag((2 * a) ** -0.5))
    leaf = a.clone().requires_grad_()
    (g,) = torch.autograd.grad(torch.vmap(f)(leaf).sum(), leaf, create_graph=True)
    torch.testing.assert_close(g, (2 * a) ** -0.5)
    torch.testing.assert_close(torch.autograd.grad(g.sum(), leaf)[0], -((2 * a) ** -1.5))
    # a batch in data that need no gradient
    shared = torch.vmap(torch.func.grad(lambda a, b: solve(None, a, b)), (None, 0))(tensor(8.0), tensor([2.0, 0.5]))
    assert shared.tolist() == pytest.approx([0.25, 0.125])


def test_under_compilation_a_solve_is_one_graph_break() -> None:
    solve = custom_root(F)(sqrt)

    def loss(a: torch.Tensor) -> torch.Tensor:
        return (solve(None, 2 * a) * 3).sin()

    a = tensor(4.0, requires_grad=True)
    expected = torch.autograd.grad(loss(a), a)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend='eager')
    torch.testing.assert_close(torch.autograd.grad(compiled(a), a), expected)
    assert torch._dynamo.explain(loss)(a).graph_break_count == 1


def test_nothing_is_kept_alive() -> None:
    alive = []

    def once() -> torch.Tensor:
        solve = custom_root(F)(sqrt)
        a = tensor(8.0, requires_grad=True)
        alive.append(weakref.ref(a))
        x = solve(None, a)
        x.backward()
        return x.detach()

    gc.disable()
    try:
        for _ in range(3):
            once()
        assert [r() for r in alive] == [None] * 3
    finally:
        gc.enable()


def test_metadata_and_copies() -> None:
    def solver(init: Any, a: Any) -> Any:
        """Solve it."""
        return (2 * a) ** 0.5

    solve = custom_root(F)(solver)
    assert (solve.__name__, solve.__doc__) == ('solver', 'Solve it.')
    assert list(inspect.signature(solve).parameters) == ['init', 'a']
    assert copy.deepcopy(solve) is solve


A = tensor(8.0, requires_grad=True)


@pytest.mark.parametrize(
    ('optimality', 'solver', 'message'),
    [
        (lambda x, a: (x, x), lambda init, a: a.detach(), 'optimality_fun'),
        (lambda x, a: x[None] - a, lambda init, a: a.detach(), r'shape \(1,\)'),
        (lambda x, a: {'y': x['x'] - a}, lambda init, a: {'x': a.detach()}, r"\['x'\], this entry is missing"),
        (lambda x, a: x * float('nan') * a, lambda init, a: a.detach(), 'not finite'),
    ],
    ids=['structure', 'shape', 'entries', 'nan'],
)
def test_optimality_functions_that_do_not_fit(optimality: Any, solver: Any, message: str) -> None:
    x = custom_root(optimality, solve=solve_lu if message == 'not finite' else solve_normal_cg)(solver)(None, A)
    with pytest.raises((ValueError, torch.linalg.LinAlgError), match=message):
        torch.autograd.grad(x['x'] if isinstance(x, dict) else x, A)


def test_a_singular_jacobian() -> None:
    solve = lambda linear: custom_root(lambda x, a: 0 * x + a * torch.tensor([1.0, 0.0]), solve=linear)(  # noqa: E731
        lambda init, a: torch.zeros(2)
    )
    a = torch.tensor(1.0, requires_grad=True)
    with pytest.raises(torch.linalg.LinAlgError, match=r'singular.*not isolated'):
        torch.autograd.grad(solve(solve_lu)(None, a).sum(), a)
    with pytest.warns(LinearSolveWarning, match='singular'):
        torch.autograd.grad(solve(solve_cg())(None, a).sum(), a)


def test_arguments_that_need_gradients_but_cannot_have_them() -> None:
    net = torch.nn.Linear(1, 1)
    solve = custom_root(lambda x, net: net(x))(lambda init, net: torch.zeros(1))
    with pytest.raises(TypeError, match=r'Linear whose parameters require gradients.*functional_call'):
        solve(None, net)
    assert solve(None, net.requires_grad_(False)).shape == (1,)


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(TypeError, match='do not match the optimality function'):
        custom_root(lambda x, a: x - a)(lambda init, a, b: a)(None, tensor(1.0), tensor(2.0))
    with pytest.raises(TypeError):
        custom_root(F)(sqrt)()


def test_tangents_and_cotangents_that_do_not_fit() -> None:
    x, a = tensor(4.0), tensor(8.0)
    with pytest.raises(ValueError, match='1 args but 2 tangents'):
        root_jvp(F, x, (a,), (a, a))
    with pytest.raises(ValueError, match=r'tangent has shape \(2,\)'):
        root_jvp(F, x, (a,), (tensor([1.0, 2.0]),))
    with pytest.raises(ValueError, match='cotangent'):
        root_vjp(F, x, (a,), tensor([1.0]))


def test_root_vjp_of_what_cannot_be_differentiated() -> None:
    result = root_vjp(
        lambda x, a, n, name: x**n - a['a'],
        tensor(3.0),
        ({'a': tensor(9.0), 'i': torch.tensor(1)}, 2, 'x'),
        tensor(1.0),
    )
    assert result[0]['a'].item() == pytest.approx(1 / 6)
    assert result[0]['i'] is None and result[1:] == (None, None)
    assert not result[0]['a'].requires_grad


def test_root_jvp_with_arguments_that_stand_still() -> None:
    x, a, b = tensor(4.0), tensor(8.0), tensor(2.0)
    assert root_jvp(F, x, (a, b), (tensor(1.0), None)).item() == pytest.approx(0.25)
    assert root_jvp(F, x, (a, b), (None, None)).item() == 0.0
    assert (
        root_jvp(lambda x, d: F(x, d['a'], d['b']), x, ({'a': a, 'b': b},), ({'a': None, 'b': tensor(1.0)},)).item()
        == 1.0
    )


def test_numbers_as_arguments_have_derivatives() -> None:
    x, b = tensor(4.0), tensor(2.0)
    assert root_jvp(F, x, (8.0, b), (1.0, None)).item() == pytest.approx(0.25)
    assert root_jvp(F, x, (8, b), (tensor(1.0), 0.0)).item() == pytest.approx(0.25)
    found = root_vjp(F, x, (8.0, b), tensor(1.0))
    torch.testing.assert_close(found, root_vjp(F, x, (tensor(8.0), b), tensor(1.0)))
    with pytest.raises(TypeError, match='is a str and has a tangent'):
        root_jvp(lambda x, a, name: x * x - a, x, (tensor(16.0), 'name'), (None, 1.0))


def test_root_vjp_is_differentiable() -> None:
    a = tensor(8.0, requires_grad=True)
    (g,) = root_vjp(F, (2 * a) ** 0.5, (a,), tensor(1.0))
    assert torch.autograd.grad(g, a)[0].item() == pytest.approx(-1 / 64)
    again = torch.func.grad(lambda a: root_vjp(F, (2 * a) ** 0.5, (a,), tensor(1.0))[0])(tensor(8.0))
    assert again.item() == pytest.approx(-1 / 64)


def test_complex_roots() -> None:
    a = torch.tensor(1.0 + 2.0j, dtype=torch.complex128, requires_grad=True)
    solve = custom_root(lambda x, a: x**2 - a, solve=solve_lu)(lambda init, a: a**0.5)
    assert torch.autograd.gradcheck(lambda a: solve(None, a), (a,))
    # not holomorphic: linear over the real numbers only
    other = custom_root(lambda x, a: x + 0.3 * x.conj() - a, solve=solve_lu)(
        lambda init, a: torch.complex(a.real / 1.3, a.imag / 0.7)
    )
    assert torch.autograd.gradcheck(lambda a: other(None, a), (a,))


def test_optimality_functions_that_use_autograd_inside() -> None:
    def optimality(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad((x**3 / 3 - 2 * a * x).sum(), x, create_graph=True)[0]

    solve = custom_root(optimality)(lambda init, a: (2 * a) ** 0.5)
    a = tensor([8.0, 2.0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: solve(None, a), (a,))
    assert torch.autograd.gradgradcheck(lambda a: solve(None, a), (a,))


def test_float32_and_half_precision() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.tensor([8.0, 2.0], dtype=dtype, requires_grad=True)
        x = custom_root(F)(sqrt)(None, a)
        assert x.dtype == dtype
        (g,) = torch.autograd.grad(x.sum(), a)
        torch.testing.assert_close(g, torch.tensor([0.25, 0.5], dtype=dtype), rtol=1e-2, atol=1e-2)


def test_roots_inside_of_roots() -> None:
    inner = custom_root(lambda y, x: y**3 - x)(lambda init, x: x ** (1 / 3))
    outer = custom_root(lambda x, a: inner(None, x) * x - a)(lambda init, a: a**0.75)  # x^(4/3) = a
    a = tensor(5.0, requires_grad=True)
    f = lambda a: outer(None, a)  # noqa: E731
    assert torch.autograd.gradcheck(f, (a,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (a,))


def test_warnings_are_not_raised_without_cause() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        a = tensor([8.0, 2.0], requires_grad=True)
        torch.autograd.grad(custom_fixed_point(lambda x, a, b: 0.5 * (x + b * a / x))(sqrt)(None, a).sum(), a)
