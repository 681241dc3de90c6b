# SPDX-License-Identifier: Apache-2.0
"""``scipy.optimize.least_squares``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.solver.base import OptStep, SmoothSolver
from torchopt.solver.bounds import bounds_like
from torchopt.solver.least_squares.residuals import Residuals
from torchopt.solver.objective import Objective
from torchopt.solver.scipy.wrapper import (
    Bridge,
    ScipyWrapper,
    as_array,
    box_residual,
    into_box,
    load_optimize,
    required,
    with_limit,
)

_LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    'linear': lambda z: z,
    'soft_l1': lambda z: 2.0 * (torch.sqrt(1.0 + z) - 1.0),
    'huber': lambda z: torch.where(z <= 1.0, z, 2.0 * torch.sqrt(torch.where(z <= 1.0, 1.0, z)) - 1.0),
    'cauchy': torch.log1p,
    'arctan': torch.atan,
}
"""SciPy's losses, as functions of squared residuals."""


class ScipyLeastSquaresInfo(NamedTuple):
    """What SciPy reports of a least-squares problem.

    Attributes:
        cost_val: The value of the objective.
        fun_val: The residuals, a vector.
        success: Whether it converged.
        status: SciPy's number for how it ended.
        num_fun_eval: How many residuals were computed.
        num_jac_eval: How many Jacobians; None if the method does not say.
        error: The largest element of the gradient, projected to the box.
        message: How it ended, in words.
    """

    cost_val: Any
    fun_val: Any
    success: Any
    status: Any
    num_fun_eval: Any
    num_jac_eval: Any
    error: Any
    message: Any


@dataclasses.dataclass(eq=False)
class ScipyLeastSquares(SmoothSolver, ScipyWrapper):
    r"""``scipy.optimize.least_squares`` for trees, with implicit derivatives.

    .. math:: \min_x \tfrac12 \sum_i c^2\, \rho\big(r_i(x)^2 / c^2\big)

    Args:
        method: ``'trf'``, ``'dogbox'`` or ``'lm'``; ``'trf'`` if None.
        fun: ``fun(params, *args, **kwargs)`` returns the residuals :math:`r`, a tree.
        loss: :math:`\rho`: ``'linear'``, ``'soft_l1'``, ``'huber'``, ``'cauchy'`` or ``'arctan'``.
        options: More arguments of ``scipy.optimize.least_squares``: ``ftol``, ``xtol``, ``gtol``, ``x_scale`` (also a
            tree like the parameters), ``f_scale`` (:math:`c`), ``max_nfev`` and others.
        use_jacrev: Accepted for code written for JAXopt.
        maxiter: The largest number of evaluations, ``max_nfev``; SciPy's if None.

    Example:
        >>> import torch, torchopt
        >>> t = torch.linspace(0, 1, 5)
        >>> solver = torchopt.ScipyLeastSquares(fun=lambda w, y: w[0] * torch.exp(-w[1] * t) - y)
        >>> solver.run(torch.ones(2), 2.0 * torch.exp(-3.0 * t)).params
        tensor([2., 3.])
    """

    fun: Callable[..., Any] | None = None
    loss: str = 'linear'
    options: dict[str, Any] | None = None
    use_jacrev: bool = True
    _: dataclasses.KW_ONLY
    maxiter: int | None = None  # type: ignore[assignment]

    problem_function = 'fun'

    def __post_init__(self) -> None:
        """Check the options."""
        self._fun = required('fun', self.fun)
        if self.loss not in _LOSSES:
            raise ValueError(f'Invalid loss: {self.loss!r}; expected one of {tuple(_LOSSES)}.')
        self._options = with_limit(self.options, 'max_nfev', self.maxiter)
        self._objective = Objective(self._cost)

    def _cost(self, params: Any, *args: Any, **kwargs: Any) -> Tensor:
        residuals = Residuals(self._fun, self.has_aux, params, args, kwargs)
        r, scale = residuals.residual(residuals.vectors.pack(params)), self._options.get('f_scale', 1.0)
        return 0.5 * scale**2 * _LOSSES[self.loss]((r / scale).square()).sum()

    def _solve(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        return self._fit(init_params, None, args, kwargs)

    def _fit(self, init_params: Any, bounds: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OptStep:
        bridge = Bridge(init_params, self.dtype)
        residuals = Residuals(self._fun, self.has_aux, init_params, args, kwargs)
        options = dict(self._options)
        if not isinstance(options.get('x_scale', 1.0), (str, int, float)):
            options['x_scale'] = bridge.array(options['x_scale'], 'x_scale')
        lower, upper = (None, None) if bounds is None else bounds_like(bounds, init_params)
        if lower is not None:
            options['bounds'] = bridge.array(lower), bridge.array(upper)
        found = load_optimize().least_squares(
            lambda x: as_array(residuals.residual(bridge.vector(x)), self.dtype),
            bridge.array(init_params),
            jac=lambda x: as_array(residuals.jacobian(bridge.vector(x)), self.dtype),
            method=self.method or 'trf',
            loss=self.loss,
            **options,
        )
        params = bridge.tree(found.x)
        if lower is not None:
            params = into_box(params, lower, upper)
        info = ScipyLeastSquaresInfo(
            torch.as_tensor(found.cost),
            torch.as_tensor(found.fun),
            bool(found.success),
            int(found.status),
            int(found.nfev),
            None if found.njev is None else int(found.njev),
            torch.as_tensor(found.optimality),
            str(found.message),
        )
        return OptStep(params, info)


@dataclasses.dataclass(eq=False)
class ScipyBoundedLeastSquares(ScipyLeastSquares):
    r"""``scipy.optimize.least_squares`` in a box, :math:`l \le x \le u`, for trees, with implicit derivatives.

    ``run(init_params, bounds, *args, **kwargs)`` takes the pair :math:`(l, u)` of trees like the parameters, or
    numbers.  The arguments are those of :class:`ScipyLeastSquares`; the methods with bounds are
    ``'trf'`` and ``'dogbox'``.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.ScipyBoundedLeastSquares(fun=lambda x, a: x - a)
        >>> solver.run(torch.tensor([0.5, 0.5]), (0.0, 1.0), torch.tensor([0.3, 2.0])).params
        tensor([0.3000, 1.0000])
    """

    second_argument = 'bounds'

    def optimality_fun(self, params: Any, bounds: Any, *args: Any, **kwargs: Any) -> Any:
        """What a projected gradient step changes."""
        return box_residual(params, self._objective.gradient(params, *args, **kwargs), bounds)

    def _solve(self, init_params: Any, bounds: Any = None, *args: Any, **kwargs: Any) -> OptStep:
        return self._fit(init_params, (None, None) if bounds is None else bounds, args, kwargs)
