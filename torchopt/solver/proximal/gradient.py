# SPDX-License-Identifier: Apache-2.0
"""Proximal and projected gradient methods."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchopt import checks
from torchopt.levels import eager
from torchopt.loop import while_loop
from torchopt.prox import make_prox_from_projection, prox_none
from torchopt.scalars import negated, pick, root, settled, where
from torchopt.solver.arguments import check_state, require_call
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.objective import Objective
from torchopt.solver.proximal.composite import (
    PLAIN,
    BatchMeasure,
    Measure,
    confirmed,
    count_and_error,
    defined,
    measures_of,
    minus,
    plus,
    stepsize_at,
)
from torchopt.solver.run import Task, as_tensors
from torchopt.solver.status import Status
from torchopt.solver.unbounded import recognizing_no_bound


class ProxGradState(NamedTuple):
    """The state of :class:`ProximalGradient` and :class:`ProjectedGradient`.

    Attributes:
        iter_num: The number of steps.
        stepsize: The step size to begin the next line search with.
        error: The length of the last step, divided by its step size.
        aux: The auxiliary output of the objective.
        velocity: The extrapolated point from which the next step is made; None without acceleration.
        t: How long acceleration has been at work: the weight of the extrapolation depends on it.
        status: How the run ended, a :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    stepsize: Any
    error: Any
    aux: Any = None
    velocity: Any = None
    t: Any = 1.0
    status: Any = 0


_NUMBERS = ('iter_num', 'stepsize', 'error', 't', 'status')


class _Trial(NamedTuple):
    """A trial point of the line search."""

    point: Any
    stepsize: Any
    accepted: Any


