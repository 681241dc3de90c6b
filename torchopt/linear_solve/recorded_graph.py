# SPDX-License-Identifier: Apache-2.0
"""A matrix whose dependence on tensors cannot be made explicit, since its graph was recorded earlier.

:mod:`torchopt.autodiff.closure` detects such functions.  The matrix keeps its graph, which supports first derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt.autodiff.closure import Converted
from torchopt.autodiff.tape import Leaves, Product
from torchopt.levels import apply_function, in_transform
from torchopt.linear_solve.derivative import Method, solve_system
from torchopt.linear_solve.operators import Adjoint, Closure, Operator
from torchopt.linear_solve.status import SolveStatus

__all__ = ['attach_graph']


def attach_graph(method: Method, fun: Product, b: Leaves) -> tuple[list[Tensor], SolveStatus]:
    r"""Solve with a matrix whose graph was recorded earlier.

    The derivative is that of :mod:`torchopt.linear_solve.derivative`, with the product :math:`A(\theta)\, x` and its
    graph in place of :math:`\theta`.  This product is linear in a constant :math:`x`, so a second derivative would
    be wrong; therefore it raises an error.
    """
    if in_transform():
        raise RuntimeError(
            f'{method.name}: under torch.func transforms the matvec may not depend on tensors through '
            'torch.autograd.grad, torch.func.vjp(f, x) of a tensor x from outside, or a torch.autograd.Function, '
            'since these cannot be detected. Use operations of torch in it, or implicit_diff.root_vjp, or detach the '
            'tensors.'
        )
    operator = Closure(Converted(fun, []))
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
