# SPDX-License-Identifier: Apache-2.0
"""The Gauss-Newton method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt.norms import norm_in_double
from torchopt.scalars import numbers
from torchopt.solver.arguments import check_state
from torchopt.solver.base import OptStep
from torchopt.solver.least_squares.linear_systems import least_norm
from torchopt.solver.least_squares.residuals import LeastSquaresSolver
from torchopt.solver.status import Status


class GaussNewtonState(NamedTuple):
    r"""The state of :class:`GaussNewton`.

    Attributes:
        iter_num: The number of steps.
        residual: The residuals :math:`r` where the last step began, a vector.
        value: :math:`\frac12 \|r\|^2` there.
        delta: What the last step subtracted, a tree like the parameters.
        error: The Euclidean norm of ``delta``.
        gradient: :math:`J^\top r` there, a tree like the parameters.
        aux: The auxiliary output there.
        status: How the run ended.
    """

    iter_num: Any
    residual: Any
    value: Any
    delta: Any
    error: Any
    gradient: Any
    aux: Any
    status: Any


@dataclasses.dataclass(eq=False)
class GaussNewton(LeastSquaresSolver):
    r"""The Gauss-Newton method for nonlinear least squares, :math:`\min_x \frac12 \|r(x)\|^2`.

    .. math:: x \leftarrow x - \delta, \qquad \delta = J^+ r,

    where :math:`J` is the Jacobian of the residuals :math:`r` and :math:`J^+` its pseudoinverse: of all :math:`\delta`
    that fit the linearized residuals best, the shortest.  It is computed from the singular values of :math:`J`, so that
    the condition number is not squared.  Close to a solution with small residuals the method converges quadratically.
    Far from it, it may diverge: :class:`~torchopt.LevenbergMarquardt` does not.

    Args:
        residual_fun: ``residual_fun(params, *args, **kwargs)`` returns the residuals, a tree of tensors.
        maxiter: The largest number of steps.
        tol: The run ends when the norm of a step is at most this.
        has_aux: Whether ``residual_fun`` returns a pair, the residuals and auxiliary output.

    Raises:
        TypeError: If ``residual_fun`` is not a function, or its results are not of floating dtypes.

    Example:
        >>> import torch, torchopt
        >>> t = torch.linspace(0, 1, 5)
        >>> y = 2.0 * torch.exp(-3.0 * t)
        >>> solver = torchopt.GaussNewton(lambda w: w[0] * torch.exp(-w[1] * t) - y)
        >>> solver.run(torch.tensor([1.0, 1.0])).params
        tensor([2., 3.])

    References:
        Nocedal and Wright, *Numerical Optimization*, 2006, section 10.3.
    """

    residual_fun: Callable[..., Any]
    maxiter: int = 30
    tol: float = 1e-5
    _: dataclasses.KW_ONLY
    has_aux: bool = False

    error_name = 'Norm of the step'

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> GaussNewtonState:
        """The state before the first step."""
        residuals = self.residuals_like(init_params, args, kwargs)
        x = residuals.vectors.pack(init_params)
        r, aux = residuals(x)
        gradient = residuals.vectors.unpack(residuals.transposed(x, r))
        (value,) = numbers(0.5 * r.dot(r))
        return GaussNewtonState(0, r, value, init_params, math.inf, gradient, aux, int(Status.RUNNING))

    def update(self, params: Any, state: GaussNewtonState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        check_state(state)
        residuals = self.residuals_like(params, args, kwargs)
        unpack, x = residuals.vectors.unpack, residuals.vectors.pack(params)
        r, aux = residuals(x)
        jac = residuals.jacobian(x)
        delta = least_norm(jac, r)
        value, error = numbers(0.5 * r.dot(r), norm_in_double(delta))
        new = GaussNewtonState(
            state.iter_num + 1, r, value, unpack(delta), error, unpack(jac.mT @ r), aux, state.status
        )
        return OptStep(unpack(x - delta), new)

    def progress(self, state: GaussNewtonState) -> dict[str, Any]:
        """The value of the objective."""
        return {'Objective': state.value}