@dataclasses.dataclass(eq=False)
class ProximalGradient(IterativeSolver):
    r"""The proximal gradient method, with acceleration.

    It minimizes :math:`f(x) + g(x)`, where :math:`f` is smooth and :math:`g` has a proximity operator:

    .. math:: x_{k+1} = \operatorname{prox}_{\eta g}(y_k - \eta \nabla f(y_k)), \qquad
        y_{k+1} = x_{k+1} + \beta_k (x_{k+1} - x_k)

    Without acceleration :math:`\beta_k = 0`.  With it the momentum follows FISTA, and restarts whenever it points
    uphill (O'Donoghue and Candès, 2015), so that the objective does not oscillate.  The search for the step size
    :math:`\eta` begins with twice the last one (1 at first), which it halves until a quadratic model with curvature
    :math:`1 / \eta` bounds the objective; a trial point where the objective is NaN is too far.  With
    ``decrease_factor`` :math:`d` the factors are :math:`1 / d` and :math:`d`.  No step is made before a step size is
    found, however small it must be.

    The run ends when :math:`\|x_{k+1} - y_k\|_2 / \eta` is at most ``tol``.

    Args:
        fun: ``fun(params, *args, **kwargs)``, the smooth part.
        prox: ``prox(params, hyperparams_prox, scaling)``; see :mod:`torchopt.prox`.
        value_and_grad: Whether ``fun`` returns the value and the gradient.
        has_aux: Whether in place of the value there is a pair, the value and auxiliary output.
        stepsize: The step size, a number or a function of the number of steps; if zero or less, it is searched for.
        maxiter: The largest number of steps.
        maxls: The largest number of reductions of the step size in a step.
        tol: The tolerance.
        acceleration: Whether to use momentum.
        decrease_factor: What reduces a step size, between 0 and 1.

    Raises:
        ValueError: If an option is out of its range.

    Example:
        >>> import torch, torchopt
        >>> X, y = torch.eye(3), torch.tensor([3.0, -0.5, 1.5])
        >>> def fun(w, X, y):
        ...     return 0.5 * ((X @ w - y) ** 2).sum()
        >>> lasso = torchopt.ProximalGradient(fun, torchopt.prox.prox_lasso, tol=1e-6)
        >>> lasso.run(torch.zeros(3), 1.0, X, y).params.round(decimals=3) + 0.0
        tensor([2.0000, 0.0000, 0.5000])

    References:
        Beck and Teboulle, `A fast iterative shrinkage-thresholding algorithm for linear inverse problems
        <https://doi.org/10.1137/080716542>`_, 2009; O'Donoghue and Candès, `Adaptive restart for accelerated gradient
        schemes <https://doi.org/10.1007/s10208-013-9150-3>`_, 2015.
    """

    fun: Callable[..., Any]
    prox: Callable[..., Any] = prox_none
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    stepsize: float | Callable[[Any], Any] = 0.0
    maxiter: int = 500
    maxls: int = 15
    tol: float = 1e-3
    acceleration: bool = True
    decrease_factor: float = 0.5

    error_name = 'Length of the step / step size'
    problem_function = 'fun'
    second_argument: ClassVar[str | None] = 'hyperparams_prox'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        require_call('prox', self.prox, 'prox(params, hyperparams_prox, scaling)')
        if not 0.0 < self.decrease_factor < 1.0:
            raise ValueError(f'Invalid decrease_factor: {self.decrease_factor!r}; expected a number between 0 and 1.')
        checks.integer('maxls', self.maxls, 1)
        if not callable(self.stepsize):
            checks.number('stepsize', self.stepsize)
        self._objective = Objective(self.fun, self.value_and_grad, self.has_aux)

    @property
    def _searches(self) -> bool:
        return not callable(self.stepsize) and bool(self.stepsize <= 0)

    def progress(self, state: ProxGradState) -> dict[str, Any]:
        """The step size."""
        return {'Step size': state.stepsize}

    def init_state(self, init_params: Any, hyperparams_prox: Any = None, *args: Any, **kwargs: Any) -> ProxGradState:
        """The state before the first step; for the arguments see :meth:`run`."""
        return as_tensors(self._first_state(init_params, args, kwargs), init_params)

    def _first_state(self, init_params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ProxGradState:
        aux = self._objective.auxiliary_at_start(init_params, *args, **kwargs)
        velocity = init_params if self.acceleration else None
        zero, error = count_and_error(init_params)
        return ProxGradState(zero, 1.0, error, aux, velocity, 1.0, 0)

    def update(
        self, params: Any, state: ProxGradState, hyperparams_prox: Any = None, *args: Any, **kwargs: Any
    ) -> OptStep:
        """One step; for the arguments see :meth:`run`."""
        check_state(state)
        new, state = self._advance(params, state, hyperparams_prox, args, kwargs)
        return OptStep(new, as_tensors(state, new))

    def _advance(
        self,
        params: Any,
        state: ProxGradState,
        hyperparams_prox: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        measure: Measure = PLAIN,
    ) -> OptStep:
        """One step, whose numbers come from ``measure``."""
        y = state.velocity if self.acceleration else params
        value, gradient, aux = self._objective(y, *args, **kwargs)
        status, count = state.status, state.iter_num + 1
        if self._searches:
            trial = self._search(y, value, gradient, state, hyperparams_prox, args, kwargs, measure)
            size, new = trial.stepsize, trial.point
            gained = minus(new, y)
            error = where(trial.accepted, measure.norm(gained) / size, state.error)
            lost = settled(negated(trial.accepted) & (size < sys.float_info.min))
            if lost is not False:
                ending = where(measure.norm(gradient) < math.inf, int(Status.STALLED), int(Status.NONFINITE))
                status = where(lost, ending, status)
            larger = size / self.decrease_factor
            next_size = where(trial.accepted & (larger < math.inf), larger, size)
        else:
            size = next_size = stepsize_at(self.stepsize, state.iter_num)
            new = self._step_from(hyperparams_prox, y, gradient, size, measure)
            gained = minus(new, y)
            error = defined(measure.norm(gained) / size, measure.number(value))
            trial = _Trial(new, size, True)
        step = partial(self._step_from, hyperparams_prox, measure=measure)
        error = confirmed(error, self.tol, step, y, gradient, size, measure)
        if not self.acceleration:
            new = pick(trial.accepted, new, params)
            return OptStep(new, ProxGradState(count, next_size, error, aux, None, 1.0, status))
        moved = minus(new, params)
        uphill = measure.inner(gained, moved)
        t = where(uphill < 0, 1.0, state.t)
        next_t = 0.5 * (1.0 + root(1.0 + 4.0 * t * t))
        weight = where(uphill < 0, 0.0, (t - 1.0) / next_t)
        # Without an acceptable step, start again from where the momentum began.
        new, velocity = pick(trial.accepted, (new, plus(new, weight, moved)), (params, params))
        next_t = where(trial.accepted, next_t, 1.0)
        return OptStep(new, ProxGradState(count, next_size, error, aux, velocity, next_t, status))

    @eager
    def run(self, init_params: Any, hyperparams_prox: Any = None, *args: Any, **kwargs: Any) -> OptStep:
        """Minimize.

        Args:
            init_params: Where to start, a tree.
            hyperparams_prox: Hyper-parameters of the operator.
            *args: Data of the objective.
            **kwargs: Data of the objective, by name.

        Returns:
            The parameters, and the state.  With ``implicit_diff`` the parameters are differentiable in the data, the
            hyper-parameters, and in tensors that the functions close over.
        """
        return super().run(init_params, hyperparams_prox, *args, **kwargs)

    def optimality_fun(self, sol: Any, hyperparams_prox: Any = None, *args: Any, **kwargs: Any) -> Any:
        r"""The residual :math:`\operatorname{prox}_g(x - \nabla f(x)) - x`, zero at the solution.

        For the arguments see :meth:`run`.
        """
        gradient = self._objective.gradient(sol, *args, **kwargs)
        return minus(self._step_from(hyperparams_prox, sol, gradient, 1.0), sol)

    def task(self, init_params: Any, hyperparams_prox: Any = None, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, at whose end an objective without a lower bound is recognized."""
        return self._task(init_params, hyperparams_prox, args, kwargs)

    def _task(self, init_params: Any, hyperparams_prox: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        start = self._first_state(init_params, args, kwargs)
        plain = callable(self.stepsize) or isinstance(self.tol, Tensor)
        measure = PLAIN if plain else BatchMeasure.fitting(init_params)
        if measure is not PLAIN:  # numbers, which become columns
            start = start._replace(iter_num=0, error=math.inf)

        def advance(last: OptStep) -> OptStep:
            with np.errstate(all='ignore'):
                return self._advance(*last, hyperparams_prox, args, kwargs, measure)

        def finish(last: OptStep) -> OptStep:
            state = last.state
            columns = {name: measure.tensor(getattr(state, name), init_params) for name in _NUMBERS}
            return OptStep(last.params, state._replace(**columns))

        task = Task(OptStep(init_params, start), advance, finish)
        step = partial(self._step_from, hyperparams_prox)
        return recognizing_no_bound(task, measures_of(self._objective, step, args, kwargs), self.tol)

    def _step_from(self, hyperparams_prox: Any, y: Any, gradient: Any, size: Any, measure: Measure = PLAIN) -> Any:
        return self.prox(plus(y, -size, gradient), hyperparams_prox, measure.tensor(size, y))

    def _search(
        self,
        y: Any,
        value: Any,
        gradient: Any,
        state: ProxGradState,
        hyperparams_prox: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        measure: Measure,
    ) -> _Trial:
        """Reduce the step size until the quadratic model bounds the objective."""
        rounding = 4.0 * torch.finfo(value.dtype).eps
        start = measure.number(value)

        def trial(size: Any, slack: Any) -> _Trial:
            point = self._step_from(hyperparams_prox, y, gradient, size, measure)
            change = minus(point, y)
            found = measure.number(self._objective.value(point, *args, **kwargs)[0])
            slope, square = measure.inner(gradient, change), measure.square(change)
            bound = start + slope + 0.5 * square / size + slack * abs(start)
            return _Trial(point, size, found <= bound)

        # Rounding blurs the change of the objective.  It must not refuse a step size for ever, nor let one grow.
        first, has_grown = measure.number(state.stepsize), state.iter_num > 0
        return while_loop(
            lambda now: negated(now.accepted),
            lambda now: trial(now.stepsize * self.decrease_factor, rounding),
            trial(first, where(has_grown, -rounding, rounding)),
            maxiter=self.maxls,
        )


@dataclasses.dataclass(eq=False)
class ProjectedGradient(IterativeSolver):
    """The projected gradient method, with acceleration: :class:`ProximalGradient` with a projection.

    The arguments are those of :class:`ProximalGradient`, and instead of ``prox``:

    Args:
        projection: ``projection(params, hyperparams_proj)``, the nearest point of the feasible set.

    Example:
        >>> import torch, torchopt
        >>> def fun(w, target):
        ...     return 0.5 * ((w - target) ** 2).sum()
        >>> solver = torchopt.ProjectedGradient(fun, torchopt.projections.projection_simplex)
        >>> solver.run(torch.full((3,), 1 / 3), 1.0, torch.tensor([1.0, 0.5, -2.0])).params
        tensor([0.7500, 0.2500, 0.0000])
    """

    fun: Callable[..., Any]
    projection: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    stepsize: float | Callable[[Any], Any] = 0.0
    maxiter: int = 500
    maxls: int = 15
    tol: float = 1e-3
    acceleration: bool = True
    decrease_factor: float = 0.5

    error_name = ProximalGradient.error_name
    problem_function, second_argument = 'fun', 'hyperparams_proj'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        require_call('projection', self.projection, 'projection(params, hyperparams_proj)')
        shared = {field.name for field in dataclasses.fields(ProximalGradient)} - {'prox', 'fun'}
        self._method = ProximalGradient(
            self.fun, make_prox_from_projection(self.projection), **{name: getattr(self, name) for name in shared}
        )

    def progress(self, state: ProxGradState) -> dict[str, Any]:
        """The step size."""
        return self._method.progress(state)

    def task(self, init_params: Any, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, at whose end an objective without a lower bound is recognized."""
        return self._method.task(init_params, hyperparams_proj, *args, **kwargs)

    def init_state(self, init_params: Any, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> ProxGradState:
        """The state before the first step; for the arguments see :meth:`run`."""
        return self._method.init_state(init_params, hyperparams_proj, *args, **kwargs)

    def update(
        self, params: Any, state: ProxGradState, hyperparams_proj: Any = None, *args: Any, **kwargs: Any
    ) -> OptStep:
        """One step; for the arguments see :meth:`run`."""
        return self._method.update(params, state, hyperparams_proj, *args, **kwargs)

    @eager
    def run(self, init_params: Any, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> OptStep:
        """Minimize, as :meth:`ProximalGradient.run` does, with hyper-parameters of the projection."""
        return super().run(init_params, hyperparams_proj, *args, **kwargs)

    def optimality_fun(self, sol: Any, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> Any:
        r"""The residual :math:`P(x - \nabla f(x)) - x`, zero at the solution; for the arguments see :meth:`run`."""
        return self._method.optimality_fun(sol, hyperparams_proj, *args, **kwargs)
