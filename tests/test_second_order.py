# SPDX-License-Identifier: Apache-2.0
"""Hessian products and diagonals against Optax and against the dense Hessian of torch."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from torchopt import second_order, tree

rng = np.random.default_rng(0)
PARAMS = {'w': rng.standard_normal((3, 2)), 'b': rng.standard_normal(2), 'scale': np.array(0.7)}
INPUTS, TARGETS = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
SIZE = 9


def loss(library: Any) -> Any:
    def of(params: Any, inputs: Any, targets: Any) -> Any:
        hidden = library.tanh(inputs @ params['w'] + params['b'])
        return ((library.exp(params['scale'] * hidden) - targets) ** 2).mean()

    return of


def to_torch(value: Any, dtype: torch.dtype = torch.float64) -> Any:
    return tree.map(lambda x: torch.tensor(x, dtype=dtype), value)


V = rng.standard_normal(SIZE)
CALLS = {'hvp': (V,), 'hessian_diag': (), 'fisher_diag': ()}


def from_optax(name: str) -> Any:
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        given = jax.tree.map(jnp.asarray, (*CALLS[name], PARAMS, INPUTS, TARGETS))
        return jax.tree.map(np.asarray, getattr(optax.second_order, name)(loss(jnp), *given))


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
@pytest.mark.parametrize('name', CALLS)
def test_parity_with_optax(name: str, dtype: torch.dtype, tolerance: float) -> None:
    found = getattr(second_order, name)(loss(torch), *to_torch((*CALLS[name], PARAMS, INPUTS, TARGETS), dtype))
    expected = from_optax(name)
    assert tree.structure(found) == tree.structure(expected)
    for x, y in zip(tree.leaves(found), tree.leaves(expected)):
        assert x.dtype == dtype
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=10 * tolerance)


def dense() -> torch.Tensor:
    params = to_torch(PARAMS)
    leaves, spec = tree.flatten(params)

    def of(v: torch.Tensor) -> torch.Tensor:
        pieces = v.split([x.numel() for x in leaves])
        filled = tree.unflatten(spec, [p.reshape(x.shape) for p, x in zip(pieces, leaves)])
        return loss(torch)(filled, *to_torch((INPUTS, TARGETS)))

    return torch.func.jacrev(torch.func.jacrev(of))(torch.cat([x.reshape(-1) for x in leaves]))


def test_products_and_diagonal_are_those_of_the_dense_hessian() -> None:
    hessian, params = dense(), to_torch(PARAMS)
    data = to_torch((INPUTS, TARGETS))
    product = second_order.hvp(loss(torch), torch.tensor(V), params, *data)
    torch.testing.assert_close(torch.cat([x.reshape(-1) for x in tree.leaves(product)]), hessian @ torch.tensor(V))
    torch.testing.assert_close(second_order.hessian_diag(loss(torch), params, *data), hessian.diagonal())


@pytest.mark.parametrize('name', CALLS)
def test_vmap_gradient_and_compile(name: str) -> None:
    f = getattr(second_order, name)
    params, inputs, targets = to_torch((PARAMS, INPUTS, TARGETS))
    args = to_torch(CALLS[name])

    def on(inputs: torch.Tensor) -> Any:
        return tree.leaves(f(loss(torch), *args, params, inputs, targets))

    batch = torch.stack([inputs, 2 * inputs])
    found = torch.func.vmap(on)(batch)
    for i in range(2):
        for x, y in zip(found, on(batch[i])):
            torch.testing.assert_close(x[i], y)
    x = inputs.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(v.sum() for v in on(x)), x, fast_mode=True)
    compiled = torch.compile(on, fullgraph=True, backend='eager')
    for a, b in zip(compiled(inputs), on(inputs)):
        torch.testing.assert_close(a, b)


def test_operators_without_a_forward_derivative() -> None:
    class Square(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Any) -> Any:
            return x * x

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return 2 * ctx.saved_tensors[0] * g

    diagonal = second_order.hessian_diag(lambda p, x, y: Square.apply(p).sum(), torch.ones(3), None, None)
    assert diagonal.tolist() == [2.0, 2.0, 2.0]


def test_trees_with_none_one_tensor_and_nothing() -> None:
    params = {'frozen': None, 'w': torch.tensor([1.0, 2.0])}
    cube = lambda p, x, y: (p['w'] ** 3).sum()  # noqa: E731
    assert second_order.hvp(cube, torch.ones(2), params, None, None)['frozen'] is None
    assert second_order.hessian_diag(cube, params, None, None).tolist() == [6.0, 12.0]
    assert second_order.fisher_diag(lambda p, x, y: p**2, torch.tensor(3.0), None, None).tolist() == [36.0]
    assert second_order.hessian_diag(cube, {}, None, None).shape == (0,)
    assert second_order.fisher_diag(cube, {}, None, None).shape == (0,)


@pytest.mark.parametrize('name', second_order.__all__)
def test_signatures_are_those_of_optax(name: str) -> None:
    def plain(f: Any) -> list[Any]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    assert plain(getattr(second_order, name)) == plain(getattr(optax.second_order, name))


def test_errors_name_the_argument() -> None:
    square = lambda p, x, y: (p['w'] ** 2).sum()  # noqa: E731
    with pytest.raises(ValueError, match='v has 3 elements, but params has 2'):
        second_order.hvp(square, torch.ones(3), {'w': torch.ones(2)}, None, None)
    with pytest.raises(TypeError, match=r"params\['w'\] has dtype torch.int64; expected a floating"):
        second_order.hessian_diag(square, {'w': torch.ones(2, dtype=torch.int64)}, None, None)
