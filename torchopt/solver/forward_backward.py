# SPDX-License-Identifier: Apache-2.0
r"""Forward-backward splitting: a gradient step on a smooth function, then the prox of another one.

.. math:: w_{k+1} = \operatorname{prox}_{\eta_k h}\left( z_k - \eta_k \nabla f(z_k) \right)

with :math:`z_k = w_k`, or with acceleration, which is FISTA.  A subclass names the prox; without one, this is
gradient descent.
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.loop import while_loop
from torchopt.scalars import negated, numbers, pick, root, where
from torchopt.solver.base import IterativeSolver
from torchopt.solver.descent import Problem
from torchopt.solver.objective import Objective
from torchopt.solver.run import OptStep, Task, as_tensors
from torchopt.solver.status import Status

__all__ = ['ForwardBackward', 'ProxGradState']


@tree.safe_to_load
class ProxGradState(NamedTuple):
    """State of a proximal gradient method.

    Attributes:
        iter_num: The number of steps.
        stepsize: The step size with which the next search begins.
        error: The length of the last step, divided by the step size.
        aux: The auxiliary output of the objective.
        velocity: The accelerated point; None without acceleration.
        t: Nesterov's sequence.
        status: How the run ended; see :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    stepsize: Any
    error: Any
    aux: Any = None
    velocity: Any = None
    t: Any = 1.0
    status: Any = 0


class _Trial(NamedTuple):
    x: Tensor
    stepsize: Any
    too_long: Any


@dataclasses.dataclass(eq=False, kw_only=True)
class ForwardBackward(IterativeSolver, abc.ABC):
    """The steps; a subclass is a dataclass with JAXopt's arguments."""

    error_name = 'Distance btw Iterates'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        options: Any = self
        self._objective = Objective(options.fun, options.value_and_grad, options.has_aux)
        if not 0.0 < options.decrease_factor < 1.0:
            raise ValueError(f'Invalid decrease_factor: {options.decrease_factor!r}; expected a number in (0, 1).')
        if not checks.is_schedule(options.stepsize):
            checks.scalar('stepsize', options.stepsize)

    @property
    def reference_signature(self) -> Callable[..., Any] | inspect.Signature:
        """The objective, whose arguments :meth:`optimality_fun` has too."""
        fun: Callable[..., Any] = self.fun  # type: ignore[attr-defined]
        return fun

    def progress(self, state: Any) -> dict[str, Any]:
        """The step size."""
        return {'Stepsize': state.stepsize}

    def _split(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
        """The argument of the prox, and those of the objective."""
        return None, args, kwargs

    @abc.abstractmethod
    def _apply_prox(self, params: Any, hyperparams: Any, stepsize: Any) -> Any:
        """The prox of the other function, scaled by the step size."""

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> ProxGradState:
        """The state before the first step."""
        task = self.task(init_params, *args, **kwargs)
        return as_tensors(task.finish(task.start).state, init_params)

    def update(self, params: Any, state: ProxGradState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        hyperparams, args, kwargs = self._split(args, kwargs)
        problem = Problem(self._objective, params, args, kwargs)
        stepsize, error, t = numbers(state.stepsize, state.error, state.t)
        velocity = None if not self.acceleration else problem.vectors.pack(state.velocity)  # type: ignore[attr-defined]
        work = state._replace(stepsize=stepsize, error=error, t=t, velocity=velocity)
        step = self._step(problem, hyperparams, OptStep(problem.vectors.pack(params), work))
        done = self._finished(problem, step)
        return OptStep(done.params, as_tensors(done.state, params))

    def task(self, init_params: Any, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, on vectors."""
        hyperparams, args, kwargs = self._split(args, kwargs)
        problem = Problem(self._objective, init_params, args, kwargs)
        x, _, _, aux = problem.begin(init_params)
        velocity = x if self.acceleration else None  # type: ignore[attr-defined]
        start = OptStep(x, ProxGradState(0, 1.0, float('inf'), aux, velocity, 1.0, 0))
        return Task(
            start, lambda last: self._step(problem, hyperparams, last), lambda last: self._finished(problem, last)
        )

    @staticmethod
    def _finished(problem: Problem, last: OptStep) -> OptStep:
        velocity = None if last.state.velocity is None else problem.vectors.unpack(last.state.velocity)
        return OptStep(problem.vectors.unpack(last.params), last.state._replace(velocity=velocity))

    def _step(self, problem: Problem, hyperparams: Any, last: OptStep) -> OptStep:
        options: Any = self
        x, state = last
        z = state.velocity if options.acceleration else x
        value, gradient, aux = problem(z)
        (value,) = numbers(value)
        vectors, fixed = problem.vectors, checks.is_schedule(options.stepsize) or options.stepsize > 0

        def forward_backward(stepsize: Any) -> Tensor:
            moved = problem.move(z, -stepsize, gradient)
            return vectors.pack(self._apply_prox(vectors.unpack(moved), hyperparams, stepsize), 'the prox')

        if fixed:
            stepsize = options.stepsize(state.iter_num) if callable(options.stepsize) else options.stepsize
            new, rejected, next_stepsize = forward_backward(stepsize), False, stepsize
        else:
            trial = self._search(problem, z, value, gradient, forward_backward, state.stepsize)
            new, rejected = trial.x, trial.too_long
            next_stepsize = where(rejected, trial.stepsize, trial.stepsize / options.decrease_factor)
        way = new - x
        (length,) = numbers(torch.linalg.vector_norm(way))
        error = length / next_stepsize
        velocity, t = None, state.t
        if options.acceleration:
            t = 0.5 * (1.0 + root(1.0 + 4.0 * state.t * state.t))
            velocity = problem.move(new, (state.t - 1.0) / t, way)
        status = state.status
        if rejected is not False:
            # No step was short enough yet: stay, and go on with shorter ones, without momentum.
            new, error, t = pick(rejected, x, new), where(rejected, state.error, error), where(rejected, 1.0, t)
            velocity = None if velocity is None else pick(rejected, x, velocity)
            hopeless = rejected & (next_stepsize < 1e-30)
            status = where(hopeless, int(Status.STALLED), status)
        return OptStep(new, ProxGradState(state.iter_num + 1, next_stepsize, error, aux, velocity, t, status))

    def _search(
        self,
        problem: Problem,
        z: Tensor,
        value: Any,
        gradient: Tensor,
        forward_backward: Callable[[Any], Tensor],
        guess: Any,
    ) -> _Trial:
        r"""Shorten a step until the parabola with curvature :math:`1 / \eta` is an upper bound at its end.

        .. math:: f(w) \le f(z) + \langle \nabla f(z), w - z \rangle + \frac{1}{2 \eta} \lVert w - z \rVert^2

        A value that is NaN violates it; differences that are noise do not.
        """
        options: Any = self
        eps = torch.finfo(z.dtype).eps

        def at(stepsize: Any) -> _Trial:
            new = forward_backward(stepsize)
            way = new - z
            new_value, slope, square = numbers(problem.value(new)[0], way @ gradient, way @ way)
            noise = eps + 4.0 * eps * stepsize * abs(value)
            enough = stepsize * (new_value - value) <= stepsize * slope + 0.5 * square + noise
            return _Trial(new, stepsize, negated(enough))

        trial = at(guess)
        if trial.too_long is False:
            return trial
        return while_loop(
            lambda x: x.too_long, lambda x: at(x.stepsize * options.decrease_factor), trial, options.maxls
        )
