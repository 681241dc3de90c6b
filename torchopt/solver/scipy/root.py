# SPDX-License-Identifier: Apache-2.0
"""``scipy.optimize.root``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.solver.arguments import split_aux
from torchopt.solver.base import OptStep
from torchopt.solver.least_squares.residuals import jacobian
from torchopt.solver.scipy.wrapper import Bridge, ScipyWrapper, as_array, load_optimize, required, with_limit

_LIMITS = {'hybr': 'maxfev', 'df-sane': 'maxfev'}
"""What methods call the limit of iterations, if not ``maxiter``."""


class ScipyRootInfo(NamedTuple):
    """What SciPy reports of a search for a root.

    Attributes:
        fun_val: The values of the function, a vector.
        success: Whether it converged.
        status: SciPy's number for how it ended.
        iter_num: The number of iterations; None if the method does not say.
        num_fun_eval: How often the function was called; None if the method does not say.
        message: How it ended, in words.
    """

    fun_val: Any
    success: Any
    status: Any
    iter_num: Any
    num_fun_eval: Any
    message: Any


@dataclasses.dataclass(eq=False)
class ScipyRootFinding(ScipyWrapper):
    r"""``scipy.optimize.root``, :math:`F(x) = 0`, for trees, with implicit derivatives.

    Args:
        method: The name of SciPy's method: ``'hybr'``, ``'lm'``, ``'broyden1'``, ``'anderson'``, ``'krylov'``,
            ``'df-sane'`` and others; SciPy's choice, ``'hybr'``, if None.
        optimality_fun: ``optimality_fun(params, *args, **kwargs)`` returns a tree like the parameters.
        tol: SciPy's tolerance.
        options: SciPy's options of the method.
        use_jacrev: Accepted for code written for JAXopt.
        maxiter: The limit of iterations, or of evaluations for ``'hybr'`` and ``'df-sane'``; SciPy's if None.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.ScipyRootFinding(optimality_fun=lambda x, a: x**3 - a, method='hybr')
        >>> a = torch.tensor([1.0, 8.0], requires_grad=True)
        >>> params, info = solver.run(torch.ones(2), a)
        >>> params.detach(), torch.autograd.grad(params.sum(), a)
        (tensor([1., 2.]), (tensor([0.3333, 0.0833]),))
    """

    optimality_fun: Callable[..., Any] = None  # type: ignore[assignment]
    tol: Any = None
    options: dict[str, Any] | None = None
    use_jacrev: bool = True
    _: dataclasses.KW_ONLY
    maxiter: int | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check the options."""
        required('optimality_fun', self.optimality_fun)
        limit = _LIMITS.get((self.method or 'hybr').lower(), 'maxiter')
        self._options = with_limit(self.options, limit, self.maxiter)

    @property
    def optimality_condition(self) -> Callable[..., Any]:
        """The function without auxiliary output."""
        return lambda params, *args, **kwargs: split_aux(
            self.optimality_fun(params, *args, **kwargs), self.has_aux, 'optimality_fun'
        )[0]

    def _solve(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        bridge, condition = Bridge(init_params, self.dtype), self.optimality_condition

        def value_at(x: Tensor) -> Tensor:
            value = condition(bridge.vectors.unpack(x), *args, **kwargs)
            return bridge.vectors.pack(value, 'the result of optimality_fun')

        def value(x: Any) -> Any:
            return as_array(value_at(bridge.vector(x)), self.dtype)

        options: dict[str, Any] = {}
        if (self.method or 'hybr').lower() in ('hybr', 'lm'):
            options['jac'] = lambda x: as_array(jacobian(value_at, bridge.vector(x)), self.dtype)
        found = load_optimize().root(
            value,
            bridge.array(init_params),
            tol=self.tol,
            method=self.method or 'hybr',
            options=self._options,
            **options,
        )
        steps, calls = found.get('nit'), found.get('nfev')
        info = ScipyRootInfo(
            torch.as_tensor(found.fun),
            bool(found.success),
            int(found.get('status', 0)),
            None if steps is None else int(steps),
            None if calls is None else int(calls),
            str(found.message),
        )
        return OptStep(bridge.tree(found.x), info)
