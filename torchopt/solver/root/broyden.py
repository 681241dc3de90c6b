# SPDX-License-Identifier: Apache-2.0
"""Broyden's method for systems of equations."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchopt import checks
from torchopt.levels import is_readable
from torchopt.linesearch import backtracking
from torchopt.norms import norm_in_double
from torchopt.scalars import numbers, smaller, where
from torchopt.solver.arguments import check_state
from torchopt.solver.auxiliary import split_aux
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.objective import Vectors
from torchopt.solver.run import params_of
from torchopt.solver.status import Status

__all__ = ['Broyden', 'BroydenState']


class BroydenState(NamedTuple):
    """The state of :class:`Broyden`.

    Attributes:
        iter_num: The number of steps.
        value: The value of the function, a tree like the parameters.
        stepsize: The last step size.
        error: The Euclidean norm of the value.
        d_history: The right factors of the approximate inverse Jacobian, a tree like the parameters with one more
            dimension in front.
        c_history: The left factors, likewise.
        gamma: The inverse Jacobian before the first step, as a multiple of the identity.
        aux: The auxiliary output.
        failed_linesearch: Whether the last line search failed.
        num_fun_eval: How often the function was called.
        num_linesearch_iter: How many trials all line searches made.
        status: How the run ended.
    """

    iter_num: Any
    value: Any
    stepsize: Any
    error: Any
    d_history: Any
    c_history: Any
    gamma: Any
    aux: Any
    failed_linesearch: Any
    num_fun_eval: Any
    num_linesearch_iter: Any
    status: Any


class _Inverse(NamedTuple):
    r"""An approximate inverse Jacobian, :math:`H = \gamma I + C^\top D`, its factors as rows."""

    gamma: Any
    c: Tensor
    d: Tensor

    def times(self, v: Tensor) -> Tensor:
        """:math:`H v`."""
        return self.gamma * v + (self.d @ v) @ self.c

    def transposed_times(self, v: Tensor) -> Tensor:
        r""":math:`H^\top v`."""
        return self.gamma * v + (self.c @ v) @ self.d

    def updated(self, position: Any, step: Tensor, change: Tensor, is_used: Any) -> _Inverse:
        r"""The inverse that maps the change of the function to the step, and is else as it was.

        .. math:: H \leftarrow H + \frac{(s - H y)\, s^\top H}{s^\top H y}

        Where the divisor is zero, or nothing moved, there is no such inverse, and it stays.
        """
        v = self.transposed_times(step)
        divisor = v.dot(change)
        floor = torch.finfo(v.dtype).eps * torch.linalg.vector_norm(v) * torch.linalg.vector_norm(change)
        regular = (divisor.abs() > floor) & is_used
        d = torch.where(regular, v / torch.where(regular, divisor, 1.0), 0.0)
        c = torch.where(regular, step - self.times(change), 0.0)
        at = (torch.arange(len(self.c), device=v.device) == position)[:, None]
        return self._replace(c=torch.where(at, c, self.c), d=torch.where(at, d, self.d))


@dataclasses.dataclass(eq=False)
class Broyden(IterativeSolver):
    r"""Broyden's method for systems of equations, :math:`F(x) = 0`.

    .. math:: x \leftarrow x - \eta\, H F(x)

    It needs values of the function only.  :math:`H`, the approximate inverse of the Jacobian, begins as
    :math:`\gamma I` and is changed after each step, by a matrix of rank one, so that it maps the last change of
    :math:`F` to the last step.  Of these matrices the last ``history_size`` are kept.

    The line search shortens steps by ``decrease_factor`` until they decrease :math:`\|F\|^2` by a small part of what
    they would if :math:`H` were exact.  Where none does, it takes the shortest, from which :math:`H` learns, and the
    next search begins with ``max_stepsize``.  A value that is not finite shortens the step.

    Args:
        fun: ``fun(params, *args, **kwargs)`` returns a tree like ``params``.
        has_aux: Whether it returns a pair, its value and auxiliary output.
        maxiter: The largest number of steps.
        tol: The run ends when the Euclidean norm of the value is at most this.
        stepsize: The step size, a positive number, or a function of the number of steps; if it is zero or negative, a
            line search finds it.
        linesearch: ``'backtracking'``.
        stop_if_linesearch_fails: Whether the run ends where no length is enough.
        condition: Accepted for code written for JAXopt; the search compares values only.
        maxls: The largest number of trials of a line search.
        decrease_factor: By what a step is shortened, in (0, 1).
        increase_factor: A search begins with this times the last step size.
        max_stepsize: The longest step size.
        min_stepsize: A search whose first trial would be below this begins with ``max_stepsize``.
        history_size: How many changes of :math:`H` are kept; ``maxiter`` if None.
        gamma: :math:`\gamma`.  It should have the sign, and about the size, of the inverse of :math:`F'`.

    Raises:
        TypeError: If ``fun`` is not a function.
        ValueError: If an option is out of range, or ``fun`` returns a tree unlike the parameters.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.Broyden(lambda x, a: x + 0.5 * torch.sin(x.flip(0)) - a, tol=1e-6)
        >>> a = torch.tensor([1.0, 2.0])
        >>> x, state = solver.run(torch.zeros(2), a)
        >>> torch.allclose(x + 0.5 * torch.sin(x.flip(0)), a, atol=1e-5)
        True

    References:
        Broyden, *A class of methods for solving nonlinear simultaneous equations*, 1965.
    """

    fun: Callable[..., Any]
    has_aux: bool = False
    maxiter: int = 500
    tol: float = 1e-3
    stepsize: Any = 0.0
    linesearch: str = 'backtracking'
    stop_if_linesearch_fails: bool = False
    condition: str = 'wolfe'
    maxls: int = 15
    decrease_factor: float = 0.8
    increase_factor: float = 1.5
    max_stepsize: float = 1.0
    min_stepsize: float = 1e-6
    history_size: int | None = None
    gamma: float = 1.0

    error_name = 'Norm of the value'

    continues_from: ClassVar[tuple[type, ...]] = (BroydenState,)

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        checks.function('fun', self.fun)
        if self.linesearch != 'backtracking':
            raise ValueError(f"Invalid linesearch: {self.linesearch!r}; expected 'backtracking'.")
        if not 0.0 < self.decrease_factor < 1.0:
            raise ValueError(f'Invalid decrease_factor: {self.decrease_factor}; expected a number in (0, 1).')
        for name in ('increase_factor', 'max_stepsize'):
            checks.positive(name, getattr(self, name))
        if not checks.nonzero(self.gamma):
            raise ValueError('Invalid gamma: 0; expected a nonzero number, about the inverse of the derivative of fun.')
        if self.history_size is None:
            self.history_size = max(self.maxiter, 1)
        for name in ('history_size', 'maxls'):
            checks.integer(name, getattr(self, name), 1)
        self._searches = not callable(self.stepsize) and self.stepsize <= 0

    @property
    def reference_signature(self) -> Callable[..., Any] | inspect.Signature:
        """The function."""
        return self.fun

    def _value(self, vectors: Vectors, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
        value, aux = split_aux(self.fun(vectors.unpack(x), *args, **kwargs), self.has_aux, 'fun')
        return vectors.pack(value, 'the result of fun'), aux

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> BroydenState:
        """The state before the first step; with an :class:`OptStep`, the inverse Jacobian of its state is kept."""
        params = params_of(init_params)
        vectors = Vectors(params)
        x = vectors.pack(params)
        value, aux = self._value(vectors, x, args, kwargs)
        (error,) = numbers(norm_in_double(value))
        assert self.history_size is not None
        empty = vectors.unpack(x.new_zeros(self.history_size, x.numel()))
        state = BroydenState(
            0,
            vectors.unpack(value),
            self.max_stepsize,
            error,
            empty,
            empty,
            self.gamma,
            aux,
            False,
            1,
            0,
            int(Status.RUNNING),
        )
        if isinstance(init_params, OptStep):
            kept = ('iter_num', 'stepsize', 'd_history', 'c_history', 'gamma')
            state = state._replace(**{name: getattr(init_params.state, name) for name in kept})
        return state

    def update(self, params: Any, state: BroydenState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        check_state(state)
        params = params_of(params)
        vectors = Vectors(params)
        x, value = vectors.pack(params), vectors.pack(state.value)
        inverse = _Inverse(state.gamma, vectors.pack_rows(state.c_history), vectors.pack_rows(state.d_history))
        direction = -inverse.times(value)
        at: dict[str, Any] = {}  # the last trial

        def squared_norm(stepsize: Any) -> Any:
            at['x'] = x + stepsize * direction
            at['value'], at['aux'] = self._value(vectors, at['x'], args, kwargs)
            return numbers(at['value'].dot(at['value']))[0]

        failed: Any = False
        trials: Any = 0
        if self._searches:
            guess = state.stepsize * self.increase_factor
            restart = (guess <= self.min_stepsize) | state.failed_linesearch
            guess = where(restart, self.max_stepsize, smaller(guess, self.max_stepsize))
            before = state.error * state.error
            found = backtracking(
                squared_norm,
                before,
                -2.0 * before,
                guess,
                limit=self.maxls,
                decrease_factor=self.decrease_factor,
            )
            stepsize, failed, trials = found.stepsize, found.running, found.steps
            status = where(failed & self.stop_if_linesearch_fails, int(Status.STALLED), state.status)
        else:
            stepsize = self.stepsize(state.iter_num) if callable(self.stepsize) else self.stepsize
            status = state.status
        if not (self._searches and is_readable(stepsize)):
            squared_norm(stepsize)
        new_x, new_value, aux = at['x'], at['value'], at['aux']
        (error,) = numbers(norm_in_double(new_value))
        inverse = inverse.updated(state.iter_num % len(inverse.c), new_x - x, new_value - value, error < math.inf)
        new_state = BroydenState(
            state.iter_num + 1,
            vectors.unpack(new_value),
            stepsize,
            error,
            vectors.unpack(inverse.d),
            vectors.unpack(inverse.c),
            state.gamma,
            aux,
            failed,
            state.num_fun_eval + (trials if self._searches else 1),
            state.num_linesearch_iter + trials,
            status,
        )
        return OptStep(vectors.unpack(new_x), new_state)

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The function, without auxiliary output."""
        return split_aux(self.fun(params_of(params), *args, **kwargs), self.has_aux, 'fun')[0]

    def progress(self, state: BroydenState) -> dict[str, Any]:
        """The step size."""
        return {'Step size': state.stepsize}
