# SPDX-License-Identifier: Apache-2.0
"""The residuals of a least-squares problem, as a function from vectors to vectors, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import checks
from torchopt.autodiff.closure import is_recording
from torchopt.autodiff.products import jvp, map_product, pullback, vjp
from torchopt.dtypes import is_inexact
from torchopt.solver.arguments import split_aux
from torchopt.solver.base import IterativeSolver, SmoothSolver
from torchopt.solver.objective import Objective, Vectors


class Residuals:
    """The residuals :math:`r(x)` of one problem, with :math:`J = r'(x)`.

    Args:
        fun: ``fun(params, *args, **kwargs)`` returns a tree of tensors.
        has_aux: Whether it returns a pair, the residuals and auxiliary output.
        params: A tree like the parameters.
        args: The positional data.
        kwargs: The data by name.
    """

    def __init__(
        self, fun: Callable[..., Any], has_aux: bool, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.fun, self.has_aux, self.args, self.kwargs = fun, has_aux, args, kwargs
        self.vectors = Vectors(params)

    def __call__(self, x: Tensor) -> tuple[Tensor, Any]:
        """The residuals as a vector, and the auxiliary output."""
        found = self.fun(self.vectors.unpack(x), *self.args, **self.kwargs)
        residual, aux = split_aux(found, self.has_aux, 'residual_fun')
        return as_vector(residual), aux

    def residual(self, x: Tensor) -> Tensor:
        """The residuals alone."""
        return self(x)[0]

    def jacobian(self, x: Tensor) -> Tensor:
        """The Jacobian, one row for each residual."""
        return jacobian(self.residual, x)

    def transposed(self, x: Tensor, z: Tensor) -> Tensor:
        r""":math:`J^\top z`."""
        return _vjp(self.residual, x, z)

    def gram(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        r"""The function :math:`v \mapsto J^\top J v`."""
        if is_recording():  # where a linear solver cannot see what a pullback depends on
            jac = self.jacobian(x)
            return lambda v: jac.mT @ (jac @ v)
        return lambda v: self.transposed(x, _jvp(self.residual, x, v))

    def curvature(self, x: Tensor, v: Tensor) -> Tensor:
        r"""The second derivative along a direction, :math:`\frac{d^2}{dt^2} r(x + t v)` at zero."""

        def slope(t: Tensor) -> Tensor:
            return _jvp(lambda s: self.residual(x + s * v), t, torch.ones_like(t))

        zero = x.new_zeros(())
        return _jvp(slope, zero, torch.ones_like(zero))


def _is_functional() -> bool:
    """Whether derivatives are taken by ``torch.func``, which leaves no graph but that of what is outside.

    Where nothing is recorded, autograd is faster.
    """
    return is_recording() or torch.is_inference_mode_enabled()


def _vjp(fun: Callable[[Tensor], Tensor], x: Tensor, z: Tensor) -> Tensor:
    if _is_functional():
        return torch.func.vjp(fun, x)[1](z)[0]
    return vjp(lambda y: [fun(y)], [x], [z])[0]


def _jvp(fun: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The transpose of the pullback, since in forward mode torch lacks some operations and is slow for others."""
    if _is_functional():
        value, pull = torch.func.vjp(fun, x)[:2]
        return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(value))[1](v)[0]
    return jvp(lambda y: [fun(y)], [x], [v])[0]


def jacobian(fun: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The Jacobian of a function from vectors to vectors, from as many products as it has rows or columns."""
    if _is_functional():
        value, pull = torch.func.vjp(fun, x)[:2]
        if value.numel() < x.numel():
            return torch.vmap(lambda u: pull(u)[0])(_eye(value))
        push = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(value))[1]
        return torch.vmap(lambda v: push(v)[0])(_eye(x)).mT
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = fun(point)
        if value.numel() < x.numel():
            return map_product(pullback([value], [point]))([_eye(value)])[0].detach()
        u = torch.zeros_like(value).requires_grad_()
        pulled = pullback([value], [point])([u])
    with torch.no_grad():
        return map_product(pullback(pulled, [u]))([_eye(x)])[0].mT


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.numel(), dtype=x.dtype, device=x.device)


def as_vector(residual: Any) -> Tensor:
    """A tree of residuals as one real vector."""
    if not is_inexact(residual):
        leaves = [x for x in Vectors(residual).leaves if x is not None]
        if not leaves or not all(is_inexact(x) for x in leaves):
            kind = f'a tensor of dtype {residual.dtype}' if isinstance(residual, Tensor) else type(residual).__name__
            raise TypeError(
                f'residual_fun returned {kind}; expected tensors of floating dtypes. Pass has_aux=True if it returns '
                f'more than residuals.'
            )
    return Vectors(residual).pack(residual, 'the residuals')


class LeastSquaresSolver(SmoothSolver, IterativeSolver):
    """What solvers of least-squares problems share: the residuals, and the condition of optimality."""

    residual_fun: Callable[..., Any]
    has_aux: bool

    problem_function = 'residual_fun'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        checks.function('residual_fun', self.residual_fun)
        self._objective = Objective(half_sum_of_squares(self.residual_fun, self.has_aux))

    def residuals_like(self, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Residuals:
        """The residuals as a function of vectors."""
        return Residuals(self.residual_fun, self.has_aux, params, args, kwargs)


def half_sum_of_squares(fun: Callable[..., Any], has_aux: bool) -> Callable[..., Tensor]:
    r"""The objective :math:`\frac12 \|r\|^2` of a residual function."""

    def objective(params: Any, *args: Any, **kwargs: Any) -> Tensor:
        residual = as_vector(split_aux(fun(params, *args, **kwargs), has_aux, 'residual_fun')[0])
        return 0.5 * residual.dot(residual)

    return objective
