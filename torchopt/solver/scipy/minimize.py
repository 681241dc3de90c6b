# SPDX-License-Identifier: Apache-2.0
"""``scipy.optimize.minimize``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from torchopt.autodiff.products import jvp
from torchopt.solver.base import OptStep, SmoothSolver
from torchopt.solver.bounds import bounds_like
from torchopt.solver.least_squares.residuals import jacobian
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

_WITHOUT_GRADIENT = frozenset({'nelder-mead', 'powell', 'cobyla', 'cobyqa'})
_WITH_HESSIAN = frozenset({'dogleg', 'trust-exact'})
_WITH_HESSIAN_PRODUCT = frozenset({'newton-cg', 'trust-ncg', 'trust-krylov', 'trust-constr'})


class ScipyMinimizeInfo(NamedTuple):
    """What SciPy reports of a minimization.

    Attributes:
        fun_val: The value of the objective.
        success: Whether it converged.
        status: SciPy's number for how it ended.
        iter_num: The number of iterations.
        hess_inv: The approximate inverse of the Hessian, if the method has one.
        num_fun_eval: How many values were computed.
        num_jac_eval: How many gradients.
        num_hess_eval: How many Hessians.
        message: How it ended, in words.
    """

    fun_val: Any
    success: Any
    status: Any
    iter_num: Any
    hess_inv: Any
    num_fun_eval: Any
    num_jac_eval: Any
    num_hess_eval: Any
    message: Any


@dataclasses.dataclass(eq=False)
class ScipyMinimize(SmoothSolver, ScipyWrapper):
    r"""``scipy.optimize.minimize`` without constraints, :math:`\min_x f(x)`, for trees, with implicit derivatives.

    Gradients come from automatic differentiation, and so do Hessians, or products with them, for the methods that need
    them.

    Args:
        method: The name of SciPy's method, such as ``'BFGS'``, ``'L-BFGS-B'``, ``'CG'``, ``'Newton-CG'``,
            ``'trust-exact'``, ``'Nelder-Mead'``; SciPy's choice if None.
        fun: ``fun(params, *args, **kwargs)`` returns the value, a 0-d tensor.
        callback: ``callback(params)``, called after each iteration.
        tol: SciPy's tolerance.
        options: SciPy's options of the method.
        maxiter: The largest number of iterations.
        value_and_grad: Whether ``fun`` returns the value and the gradient; or a function that does.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.ScipyMinimize(fun=lambda x, a: ((x - a) ** 2).sum(), method='BFGS')
        >>> a = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> params, info = solver.run(torch.zeros(2), a)
        >>> params.detach(), torch.autograd.grad(params.sum(), a)
        (tensor([1., 2.]), (tensor([1., 1.]),))
    """

    fun: Callable[..., Any] | None = None
    callback: Callable[..., Any] | None = None
    tol: Any = None
    options: dict[str, Any] | None = None
    maxiter: int = 500
    value_and_grad: bool | Callable[..., Any] = False

    problem_function = 'fun'

    def __post_init__(self) -> None:
        """Check the options."""
        self._objective = Objective(required('fun', self.fun), self.value_and_grad, self.has_aux)
        name = (self.method or '').lower()
        self._options = with_limit(self.options, 'maxfun' if name == 'tnc' else 'maxiter', self.maxiter)

    def _solve(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        return self._minimize(init_params, None, args, kwargs)

    def _minimize(self, init_params: Any, bounds: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> OptStep:
        bridge, name = Bridge(init_params, self.dtype), (self.method or '').lower()
        lower, upper = (None, None) if bounds is None else bounds_like(bounds, init_params)

        def value(x: Any) -> Any:
            return as_array(self._objective.value(bridge.tree(x), *args, **kwargs)[0], self.dtype)

        def value_and_gradient(x: Any) -> Any:
            value, gradient, _ = self._objective(bridge.tree(x), *args, **kwargs)
            return as_array(value, self.dtype), bridge.array(gradient)

        def gradient_at(x: torch.Tensor) -> torch.Tensor:
            return bridge.vectors.pack(self._objective.gradient(bridge.vectors.unpack(x), *args, **kwargs))

        options: dict[str, Any] = {} if name in _WITHOUT_GRADIENT else {'jac': True}
        if name in _WITH_HESSIAN:
            options['hess'] = lambda x: as_array(jacobian(gradient_at, bridge.vector(x)), self.dtype)
        elif name in _WITH_HESSIAN_PRODUCT:
            options['hessp'] = lambda x, v: as_array(
                jvp(lambda z: [gradient_at(z)], [bridge.vector(x)], [bridge.vector(v)])[0], self.dtype
            )
        if lower is not None:
            options['bounds'] = load_optimize().Bounds(bridge.array(lower), bridge.array(upper))
        if self.callback is not None:
            callback = self.callback
            # SciPy calls by the name of the argument.
            options['callback'] = (
                (lambda x, state=None: callback(bridge.tree(x)))
                if name == 'trust-constr'
                else (lambda x: callback(bridge.tree(x)))
            )
        found = load_optimize().minimize(
            value if name in _WITHOUT_GRADIENT else value_and_gradient,
            bridge.array(init_params),
            tol=self.tol,
            method=self.method,
            options=self._options,
            **options,
        )
        params = bridge.tree(found.x)
        if lower is not None:
            params = into_box(params, lower, upper)
        inverse = found.get('hess_inv')
        info = ScipyMinimizeInfo(
            torch.as_tensor(found.fun),
            bool(found.success),
            int(found.status),
            int(found.get('nit', 0)),
            torch.as_tensor(inverse) if isinstance(inverse, np.ndarray) else inverse,
            int(found.get('nfev', 0)),
            int(found.get('njev', 0)),
            int(found.get('nhev', 0)),
            str(found.message),
        )
        return OptStep(params, info)


@dataclasses.dataclass(eq=False)
class ScipyBoundedMinimize(ScipyMinimize):
    r"""``scipy.optimize.minimize`` in a box, :math:`\min_{l \le x \le u} f(x)`, for trees, with implicit derivatives.

    ``run(init_params, bounds, *args, **kwargs)`` takes the pair :math:`(l, u)` of trees like the parameters, or
    numbers.  The result is differentiable in the bounds too.  The arguments are those of :class:`ScipyMinimize`;
    methods with bounds are ``'L-BFGS-B'``, ``'TNC'``, ``'SLSQP'``, ``'trust-constr'``, ``'Nelder-Mead'``, ``'Powell'``.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.ScipyBoundedMinimize(fun=lambda x, a: ((x - a) ** 2).sum(), method='L-BFGS-B')
        >>> upper = torch.tensor([1.5, 1.5], requires_grad=True)
        >>> params, info = solver.run(torch.zeros(2), (0.0, upper), torch.tensor([1.0, 2.0]))
        >>> params.detach(), torch.autograd.grad(params.sum(), upper)
        (tensor([1.0000, 1.5000]), (tensor([0., 1.]),))
    """

    second_argument = 'bounds'

    def optimality_fun(self, params: Any, bounds: Any, *args: Any, **kwargs: Any) -> Any:
        """What a projected gradient step changes."""
        return box_residual(params, self._objective.gradient(params, *args, **kwargs), bounds)

    def _solve(self, init_params: Any, bounds: Any = None, *args: Any, **kwargs: Any) -> OptStep:
        return self._minimize(init_params, (None, None) if bounds is None else bounds, args, kwargs)
