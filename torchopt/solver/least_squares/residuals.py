# SPDX-License-Identifier: Apache-2.0
"""The residuals of a least-squares problem, as a function from vectors to vectors, and its derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt.numerics import is_inexact
from torchopt.solver.objective import Vectors

__all__ = ['Residuals', 'half_sum_of_squares']


class Residuals:
    r"""The residuals :math:`r(x)` of one problem, with :math:`J = r'(x)`.

    Args:
        fun: ``fun(params, *args, **kwargs)`` returns a tree of tensors.
        has_aux: Whether it returns a pair, the residuals and auxiliary output.
        params: A tree like the parameters.
        args: The positional data.
        kwargs: The data by name.

    Example:
        >>> import torch
        >>> from torchopt.solver.least_squares.residuals import Residuals
        >>> residuals = Residuals(lambda w, y: w['a'] ** 2 - y, False, {'a': torch.ones(2)}, (torch.ones(2),), {})
        >>> x = residuals.vectors.pack({'a': torch.tensor([1.0, 2.0])})
        >>> residuals(x)
        (tensor([0., 3.]), None)
        >>> residuals.jacobian(x)
        tensor([[2., 0.],
                [0., 4.]])
    """

    def __init__(
        self, fun: Callable[..., Any], has_aux: bool, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.fun, self.has_aux, self.args, self.kwargs = fun, has_aux, args, kwargs
        self.vectors = Vectors(params)

    def __call__(self, x: Tensor) -> tuple[Tensor, Any]:
        """The residuals as a vector, and the auxiliary output."""
        found = self.fun(self.vectors.unpack(x), *self.args, **self.kwargs)
        residual, aux = split_aux(found, self.has_aux)
        return as_vector(residual), aux

    def residual(self, x: Tensor) -> Tensor:
        """The residuals alone."""
        return self(x)[0]

    def jacobian(self, x: Tensor) -> Tensor:
        """The Jacobian, one row for each residual, in forward mode if it is not wide."""
        rows = self.residual(x.detach()).numel()
        if rows >= x.numel():
            try:
                return torch.func.jacfwd(self.residual)(x)
            except (NotImplementedError, RuntimeError):  # an operation without a derivative in forward mode
                pass
        return torch.func.jacrev(self.residual)(x)

    def transposed(self, x: Tensor, z: Tensor) -> Tensor:
        r""":math:`J^\top z`."""
        return torch.func.vjp(self.residual, x)[1](z)[0]

    def gram(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        r"""The function :math:`v \mapsto J^\top J v`."""
        _, pull = torch.func.vjp(self.residual, x)

        def product(v: Tensor) -> Tensor:
            return pull(torch.func.jvp(self.residual, (x,), (v,))[1])[0]

        return product

    def curvature(self, x: Tensor, v: Tensor) -> Tensor:
        r"""The second derivative along a direction, :math:`\frac{d^2}{dt^2} r(x + t v)` at zero."""

        def slope(z: Tensor) -> Tensor:
            return torch.func.jvp(self.residual, (z,), (v,))[1]

        return torch.func.jvp(slope, (x,), (v,))[1]


def split_aux(found: Any, has_aux: bool) -> tuple[Any, Any]:
    """The residuals and the auxiliary output of what a function returned."""
    if not has_aux:
        return found, None
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(
            f'residual_fun returned a {type(found).__name__}; with has_aux=True expected (residuals, aux).'
        )
    return found[0], found[1]


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


def half_sum_of_squares(fun: Callable[..., Any], has_aux: bool) -> Callable[..., Tensor]:
    r"""The objective :math:`\frac12 \|r\|^2` of a residual function."""

    def objective(params: Any, *args: Any, **kwargs: Any) -> Tensor:
        residual = as_vector(split_aux(fun(params, *args, **kwargs), has_aux)[0])
        return 0.5 * residual.dot(residual)

    return objective
