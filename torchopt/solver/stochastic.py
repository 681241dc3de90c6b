# SPDX-License-Identifier: Apache-2.0
"""Stochastic gradient steps: Polyak's and Armijo's step sizes, and any optimizer."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.base import GradientTransformation, with_extra_args_support
from torchopt.kinds import kind_of
from torchopt.levels import in_transform
from torchopt.linesearch import inner_product, move_along
from torchopt.loop import while_loop
from torchopt.numerics import zero_count
from torchopt.scalars import larger, numbers, pick, smaller, where
from torchopt.solver.arguments import check_state
from torchopt.solver.base import OptStep, SmoothSolver, StochasticSolver
from torchopt.solver.objective import Objective
from torchopt.solver.run import Task, as_before, as_tensors
from torchopt.solver.unbounded import recognizing_no_bound
from torchopt.update import apply_updates

PreUpdate = Callable[..., tuple[Any, Any]]
"""``pre_update(params, state, *args, **kwargs)`` returns what a step begins with."""


@dataclasses.dataclass(eq=False, kw_only=True)
class _GradientSteps(SmoothSolver, StochasticSolver):
    """What the three have in common: one evaluation of the gradient, then a step."""

    implicit_diff: bool = False

    error_name = 'Gradient Norm'
    problem_function = 'fun'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        options: Any = self
        self._objective = Objective(options.fun, options.value_and_grad, options.has_aux)

    def progress(self, state: Any) -> dict[str, Any]:
        """The value, and the step size where there is one."""
        found = {'Objective Value': state.value}
        return {**found, 'Stepsize': state.stepsize} if hasattr(state, 'stepsize') else found

    def _evaluate(
        self, params: Any, state: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any, Any, Any, Any]:
        check_state(state)
        pre_update: PreUpdate | None = self.pre_update  # type: ignore[attr-defined]
        if pre_update is not None:
            pair = pre_update(params, state, *args, **kwargs)
            if not isinstance(pair, tuple) or len(pair) != 2 or not hasattr(pair[1], 'iter_num'):
                raise TypeError('pre_update must return a pair (params, state), what the step begins with.')
            params, state = pair
        return params, state, *self._objective(params, *args, **kwargs)

    def task(self, init_params: Any, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, at whose end an objective without a lower bound is recognized.

        The error is that before a step.  Where it is within the tolerance, the run ends there, without the step.
        """
        task = super().task(init_params, *args, **kwargs)

        def step(last: OptStep) -> OptStep:
            new = task.step(last)
            return new._replace(params=pick(new.state.error <= self.tol, last.params, new.params))

        def measures(params: Any) -> tuple[Any, Any, Any]:
            value, gradient, _ = self._objective(params, *args, **kwargs)
            found = numbers(value, tree.wide_norm(params), tree.wide_norm(gradient))
            return found[0], found[1], found[2]

        return recognizing_no_bound(task._replace(step=step), measures, self.tol)


def _error(value: Any, gradient: Any) -> tuple[Any, Any]:
    """The objective, and the norm of the gradient, NaN where the objective is not finite."""
    value, error = numbers(value, tree.wide_norm(gradient))
    return value, where(abs(value) < math.inf, error, math.nan)


def _after(state: Any, last: Any, params: Any) -> Any:
    """The state after a step, with tensors for numbers, in the dtypes of the last state."""
    changed = {name: as_before(getattr(state, name), getattr(last, name)) for name in _NUMBERS if hasattr(state, name)}
    return as_tensors(state._replace(**changed), params, keep_none=True)


_NUMBERS = ('error', 'value', 'stepsize')


