# SPDX-License-Identifier: Apache-2.0
r"""A function of trees along a ray, :math:`\varphi(\eta) = f(w + \eta\, u)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import tree
from torchopt.autodiff.products import gradients_of
from torchopt.dtypes import is_inexact
from torchopt.kinds import kind_of
from torchopt.numerics import as_scalar_like
from torchopt.scalars import numbers, pick, settled, where


class Point(NamedTuple):
    r"""The known values of :math:`\varphi(\eta) = f(w + \eta\, u)` at one step size.

    Attributes:
        stepsize: :math:`\eta`.
        value: :math:`\varphi(\eta)`.
        slope: :math:`\varphi'(\eta) = \operatorname{Re} \langle \nabla f(w + \eta\, u), u \rangle`.
        extra: Other results, a tree of tensors, such as the gradient of :math:`f` or auxiliary output.

    Numbers are floats or 0-d tensors; see :mod:`torchopt.scalars`.

    Example:
        >>> from torchopt.linesearch import Point
        >>> Point(0.5, 1.0, -2.0, None).slope
        -2.0
    """

    stepsize: Any
    value: Any
    slope: Any
    extra: Any


def choose(test: Any, x: Point, y: Point) -> Point:
    """One of two points, by a bool or a 0-d tensor.

    Example:
        >>> from torchopt.linesearch import Point, choose
        >>> choose(True, Point(0.5, 1.0, -2.0, None), Point(0.0, 2.0, -2.0, None)).stepsize
        0.5
    """
    test = settled(test)
    if test is True or test is False:
        return x if test else y
    stepsize, value, slope = (where(test, a, b) for a, b in zip(x[:3], y))
    return Point(stepsize, value, slope, pick(test, x.extra, y.extra))


Ray = Callable[[Any], Point]
"""``ray(stepsize)`` evaluates a function at one point of a ray."""


def along(value_and_grad: Callable[[Any], tuple[Any, Any]], params: Any, direction: Any) -> Ray:
    """Restrict a function of trees to a ray.

    Args:
        value_and_grad: ``value_and_grad(params)`` returns the value and the gradient of the function, the latter a
            tree like ``params``.
        params: The starting point of the ray.
        direction: The direction of the ray, a tree like ``params``; parameters with a direction of None are constant.

    Returns:
        The function of the step size; ``extra`` of its points is the gradient.

    Example:
        >>> import torch
        >>> from torchopt.linesearch import along
        >>> ray = along(lambda p: (p[0] ** 2, [2 * p[0]]), [torch.tensor(3.0)], [torch.tensor(-1.0)])
        >>> ray(1.0)
        Point(stepsize=1.0, value=4.0, slope=-4.0, extra=[tensor(4.)])
    """

    def at(stepsize: Any) -> Point:
        value, grad = value_and_grad(move_along(params, stepsize, direction))
        value, slope = numbers(value, inner_product(grad, direction))
        return Point(stepsize, value, slope, grad)

    return at


def move_along(params: Any, stepsize: Any, direction: Any) -> Any:
    r"""The tree :math:`w + \eta\, u`, in the dtypes of the parameters; a direction of None keeps a parameter unchanged.

    Example:
        >>> import torch
        >>> from torchopt.linesearch import move_along
        >>> move_along([torch.tensor(3.0), torch.tensor(1.0)], 0.5, [torch.tensor(-1.0), None])
        [tensor(2.5000), tensor(1.)]
    """
    return tree.map(
        lambda p, u: p if u is None else (p + as_scalar_like(stepsize, u) * u).to(p.dtype), params, direction
    )


def inner_product(x: Any, y: Any) -> Tensor:
    r"""The real inner product :math:`\operatorname{Re} \sum_i \bar x_i y_i` of two trees, in double precision.

    Leaves that are None in one of them are ignored.

    Args:
        x: A tree of tensors.
        y: A tree of the same structure.

    Returns:
        A 0-d tensor.

    Raises:
        ValueError: If structures or shapes differ.

    Example:
        >>> import torch
        >>> from torchopt.linesearch import inner_product
        >>> inner_product([torch.tensor([1.0, 2.0]), None], [torch.tensor([3.0, 4.0]), torch.ones(1)])
        tensor(11., dtype=torch.float64)
    """
    first, spec = tree.flatten(x)
    second = tree.flatten_up_to(spec, y, name='direction', like='gradient')
    present = [i for i, (a, b) in enumerate(zip(first, second)) if a is not None and b is not None]
    first, second = ([_wide(column[i]) for i in present] for column in (first, second))
    if len(present) == 1 and first[0].shape == second[0].shape and first[0].dtype is second[0].dtype:
        return torch.vdot(first[0].reshape(-1), second[0].reshape(-1)).real
    return torch.as_tensor(tree.vdot(first, second)).real


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype is torch.float64 else x.to(torch.complex128 if x.is_complex() else torch.float64)


def value_and_gradient(
    fun: Callable[[Any], Any], params: Any, *, differentiable: bool = True, name: str = 'value_fn'
) -> tuple[Tensor, Any]:
    r"""The value and the gradient of a scalar function of a tree.

    For complex parameters, the gradient follows PyTorch's convention, the direction of steepest ascent, which is the
    conjugate of JAX's.

    Args:
        fun: ``fun(params)`` returns a real tensor of one element.
        params: A tree; the gradient is with respect to its tensors of floating and complex dtypes.
        differentiable: Whether value and gradient are differentiable, and computed by ``torch.func``.  If not, they are
            computed by autograd, which supports more functions.
        name: The name of the function in error messages.

    Returns:
        The value, 0-d, and the gradient, a tree like ``params`` with None for leaves without a gradient.

    Raises:
        ValueError: If the value has more than one element.
        TypeError: If the value is not a tensor of a floating dtype.

    Example:
        >>> import torch
        >>> from torchopt.linesearch import value_and_gradient
        >>> value_and_gradient(lambda p: p['w'] ** 2, {'w': torch.tensor(3.0)}, differentiable=False)
        (tensor(9.), {'w': tensor(6.)})
    """
    chosen = tree.Selection(params, is_inexact)

    def of_tensors(xs: tuple[Tensor, ...]) -> Tensor:
        return _scalar(fun(chosen.replace(xs)), name)

    inputs = tuple(chosen.selected)
    grads: tuple[Tensor, ...]
    if not inputs:
        value, grads = of_tensors(inputs), ()
    elif differentiable or torch.is_inference_mode_enabled():  # where autograd records nothing
        grads, value = torch.func.grad_and_value(of_tensors)(inputs)
    else:
        with torch.enable_grad():
            inputs = tuple(x.detach().requires_grad_() for x in inputs)
            value = of_tensors(inputs)
        found: Sequence[Tensor | None] = [None] * len(inputs)
        if value.requires_grad:
            found = gradients_of((value,), (torch.ones_like(value),), inputs, retain_graph=False, create_graph=False)
        grads = tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs))
        value, grads = value.detach(), tuple(g.detach() for g in grads)
    return value, chosen.alone(grads)


def _scalar(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = value.dtype if isinstance(value, Tensor) else kind_of(value)
        raise TypeError(f'{name} returned {what}; expected a real tensor of one element. Return the loss alone.')
    if value.numel() != 1:
        raise ValueError(
            f'{name} returned a tensor of shape {tuple(value.shape)}; expected one element. Return its mean or its sum.'
        )
    return value if value.dim() == 0 else value.reshape(())
