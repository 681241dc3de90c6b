# SPDX-License-Identifier: Apache-2.0
"""Recorded graphs that run without a compiler have the values of the functions, and results that may be written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

import torchopt
from tests.loop.test_scan_compile import INIT, INNER, XS, W
from tests.oracle import assert_trees_close
from torchopt._C.dispatch import recording
from torchopt.autodiff.replay import replay
from torchopt.autodiff.simplify import simplify
from torchopt.loop import scan

DOUBLE = torch.float64


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) / 2


A, B, ROW = data(3, 3), data(3, 3, seed=1), data(3, seed=2)

FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    'transposes': lambda a, b, v: ((a.t() @ b).t().t() + b.t().t(), a.t() + b.t()),
    'a sum that is used as it is': lambda a, b, v: (a.t() + b.t()).t() @ a,
    'views of the same shape': lambda a, b, v: (a.view(3, 3).expand(3, 3).sin(), v.detach() * 2),
    'zeros and ones': lambda a, b, v: (a.sin() + torch.zeros_like(a), torch.ones_like(b) + a, a + torch.zeros_like(a)),
    'constants': lambda a, b, v: (torch.ones(3).cos(), torch.arange(3) * 2, a),
    'a sum with a product': lambda a, b, v: a.sin() + a @ b,
    'products that are added': lambda a, b, v: a @ b + b @ a + a @ a,
    'a product that is used twice': lambda a, b, v: ((y := a @ b) + a, y.sin()),
    'a sum of a product with itself': lambda a, b, v: (y := a.sin() @ b) + y,
    'its own factor': lambda a, b, v: (y := a.sin()) + y @ b,
    'a row and a product': lambda a, b, v: v.view(1, 3).expand(3, 3) + a @ b,
    'a column and a product': lambda a, b, v: v.view(3, 1).expand(3, 3) + a @ b,
    'a layer': lambda a, b, v: torch.addmm(v, a, b.t()) + a @ b.t(),
    'numbers with a product': lambda a, b, v: torch.add(a, a @ b, alpha=2) + torch.addmm(a, a, b, beta=2, alpha=3),
    'integers and a product': lambda a, b, v: torch.arange(3) + a @ b,
    'sums': lambda a, b, v: (a.sum(0, True).view(3), a.sum(1, True).view(1, 3), a.sum(0, True) + v, a.sum().view(1)),
    'equal operations': lambda a, b, v: (a.sin() + 1, a.sin() + 1.0, a.sin() + True),
    'several results': lambda a, b, v: torch.sort(a)[1].sum() + torch.sort(a)[0],
    'strides': lambda a, b, v: (a.t() + b.t() + torch.zeros_like(a)).as_strided((2, 2), (1, 3)),
    'complex numbers': lambda a, b, v: torch.view_as_complex((a @ b[:, :2] + a[:, :2]).contiguous()).abs(),
    'an argument': lambda a, b, v: (a, a.t(), a.detach(), v * 1),
}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_values(name: str) -> None:
    found, expected, *_ = _both(FUNCTIONS[name])
    assert_trees_close(found, expected, 1e-12)
    assert [x.dtype for x in found] == [x.dtype for x in expected]


@pytest.mark.parametrize('name', FUNCTIONS)
def test_results_share_memory_as_in_the_graph(name: str) -> None:
    found, expected, run, arguments = _both(FUNCTIONS[name])
    before = [x.clone() for x in arguments]

    def shared(values: list[Tensor]) -> list[list[bool]]:
        storages = [x.untyped_storage()._cdata for x in [*values, *arguments]]
        return [[x == y for y in storages] for x in storages[: len(values)]]

    assert shared(found) == shared(expected)
    for x in found:
        if all(x.untyped_storage()._cdata != y.untyped_storage()._cdata for y in arguments):
            x.zero_()
    assert_trees_close(arguments, before, 0.0)
    assert_trees_close(run(*arguments), expected, 1e-12)


def _both(fun: Callable[..., Any]) -> Any:
    def flat(*x: Tensor) -> list[Tensor]:
        y = fun(*x)
        return list(y) if isinstance(y, tuple) else [y]

    arguments = [A.clone(), B.clone(), ROW.clone()]
    graph = make_fx(flat, tracing_mode='fake')(*arguments)
    run = replay(graph)
    with torch.no_grad():
        return run(*arguments), graph(*arguments), run, arguments


def _count(graph: torch.fx.Graph, target: Any) -> int:
    return len(graph.find_nodes(op='call_function', target=target))


def test_transforms_of_updates() -> None:
    def derivatives(**options: Any) -> Any:
        def f(w: Tensor, theta: Tensor) -> Tensor:
            return INNER['adam'](w, theta, XS, **options)

        weights, rates = torch.stack([W, -W]), torch.stack([INIT, -INIT])
        return (
            torch.vmap(torch.func.grad(f, argnums=(0, 1)))(weights, rates),
            torch.func.jvp(f, (W, INIT), (W.cos(), INIT)),
        )

    assert_trees_close(derivatives(compile='graph'), derivatives(), 1e-12)


def test_an_update_is_one_operation() -> None:
    """Its vector-Jacobian product is one, too."""
    graphs: list[torch.fx.GraphModule] = []

    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = transform.update(torchopt.grad(lambda p: (p['a'] @ p['b']).square().sum())(params), state)
        return (torchopt.apply_updates(params, updates), state), None

    transform = torchopt.adam(0.1, eps_root=1e-8)
    params = {'a': A.clone().requires_grad_(), 'b': B.clone().requires_grad_()}

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    with recording():
        (last, _), _ = scan(step, (params, transform.init(params)), length=2, compile=backend)
        torch.autograd.grad(last['a'].sum(), params['a'])
    assert [_count(g.graph, torch.ops.torchopt.kernel.default) for g in graphs] == [2, 2]  # Adam, and the sum
    simple = [_count(simplify(g.graph)[0], torch.ops.torchopt.kernel.default) for g in graphs]
    assert simple == [2, 1]  # the cotangent of an update is that of the sum
    assert not any('sqrt' in str(n.target) for g in graphs for n in g.graph.nodes)


def test_a_sum_that_is_kept_is_computed_once() -> None:
    """The forward graph computes the gradient of a bias, and the backward graph needs it."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def step(b: Tensor, _: None) -> Any:
        slope = torchopt.grad(lambda b: torch.nn.functional.linear(A, B, b).square().sum())(b)
        return b - slope.square(), None

    def gradient(**options: Any) -> Any:
        b = ROW.clone().requires_grad_()
        return torch.autograd.grad(scan(step, b, length=2, **options)[0].sum(), b)

    assert_trees_close(gradient(compile=backend), gradient(), 1e-12)
    assert _count(simplify(graphs[0].graph)[0], torch.ops.aten.sum.dim_IntList) == 1


@pytest.mark.parametrize('of_params', [torch.float32, DOUBLE])
@pytest.mark.parametrize('of_updates', [torch.float32, DOUBLE])
def test_cotangents_of_updates_have_their_dtype(of_params: torch.dtype, of_updates: torch.dtype) -> None:
    def gradients(**options: Any) -> Any:
        x, u = A.to(of_params).requires_grad_(), B.to(of_updates).requires_grad_()
        last, _ = scan(lambda x, _: (torchopt.apply_updates(x, u.sin()), None), x, length=2, **options)
        return torch.autograd.grad(last.square().sum(), (x, u))

    found, expected = gradients(compile='graph'), gradients()
    assert_trees_close(found, expected, 1e-6)
    assert [g.dtype for g in found] == [of_params, of_updates]
