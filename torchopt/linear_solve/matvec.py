# SPDX-License-Identifier: Apache-2.0
"""Convert a user's matvec to an operator: the tensors that it closes over become explicit.

If it depends on tensors in a way that cannot be detected (see :mod:`torchopt.autodiff.closure`), such as a graph that
was recorded earlier, the matrix keeps this graph, which supports first derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.autodiff.closure import Converted, closure_convert
from torchopt.autodiff.tape import Leaves
from torchopt.levels import apply_function, in_transform
from torchopt.linear_solve.derivative import Method, solve_system
from torchopt.linear_solve.operators import Adjoint, Closure, Operator
from torchopt.linear_solve.status import SolveStatus

__all__ = ['Found', 'attach_graph', 'close_over']

Fun = Callable[[Leaves], Leaves]


class Found(NamedTuple):
    """The tensors that a function depends on.

    Attributes:
        closure: The map.
        captured: The tensors that it depends on.
        is_complete: Whether these are all of them; False if the function depends on a graph recorded earlier.
        product: The product with the leaves of the trial run, if it is known.
    """

    closure: Closure
    captured: list[Tensor]
    is_complete: bool = True
    product: list[Tensor] | None = None


def close_over(fun: Fun, like: Leaves, domain: Leaves | None = None) -> Found:
    """Find the tensors that a linear function depends on.

    Args:
        fun: A function of lists of leaves.
        like: Leaves for the trial run.
        domain: Leaves like its argument, if the map is not square.
    """
    transformed = in_transform()
    # Under transforms the vector must not be mapped over, since batch dimensions may move; any other one will do.
    found = closure_convert(fun, [_some_vector(x) if transformed else x.detach() for x in like])
    closure = Closure(Converted(fun, found.captured), domain)
    product = None if transformed or found.value is None else [y.detach() for y in found.value]
    return Found(closure, found.captured, found.is_complete, product)


def _some_vector(like: Tensor) -> Tensor:
    """A vector that is neither zero nor constant, since many matrices map those to zero."""
    return torch.arange(1, like.numel() + 1, device=like.device).sin().reshape(like.shape).to(like.dtype)


def attach_graph(method: Method, fun: Fun, b: Leaves, domain: Leaves | None) -> tuple[list[Tensor], SolveStatus]:
    r"""Solve with a matrix whose graph was recorded earlier.

    The derivative is that of :mod:`torchopt.linear_solve.derivative`, with the product :math:`A(\theta)\, x` and its
    graph in place of :math:`\theta`.  This product is linear in a constant :math:`x`, so a second derivative would
    be wrong; therefore it raises an error.
    """
    if in_transform():
        raise RuntimeError(
            f'{method.name}: under torch.func transforms the matvec may not depend on tensors through '
            'torch.autograd.grad, '
            'torch.func.vjp(f, x) of a tensor x from outside, or a torch.autograd.Function, since these cannot be '
            'detected. Use '
            f'operations of torch in it, or implicit_diff.root_vjp, or detach the tensors.'
        )
    operator = Closure(Converted(fun, []), domain)
    with torch.no_grad():
        x, status = solve_system(method, operator, (), b)
    y = fun(x)
    return list(apply_function(_Attach, method, operator, len(x), *x, *b, *y)), status


class _Attach(torch.autograd.Function):
    """``apply(method, operator, n, *x, *b, *A_x) -> x``, where ``x`` is the solution already."""

    @staticmethod
    def forward(ctx: Any, method: Method, operator: Operator, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.method, ctx.operator, ctx.n = method, operator, n
        ctx.save_for_backward(*tensors[n:])
        return tuple(x.clone() for x in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *x_bar: Tensor) -> tuple[Any, ...]:
        operator = ctx.operator if ctx.method.symmetric else Adjoint(ctx.operator)
        with torch.no_grad():
            u, _ = solve_system(ctx.method, operator, (), x_bar)
        if torch.is_grad_enabled():
            # The saved tensors are inputs too, so that a second derivative with respect to them raises instead of
            # being zero.
            u = list(apply_function(_Once, ctx.method.name, ctx.n, *u, *ctx.saved_tensors))
        return None, None, None, *[None] * ctx.n, *u, *(-g for g in u)


class _Once(torch.autograd.Function):
    """``apply(name, n, *u, *rest) -> u``; its derivative raises an error."""

    @staticmethod
    def forward(ctx: Any, name: str, n: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(x.clone() for x in tensors[:n])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        raise RuntimeError(
            f'{ctx.name}: second derivatives require a matvec whose dependence on tensors can be detected. This one '
            'uses a graph that was recorded before, through torch.autograd.grad or torch.func.vjp. Compute the product '
            f'inside the matvec, with torch.func.jvp of a function of the tensors, or use implicit_diff.root_vjp.'
        )
