# SPDX-License-Identifier: Apache-2.0
"""The Levenberg-Marquardt method."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchopt import checks
from torchopt.levels import is_readable
from torchopt.linear_solve import solve_cg
from torchopt.norms import norm_in_double
from torchopt.scalars import larger, numbers, smaller, where
from torchopt.solver.arguments import check_state
from torchopt.solver.base import OptStep
from torchopt.solver.least_squares.linear_systems import FACTORIZATIONS, Solve, squared
from torchopt.solver.least_squares.residuals import LeastSquaresSolver, Residuals
from torchopt.solver.status import Status

_STOP_CRITERIA = ('grad-l2-norm', 'madsen-nielsen')


class LevenbergMarquardtState(NamedTuple):
    r"""The state of :class:`LevenbergMarquardt`.

    Attributes:
        iter_num: The number of steps, also those that were rejected.
        damping_factor: :math:`\mu` of the next step.
        increase_factor: By what :math:`\mu` is multiplied if the next step is rejected.
        residual: The residuals :math:`r`, a vector.
        value: :math:`\frac12 \|r\|^2`.
        delta: The last step, also if it was rejected, a tree like the parameters.
        error: The Euclidean norm of the gradient.
        gradient: :math:`J^\top r`, a tree like the parameters.
        jac: The Jacobian :math:`J`, a matrix; None if it is not built.
        jt: Its transpose.
        jtj: :math:`J^\top J`, at least in single precision; None if no factorization needs it.
        hess_res: None; second derivatives are taken along directions.
        aux: The auxiliary output.
        num_fun_eval: How many residuals were computed.
        num_jac_eval: How many Jacobians, or gradients, were computed.
        status: How the run ended.
    """

    iter_num: Any
    damping_factor: Any
    increase_factor: Any
    residual: Any
    value: Any
    delta: Any
    error: Any
    gradient: Any
    jac: Any
    jt: Any
    jtj: Any
    hess_res: Any
    aux: Any
    num_fun_eval: Any
    num_jac_eval: Any
    status: Any


class _Linearization(NamedTuple):
    """The residuals at a point, with what is known of their derivative."""

    residual: Tensor
    aux: Any
    gradient: Tensor
    jac: Any
    jtj: Any


@dataclasses.dataclass(eq=False)
class LevenbergMarquardt(LeastSquaresSolver):
    r"""The Levenberg-Marquardt method for nonlinear least squares, :math:`\min_x \frac12 \|r(x)\|^2`.

    A step solves a linear system with the Jacobian :math:`J` of the residuals,

    .. math:: (J^\top J + \mu I)\, \delta = -J^\top r.

    The ratio of the decrease to the predicted one, :math:`\rho`, decides: if it is positive, the step is made and
    :math:`\mu` is multiplied by :math:`\max(1/3, 1 - (2\rho - 1)^3)`; otherwise :math:`\mu` is multiplied by a factor
    that doubles with each rejection.  A value that is not finite rejects the step.

    With geodesic acceleration, the step follows the curve :math:`\delta + \frac12 \alpha`, where :math:`\alpha` solves
    the same system with the second derivative of :math:`r` along :math:`\delta` in place of :math:`r`.  It costs
    little, and helps in narrow, curved valleys.

    Problems whose parameters have very different scales are best solved with ``solver='qr'`` in float64, which does
    not square the condition number.

    Args:
        residual_fun: ``residual_fun(params, *args, **kwargs)`` returns the residuals, a tree of tensors.
        maxiter: The largest number of steps, also of those that are rejected.
        damping_parameter: :math:`\mu` starts as this times the largest diagonal element of :math:`J^\top J`.
        stop_criterion: ``'grad-l2-norm'``: the run ends when the Euclidean norm of the gradient is at most ``tol``.
            ``'madsen-nielsen'``: when its largest element is at most ``gtol``, or
            :math:`\|\delta\| \le` ``xtol`` :math:`(\|x\| +` ``xtol`` :math:`)`.
        tol: See ``stop_criterion``.
        xtol: See ``stop_criterion``.
        gtol: See ``stop_criterion``.
        solver: How to solve the linear systems.  ``'qr'``, ``'cholesky'``, ``'lu'`` and ``'inv'`` factor a matrix and
            build the Jacobian for it.  A function ``solver(matvec, b, ridge=...)``, such as those of
            :mod:`torchopt.linear_solve`, needs products only.
        geodesic: Whether steps are accelerated.
        jac_fun: ``jac_fun(params, *args, **kwargs)`` returns the Jacobian, a matrix with one row for each residual and
            one column for each parameter, in place of automatic differentiation.
        materialize_jac: Whether to build the Jacobian where ``solver`` is a function.
        has_aux: Whether ``residual_fun`` returns a pair, the residuals and auxiliary output.

    Raises:
        TypeError: If ``residual_fun`` is not a function, or its results are not of floating dtypes.
        ValueError: If an option is out of range, or ``jac_fun`` returns a matrix of another shape.

    Example:
        >>> import torch, torchopt
        >>> t = torch.linspace(0, 1, 5)
        >>> y = 2.0 * torch.exp(-3.0 * t)
        >>> solver = torchopt.LevenbergMarquardt(lambda w: w[0] * torch.exp(-w[1] * t) - y, solver='qr', tol=1e-6)
        >>> solver.run(torch.tensor([1.0, 1.0])).params
        tensor([2., 3.])

    References:
        Madsen and Nielsen, *Introduction to Optimization and Data Fitting*, 2010, algorithm 6.18;
        Transtrum and Sethna, *Improvements to the Levenberg-Marquardt algorithm*, 2012 (arXiv 1201.5885).
    """

    residual_fun: Callable[..., Any]
    maxiter: int = 30
    damping_parameter: float = 1e-6
    stop_criterion: str = 'grad-l2-norm'
    tol: float = 1e-3
    xtol: float = 1e-3
    gtol: float = 1e-3
    solver: str | Callable[..., Any] = solve_cg
    geodesic: bool = False
    _: dataclasses.KW_ONLY
    jac_fun: Callable[..., Tensor] | None = None
    materialize_jac: bool = False
    has_aux: bool = False

    error_name = 'Gradient norm'
    contribution_ratio_threshold: ClassVar[float] = 0.75
    r"""A step is rejected where :math:`\|\alpha\|` is more than this times :math:`\|\delta\|`."""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.stop_criterion not in _STOP_CRITERIA:
            raise ValueError(f'Invalid stop_criterion: {self.stop_criterion!r}; expected one of {_STOP_CRITERIA}.')
        if not callable(self.solver) and self.solver not in FACTORIZATIONS:
            raise ValueError(f'Invalid solver: {self.solver!r}; expected one of {tuple(FACTORIZATIONS)} or a function.')
        for name in ('damping_parameter', 'xtol', 'gtol'):
            checks.at_least(name, getattr(self, name))
        self._builds_jacobian = self.materialize_jac or not callable(self.solver)

    @property
    def stop_tol(self) -> Any:
        """What ``state.error`` is compared with."""
        return self.tol if self.stop_criterion == 'grad-l2-norm' else -math.inf

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> LevenbergMarquardtState:
        """The state before the first step."""
        residuals = self.residuals_like(init_params, args, kwargs)
        x = residuals.vectors.pack(init_params)
        at = self._linearize(residuals, x)
        if at.jac is not None:
            diagonal = at.jac.square().sum(0)
        else:
            product = residuals.gram(x)
            diagonal = torch.vmap(lambda e: e.dot(product(e)))(torch.eye(len(x), dtype=x.dtype, device=x.device))
        largest = diagonal.amax() if diagonal.numel() else diagonal.sum()
        (damping,) = numbers(self.damping_parameter * largest)
        return self._state(residuals, at, 0, damping, 2.0, torch.zeros_like(x), 1, 1, int(Status.RUNNING))

    def update(self, params: Any, state: LevenbergMarquardtState, *args: Any, **kwargs: Any) -> OptStep:
        """One step; the parameters stay as they are if it is rejected."""
        check_state(state)
        residuals = self.residuals_like(params, args, kwargs)
        x, g = residuals.vectors.pack(params), residuals.vectors.pack(state.gradient)
        solve = self._system(residuals, x, state)
        velocity, acceptable = solve(state.residual), True
        step = velocity
        if self.geodesic:
            acceleration = solve(residuals.curvature(x, velocity))
            excess = torch.linalg.vector_norm(acceleration) - self.contribution_ratio_threshold * (
                torch.linalg.vector_norm(velocity)
            )
            (excess,) = numbers(excess)
            acceptable, step = excess <= 0.0, velocity + 0.5 * acceleration
        r, aux = residuals(x + step)
        mu = state.damping_factor
        value, predicted = numbers(0.5 * r.dot(r), 0.5 * velocity.dot(mu * velocity - g))
        decrease = state.value - value
        accepted = (decrease > 0.0) & (predicted > 0.0) & acceptable & (value < math.inf)
        # Rounding hides a decrease that is smaller than this: no damping will help.
        (precision,) = numbers(torch.finfo(x.dtype).eps * abs(state.value))
        hopeless = (predicted <= precision) & acceptable
        gain = where(accepted, decrease, 0.0) / where(predicted > 0.0, predicted, 1.0)
        shrink = larger(1.0 / 3.0, 1.0 - (2.0 * smaller(gain, 1.0) - 1.0) ** 3)
        old = _Linearization(state.residual, state.aux, g, state.jac, state.jtj)
        new, at, evaluations = x, old, 1
        if not is_readable(accepted):
            new = torch.where(accepted, x + step, x)
            at, evaluations = self._linearize(residuals, new), 2
        elif accepted:
            new = x + step
            at = self._linearize(residuals, new, (r, aux))
        tiny = torch.finfo(x.dtype).tiny
        mu = where(accepted, mu * shrink, larger(mu, tiny) * state.increase_factor)
        factor = where(accepted, 2.0, 2.0 * state.increase_factor)
        jacobians = state.num_jac_eval + where(accepted, 1, 0)
        ended = self._ending(x, step, at.gradient, accepted, hopeless | (mu == math.inf))
        new_state = self._state(
            residuals, at, state.iter_num + 1, mu, factor, step, state.num_fun_eval + evaluations, jacobians, ended
        )
        return OptStep(residuals.vectors.unpack(new), new_state)

    def _linearize(self, residuals: Residuals, x: Tensor, known: tuple[Tensor, Any] | None = None) -> _Linearization:
        """Residuals and derivatives at a point."""
        r, aux = residuals(x) if known is None else known
        if not self._builds_jacobian:
            return _Linearization(r, aux, residuals.transposed(x, r), None, None)
        if self.jac_fun is None:
            jac = residuals.jacobian(x)
        else:
            jac = torch.as_tensor(self.jac_fun(residuals.vectors.unpack(x), *residuals.args, **residuals.kwargs))
            if jac.shape != (len(r), len(x)):
                raise ValueError(
                    f'jac_fun returned shape {tuple(jac.shape)}; expected {(len(r), len(x))}: one row for each '
                    f'residual and one column for each parameter.'
                )
        jtj = None if self.solver == 'qr' else squared(jac)
        return _Linearization(r, aux, jac.mT @ r, jac, jtj)

    def _system(self, residuals: Residuals, x: Tensor, state: LevenbergMarquardtState) -> Solve:
        r"""The function :math:`z \mapsto -(J^\top J + \mu I)^{-1} J^\top z`."""
        mu, jac = state.damping_factor, state.jac
        if not callable(self.solver):
            return FACTORIZATIONS[self.solver](jac, state.jtj, mu)
        solver = self.solver
        if jac is not None:
            return lambda z: -solver(lambda v: jac.mT @ (jac @ v), jac.mT @ z, ridge=mu)
        return lambda z: -solver(residuals.gram(x), residuals.transposed(x, z), ridge=mu)

    def _ending(self, x: Tensor, step: Tensor, gradient: Tensor, accepted: Any, hopeless: Any) -> Any:
        """The status after a step."""
        stalled = where(accepted, False, hopeless)
        status = where(stalled, int(Status.STALLED), int(Status.RUNNING))
        if self.stop_criterion == 'grad-l2-norm':
            return status
        length, size = numbers(norm_in_double(step), norm_in_double(x))
        slope = gradient.abs().amax() if gradient.numel() else gradient.sum()
        (slope,) = numbers(slope)
        done = (slope <= self.gtol) | (length <= self.xtol * (size + self.xtol))
        return where(done, int(Status.CONVERGED), status)

    def _state(
        self,
        residuals: Residuals,
        at: _Linearization,
        iter_num: Any,
        damping_factor: Any,
        increase_factor: Any,
        step: Tensor,
        num_fun_eval: Any,
        num_jac_eval: Any,
        status: Any,
    ) -> LevenbergMarquardtState:
        value, error = numbers(0.5 * at.residual.dot(at.residual), norm_in_double(at.gradient))
        jac = at.jac
        status = where((value < math.inf) & (error < math.inf), status, int(Status.NONFINITE))
        return LevenbergMarquardtState(
            iter_num=iter_num,
            damping_factor=damping_factor,
            increase_factor=increase_factor,
            residual=at.residual,
            value=value,
            delta=residuals.vectors.unpack(step),
            error=error,
            gradient=residuals.vectors.unpack(at.gradient),
            jac=jac,
            jt=None if jac is None else jac.mT,
            jtj=at.jtj,
            hess_res=None,
            aux=at.aux,
            num_fun_eval=num_fun_eval,
            num_jac_eval=num_jac_eval,
            status=status,
        )

    def progress(self, state: LevenbergMarquardtState) -> dict[str, Any]:
        """The value of the objective, and the damping factor."""
        return {'Objective': state.value, 'Damping factor': state.damping_factor}
