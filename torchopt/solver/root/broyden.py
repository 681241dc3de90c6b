# SPDX-License-Identifier: Apache-2.0
"""Broyden's method for systems of equations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchopt import checks
from torchopt.levels import is_readable
from torchopt.linesearch import backtracking
from torchopt.norms import norm_in_double
from torchopt.numerics import as_python_scalar
from torchopt.scalars import numbers, smaller, where
from torchopt.solver.arguments import check_state, split_aux
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.objective import Vectors
from torchopt.solver.problem import may_write
from torchopt.solver.run import Task, params_of
from torchopt.solver.status import Status


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

    def correction(self, step: Tensor, change: Tensor, is_used: Any) -> tuple[Tensor, Tensor]:
        r"""The rows that make it map the change :math:`y` of the function to the step :math:`s`.

        .. math:: H \leftarrow H + \frac{(s - H y)\, s^\top H}{s^\top H y}

        They are zero where there is no such inverse: the divisor is zero, or nothing moved.
        """
        v = self.transposed_times(step)
        divisor = v.dot(change)
        floor = torch.finfo(v.dtype).eps * torch.linalg.vector_norm(v) * torch.linalg.vector_norm(change)
        regular = (divisor.abs() > floor) & is_used
        d = torch.where(regular, v / torch.where(regular, divisor, 1.0), 0.0)
        return torch.where(regular, step - self.times(change), 0.0), d


def _with_row(history: Tensor, position: Any, row: Tensor, in_place: bool) -> Tensor:
    if in_place:
        history[position] = row
        return history
    return torch.where((torch.arange(len(history), device=row.device) == position)[:, None], row, history)


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
    problem_function = 'fun'

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

    def _value(self, vectors: Vectors, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
        value, aux = split_aux(self.fun(vectors.unpack(x), *args, **kwargs), self.has_aux, 'fun')
        return vectors.pack(value, 'the result of fun'), aux

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> BroydenState:
        """The state before the first step; with an :class:`OptStep`, the inverse Jacobian of its state is kept."""
        vectors = Vectors(params_of(init_params))
        return _of_trees(self._begin(vectors, init_params, args, kwargs), vectors)

    def update(self, params: Any, state: BroydenState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        check_state(state)
        params = params_of(params)
        vectors = Vectors(params)
        start = OptStep(vectors.pack(params), _of_vectors(state, vectors))
        x, state = self._step(vectors, start, args, kwargs)
        return OptStep(vectors.unpack(x), _of_trees(state, vectors))

    def task(self, init_params: Any, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, on vectors."""
        params = params_of(init_params)
        vectors = Vectors(params)
        start = OptStep(vectors.pack(params), self._begin(vectors, init_params, args, kwargs))
        # A callback may keep the states that it gets.
        in_place = may_write(start.state.value) and self.callback is None

        def finish(last: OptStep) -> OptStep:
            return OptStep(vectors.unpack(last.params), _of_trees(last.state, vectors))

        return Task(start, lambda last: self._step(vectors, last, args, kwargs, in_place), finish)

    def _begin(self, vectors: Vectors, init_params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BroydenState:
        x = vectors.pack(params_of(init_params))
        value, aux = self._value(vectors, x, args, kwargs)
        (error,) = numbers(norm_in_double(value))
        assert self.history_size is not None
        c, d = (x.new_zeros(self.history_size, x.numel()) for _ in range(2))
        running = int(Status.RUNNING)
        state = BroydenState(0, value, self.max_stepsize, error, d, c, self.gamma, aux, False, 1, 0, running)
        if isinstance(init_params, OptStep):
            last = _of_vectors(init_params.state, vectors)
            c, d = last.c_history.clone(), last.d_history.clone()
            kept = {name: getattr(last, name) for name in ('iter_num', 'stepsize', 'gamma')}
            state = state._replace(c_history=c, d_history=d, **kept)
        return state

    def _step(
        self, vectors: Vectors, last: OptStep, args: tuple[Any, ...], kwargs: dict[str, Any], in_place: bool = False
    ) -> OptStep:
        x, state = last
        count, size = as_python_scalar(state.iter_num), len(state.c_history)
        used = slice(None if count is None else min(int(count), size))  # the other rows are zero
        inverse = _Inverse(state.gamma, state.c_history[used], state.d_history[used])
        direction = -inverse.times(state.value)
        at: dict[str, Any] = {}  # the last trial

        def relative_square(stepsize: Any) -> Any:
            at['x'] = x + stepsize * direction
            at['value'], at['aux'] = self._value(vectors, at['x'], args, kwargs)
            (at['error'],) = numbers(norm_in_double(at['value']))
            ratio = at['error'] / where(state.error > 0.0, state.error, 1.0)
            return ratio * ratio

        failed: Any = False
        trials: Any = 0
        status = state.status
        if self._searches:
            guess = state.stepsize * self.increase_factor
            restart = (guess <= self.min_stepsize) | state.failed_linesearch
            guess = where(restart, self.max_stepsize, smaller(guess, self.max_stepsize))
            shorter = self.decrease_factor
            found = backtracking(relative_square, 1.0, -2.0, guess, limit=self.maxls, decrease_factor=shorter)
            stepsize, failed, trials = found.stepsize, found.running, found.steps
            status = where(failed & self.stop_if_linesearch_fails, int(Status.STALLED), status)
        else:
            stepsize = self.stepsize(state.iter_num) if callable(self.stepsize) else self.stepsize
        if not (self._searches and is_readable(stepsize)):
            relative_square(stepsize)
        c, d = inverse.correction(at['x'] - x, at['value'] - state.value, at['error'] < math.inf)
        position = state.iter_num % size
        new_state = BroydenState(
            state.iter_num + 1,
            at['value'],
            stepsize,
            at['error'],
            _with_row(state.d_history, position, d, in_place),
            _with_row(state.c_history, position, c, in_place),
            state.gamma,
            at['aux'],
            failed,
            state.num_fun_eval + (trials if self._searches else 1),
            state.num_linesearch_iter + trials,
            status,
        )
        return OptStep(at['x'], new_state)

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The function, without auxiliary output."""
        return split_aux(self.fun(params_of(params), *args, **kwargs), self.has_aux, 'fun')[0]

    def progress(self, state: BroydenState) -> dict[str, Any]:
        """The step size."""
        return {'Step size': state.stepsize}


def _of_trees(state: BroydenState, vectors: Vectors) -> BroydenState:
    """A state of vectors as users see it."""
    return state._replace(
        value=vectors.unpack(state.value),
        d_history=vectors.unpack(state.d_history),
        c_history=vectors.unpack(state.c_history),
    )


def _of_vectors(state: BroydenState, vectors: Vectors) -> BroydenState:
    return state._replace(
        value=vectors.pack(state.value),
        d_history=vectors.pack_rows(state.d_history),
        c_history=vectors.pack_rows(state.c_history),
    )