@tree.safe_to_load
class PolyakSGDState(NamedTuple):
    """State of :class:`PolyakSGD`.

    Attributes:
        iter_num: The number of steps.
        error: The Euclidean norm of the gradient before the last step.
        value: The objective before the last step.
        aux: The auxiliary output of the objective.
        stepsize: The last step size.
        velocity: The last step, None without momentum.
        num_fun_eval: The number of evaluations of the objective.
        num_grad_eval: The number of evaluations of the gradient.
        status: How the run ended; see :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    error: Any
    value: Any
    aux: Any
    stepsize: Any
    velocity: Any
    num_fun_eval: Any = 0
    num_grad_eval: Any = 0
    status: Any = 0


@dataclasses.dataclass(eq=False)
class PolyakSGD(_GradientSteps):
    r"""Stochastic gradient descent with Polyak's step size.

    .. math::
        v_{k+1} = \mu v_k - \eta_k g_k, \quad w_{k+1} = w_k + v_{k+1}, \qquad
        \eta_k = \min\left( \frac{f(w_k) - f^*}{\lVert g_k \rVert^2 + \delta}, \eta_{\max} \right)

    The variant ``'SPS+'`` has :math:`\eta_k = \max(0, f(w_k) - f^*) / \lVert g_k \rVert^2`, and zero for a gradient of
    zero.

    Args:
        fun: The objective, ``fun(params, *args, **kwargs)``.
        value_and_grad: Whether ``fun`` returns the value and the gradient; or a function that does.
        has_aux: Whether ``fun`` returns ``(value, aux)``.
        fun_min: :math:`f^*`, the smallest value of the objective, or a bound on it.
        variant: ``'SPS_max'`` or ``'SPS+'``.
        max_stepsize: :math:`\eta_{\max}`.
        delta: :math:`\delta`.
        momentum: :math:`\mu`.
        pre_update: ``pre_update(params, state, *args, **kwargs)`` returns parameters and state before each step.
        maxiter: The largest number of steps.
        tol: The run ends when the norm of the gradient is at most this.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.PolyakSGD(lambda w: ((w - 3.0) ** 2).sum(), tol=1e-5)
        >>> solver.run(torch.zeros(2)).params
        tensor([3.0000, 3.0000])

    References:
        Loizou et al., `Stochastic Polyak step-size for SGD <https://arxiv.org/abs/2002.10542>`_, 2021.
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    fun_min: Any = 0.0
    variant: str = 'SPS_max'
    max_stepsize: Any = 1.0
    delta: Any = 0.0
    momentum: Any = 0.0
    pre_update: PreUpdate | None = None
    maxiter: int = 500
    tol: float = 1e-3

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.variant not in ('SPS_max', 'SPS+'):
            raise ValueError(f"Invalid variant: {self.variant!r}; expected 'SPS_max' or 'SPS+'.")
        checks.at_least('momentum', self.momentum)

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> PolyakSGDState:
        """The state before the first step."""
        aux = self._objective.auxiliary_at_start(init_params, *args, **kwargs)
        velocity = tree.zeros_like(init_params) if checks.nonzero(self.momentum) else None
        inf = float('inf')
        return as_tensors(PolyakSGDState(0, inf, inf, aux, 1.0, velocity, 1), init_params, keep_none=True)

    def update(self, params: Any, state: PolyakSGDState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        params, state, value, gradient, aux = self._evaluate(params, state, args, kwargs)
        value, error = _error(value, gradient)
        square = error * error
        if self.variant == 'SPS+':
            flat = square == 0.0
            stepsize = where(flat, 0.0, larger(value - self.fun_min, 0.0) / where(flat, 1.0, square))
        else:
            below = square + self.delta
            flat = below == 0.0
            stepsize = where(flat, 0.0, smaller((value - self.fun_min) / where(flat, 1.0, below), self.max_stepsize))
        velocity = None
        if state.velocity is None:
            new = move_along(params, -stepsize, gradient)
        else:
            slowed = tree.scale(self.momentum, state.velocity)
            velocity = move_along(slowed, -stepsize, gradient)
            new = tree.add(params, velocity)
        counts = (state.num_fun_eval + 1, state.num_grad_eval + 1, state.status)
        after = PolyakSGDState(state.iter_num + 1, error, value, aux, stepsize, velocity, *counts)
        return OptStep(new, _after(after, state, params))


@tree.safe_to_load
class ArmijoState(NamedTuple):
    """State of :class:`ArmijoSGD`.

    Attributes:
        iter_num: The number of steps.
        error: The Euclidean norm of the gradient before the last step.
        value: The objective after the search of the last step.
        aux: The auxiliary output of the objective before it.
        stepsize: The last step size.
        velocity: The last step, None without momentum.
        status: How the run ended; see :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    error: Any
    value: Any
    aux: Any
    stepsize: Any
    velocity: Any
    status: Any = 0


@dataclasses.dataclass(eq=False)
class ArmijoSGD(_GradientSteps):
    r"""Stochastic gradient descent with a line search on the loss of each batch.

    A step size is shortened until :math:`f(w - \eta g) \le f(w) - (1 - a)\, \eta\, \lVert g \rVert^2` with the
    aggressiveness :math:`a`; a value that is NaN shortens it too.

    Args:
        fun: The objective, ``fun(params, *args, **kwargs)``.
        value_and_grad: Whether ``fun`` returns the value and the gradient; or a function that does.
        has_aux: Whether ``fun`` returns ``(value, aux)``.
        aggressiveness: :math:`a`, in (0, 1).
        decrease_factor: The factor by which a step size is shortened.
        increase_factor: The factor by which it grows.
        reset_option: The step size with which a search begins: ``'increase'`` takes the last one times
            ``increase_factor``, ``'conservative'`` the last one; ``'goldstein'`` the last one, and lets it grow as long
            as the loss falls by more than :math:`a\, \eta\, \lVert g \rVert^2`.
        momentum: The part of the last step that is added.
        max_stepsize: The largest step size.
        pre_update: ``pre_update(params, state, *args, **kwargs)`` returns parameters and state before each step.
        maxiter: The largest number of steps.
        maxls: The largest number of steps of a search.
        tol: The run ends when the norm of the gradient is at most this.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.ArmijoSGD(lambda w: ((w - 3.0) ** 2).sum())
        >>> params = solver.run(torch.zeros(2)).params
        >>> bool((params - 3.0).abs().max() < 1e-2)
        True

    References:
        Vaswani et al., `Painless stochastic gradient <https://arxiv.org/abs/1905.09997>`_, 2019.
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    aggressiveness: float = 0.9
    decrease_factor: float = 0.8
    increase_factor: float = 1.5
    reset_option: str = 'increase'
    momentum: Any = 0.0
    max_stepsize: Any = 1.0
    pre_update: PreUpdate | None = None
    maxiter: int = 500
    maxls: int = 15
    tol: float = 1e-3

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.reset_option not in ('increase', 'goldstein', 'conservative'):
            raise ValueError(
                f"Invalid reset_option: {self.reset_option!r}; expected 'increase', 'goldstein' or 'conservative'."
            )
        if not 0.0 < self.aggressiveness < 1.0:
            raise ValueError(f'Invalid aggressiveness: {self.aggressiveness!r}; expected a number in (0, 1).')

    def reset_stepsize(self, stepsize: Any) -> Any:
        """The step size with which a search begins, from the last one."""
        if self.reset_option != 'increase':
            return stepsize
        return smaller(stepsize * self.increase_factor, self.max_stepsize)

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> ArmijoState:
        """The state before the first step."""
        aux = self._objective.auxiliary_at_start(init_params, *args, **kwargs)
        velocity = tree.zeros_like(init_params) if checks.nonzero(self.momentum) else None
        inf = float('inf')
        return as_tensors(ArmijoState(0, inf, inf, aux, self.max_stepsize, velocity), init_params, keep_none=True)

    def update(self, params: Any, state: ArmijoState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        params, state, value, gradient, aux = self._evaluate(params, state, args, kwargs)
        value, error = _error(value, gradient)
        square, guess = numbers(inner_product(gradient, gradient), state.stepsize)
        coefficient = 1.0 - self.aggressiveness
        # Rounding blurs the decrease; it must not refuse a step for ever.
        noise = abs(value) * torch.finfo(next((x.dtype for x in tree.leaves(params)), torch.float32)).eps

        def at(stepsize: Any) -> tuple[Any, Any]:
            new = move_along(params, -stepsize, gradient)
            return new, numbers(self._objective.value(new, *args, **kwargs)[0])[0]

        def too_long(stepsize: Any, new_value: Any) -> Any:
            enough = stepsize * coefficient * square <= value - new_value + noise
            return where(enough, False, True)

        def step(last: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
            stepsize, new, new_value, _ = last
            long = too_long(stepsize, new_value)
            short: Any = False
            if self.reset_option == 'goldstein':
                falls = new_value < value - stepsize * self.aggressiveness * square
                short = falls & where(long, False, True) & (stepsize < self.max_stepsize)
            factor = where(long, self.decrease_factor, where(short, self.increase_factor, 1.0))
            stepsize = as_before(smaller(stepsize * factor, self.max_stepsize), guess)
            again = long | short
            new, new_value = at(stepsize) if again is not False else (new, new_value)
            return stepsize, new, new_value, again

        guess = self.reset_stepsize(guess)
        stepsize, new, new_value, _ = while_loop(lambda x: x[-1], step, (guess, *at(guess), True), self.maxls)
        velocity = None
        if state.velocity is not None:
            new = tree.add(new, tree.scale(self.momentum, state.velocity))
            velocity = tree.sub(new, params)
        after = ArmijoState(state.iter_num + 1, error, new_value, aux, stepsize, velocity, state.status)
        return OptStep(new, _after(after, state, params))


@tree.safe_to_load
class OptaxState(NamedTuple):
    """State of :class:`OptaxSolver`.

    Attributes:
        iter_num: The number of steps.
        value: The objective before the last step.
        error: The Euclidean norm of the gradient there.
        internal_state: The state of the optimizer.
        aux: The auxiliary output of the objective.
        status: How the run ended; see :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    value: Any
    error: Any
    internal_state: Any
    aux: Any
    status: Any = 0


@dataclasses.dataclass(eq=False)
class OptaxSolver(_GradientSteps):
    """Minimize a function by any optimizer.

    Args:
        fun: The objective, ``fun(params, *args, **kwargs)``.
        opt: A gradient transformation, such as ``torchopt.adam(1e-3)``; or a function that makes an optimizer of
            ``torch.optim``, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``, whose runs can neither be batched
            nor be differentiated through their steps.  A transformation gets ``value``, ``grad`` and ``value_fn`` as
            extra arguments.
        value_and_grad: Whether ``fun`` returns the value and the gradient; or a function that does.
        pre_update: ``pre_update(params, state, *args, **kwargs)`` returns parameters and state before each step.
        maxiter: The largest number of steps.
        tol: The run ends when the norm of the gradient is at most this.
        has_aux: Whether ``fun`` returns ``(value, aux)``.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.OptaxSolver(lambda w: ((w - 3.0) ** 2).sum(), torchopt.adam(0.3), maxiter=300)
        >>> params = solver.run(torch.zeros(2)).params
        >>> bool((params - 3.0).abs().max() < 1e-2)
        True
    """

    fun: Callable[..., Any]
    opt: Any
    value_and_grad: bool | Callable[..., Any] = False
    pre_update: PreUpdate | None = None
    maxiter: int = 500
    tol: float = 1e-3
    _: KW_ONLY
    has_aux: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if isinstance(self.opt, GradientTransformation):
            self._steps: Any = with_extra_args_support(self.opt)
        elif hasattr(self.opt, 'init') and hasattr(self.opt, 'update'):
            self._steps = with_extra_args_support(GradientTransformation(self.opt.init, self.opt.update))
        elif callable(self.opt):
            self._steps = _TorchOptimizer(self.opt)
        else:
            raise TypeError(
                f'Invalid opt: {kind_of(self.opt)}; expected a gradient transformation, or a function that '
                f'makes an optimizer of torch.optim from a list of parameters.'
            )

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> OptaxState:
        """The state before the first step."""
        aux = self._objective.auxiliary_at_start(init_params, *args, **kwargs)
        internal = self._steps.init(init_params)
        inf = float('inf')
        return as_tensors(OptaxState(zero_count(), inf, inf, internal, aux), init_params, keep_none=True)

    def update(self, params: Any, state: OptaxState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        params, state, value, gradient, aux = self._evaluate(params, state, args, kwargs)
        if isinstance(self._steps, _TorchOptimizer):
            new, internal = self._steps.step(gradient, state.internal_state, params)
        else:
            updates, internal = self._steps.update(
                gradient,
                state.internal_state,
                params,
                value=value,
                grad=gradient,
                value_fn=lambda x: self._objective.value(x, *args, **kwargs)[0],
            )
            new = apply_updates(params, updates, inplace=False)
        value, error = _error(value, gradient)
        after = OptaxState(state.iter_num + 1, value, error, internal, aux, state.status)
        return OptStep(new, _after(after, state, params))


class _TorchOptimizer:
    """The steps of an optimizer of ``torch.optim``, without effect on what they are given."""

    def __init__(self, make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> None:
        self.make = make

    def init(self, params: Any) -> torch.optim.Optimizer:
        """An optimizer of copies of the parameters."""
        own: list[Tensor] = [torch.nn.Parameter(x.detach().clone()) for x in tree.leaves(params)]
        optimizer = self.make(own)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f'opt made {kind_of(optimizer)}; expected an optimizer of torch.optim.')
        if isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError('torch.optim.LBFGS evaluates the objective itself; use torchopt.LBFGS instead.')
        return optimizer

    def step(self, gradient: Any, state: torch.optim.Optimizer, params: Any) -> tuple[Any, torch.optim.Optimizer]:
        """The new parameters, and a copy of the optimizer after the step."""
        leaves, spec = tree.flatten(params)
        gradients = tree.flatten_up_to(spec, gradient, name='the gradient', like='params')
        if in_transform() or any(g is not None and g.requires_grad for g in gradients):
            raise RuntimeError(
                'An optimizer of torch.optim can neither be batched nor differentiated. Pass a transformation, such as '
                'torchopt.adam(1e-3), or set implicit_diff=True.'
            )
        state = copy.deepcopy(state)
        own = iter([p for group in state.param_groups for p in group['params']])
        new = []
        with torch.no_grad():
            pairs = [(x, g, None if x is None else next(own)) for x, g in zip(leaves, gradients)]
            for x, g, p in pairs:
                if p is not None:
                    p.copy_(x)
                    p.grad = g
            state.step()
            new = [None if p is None else p.detach().clone() for _, _, p in pairs]
        state.zero_grad()
        return tree.unflatten(spec, new), state
