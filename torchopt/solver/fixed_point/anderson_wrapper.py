# SPDX-License-Identifier: Apache-2.0
"""Anderson acceleration of another solver."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt import tree
from torchopt.kinds import kind_of
from torchopt.loop import cond
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.fixed_point.anderson import History, check_mixing, mixes
from torchopt.solver.objective import Vectors
from torchopt.solver.run import as_before


class AndersonWrapperState(NamedTuple):
    """The state of :class:`AndersonWrapper`.

    Attributes:
        iter_num: The number of steps.
        solver_state: The state of the solver.
        error: That of the solver.
        params_history: Where the last steps began, a tree like the parameters with one more dimension in front.
        residuals_history: The last steps, likewise.
        residual_gram: Their inner products, a matrix.
        status: How the run ended.
    """

    iter_num: Any
    solver_state: Any
    error: Any
    params_history: Any
    residuals_history: Any
    residual_gram: Any
    status: Any


@dataclasses.dataclass(eq=False)
class AndersonWrapper(IterativeSolver):
    r"""Anderson acceleration of the steps of a solver, as if they were a fixed-point iteration.

    Every ``mixing_frequency`` steps it combines the last iterates as :class:`~torchopt.AndersonAcceleration` does, and
    starts the solver again from there.  ``maxiter`` and ``tol`` are those of the solver.

    Args:
        solver: The solver, with ``init_state``, ``update`` and ``optimality_fun``.
        history_size: How many iterates are combined, at least 2.
        mixing_frequency: How often; every ``history_size`` steps if None.
        beta: By how much of their steps the combined iterates are moved on.
        ridge: The regularization of the weights.

    Raises:
        TypeError: If ``solver`` is not an iterative solver.
        ValueError: If an option is out of range.

    Example:
        >>> import torch, torchopt
        >>> A = torch.diag(torch.tensor([1.0, 0.02]))
        >>> solver = torchopt.FixedPointIteration(lambda x: x - A @ x, maxiter=100)
        >>> solver.run(torch.ones(2)).params
        tensor([0.0000, 0.1326])
        >>> params = torchopt.AndersonWrapper(solver, history_size=3, ridge=1e-8).run(torch.ones(2)).params
        >>> bool(params.norm() < 0.02)
        True
    """

    solver: IterativeSolver
    history_size: int = 5
    mixing_frequency: int | None = None
    beta: float = 1.0
    ridge: float = 1e-5
    maxiter: int = dataclasses.field(init=False)
    tol: float = dataclasses.field(init=False)

    error_name = 'Error of the solver'

    def __post_init__(self) -> None:
        """Check the options."""
        if not isinstance(self.solver, IterativeSolver):
            raise TypeError(f'Invalid solver: {kind_of(self.solver)}; expected an IterativeSolver.')
        self.maxiter, self.tol = self.solver.maxiter, self.solver.tol
        if self.mixing_frequency is None:
            self.mixing_frequency = self.history_size
        super().__post_init__()
        check_mixing(self.history_size, self.mixing_frequency, self.ridge)

    @property
    def stop_tol(self) -> Any:
        """What ``state.error`` is compared with."""
        return self.solver.stop_tol

    @functools.cached_property
    def reference_signature(self) -> Callable[..., Any] | inspect.Signature:
        """That of the solver."""
        return self.solver.reference_signature

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> AndersonWrapperState:
        """The state before the first step."""
        inner = self.solver.init_state(init_params, *args, **kwargs)
        vectors = Vectors(init_params)
        history = History.before(vectors.pack(init_params), self.history_size)
        return _as_state(0, inner, history, vectors)

    def update(self, params: Any, state: AndersonWrapperState, *args: Any, **kwargs: Any) -> OptStep:
        """One step of the solver, from a combination of the last iterates where it is due."""
        vectors = Vectors(params)
        history = History.of(state, vectors)

        def combined() -> tuple[Any, Any]:
            start = vectors.unpack(history.mixed(self.ridge, self.beta, vectors.pack(params)))
            return start, self.solver.init_state(start, *args, **kwargs)

        assert self.mixing_frequency is not None
        due = mixes(state.iter_num, self.history_size, self.mixing_frequency)
        start, inner = cond(due, combined, lambda: (params, state.solver_state))
        new, inner = self.solver.update(start, inner, *args, **kwargs)
        inner = tree.map(as_before, inner, state.solver_state)
        x = vectors.pack(start)
        history = history.pushed(state.iter_num % self.history_size, x, vectors.pack(new) - x)
        return OptStep(new, _as_state(state.iter_num + 1, inner, history, vectors))

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """That of the solver."""
        return self.solver.optimality_fun(params, *args, **kwargs)


def _as_state(iter_num: Any, inner: Any, history: History, vectors: Vectors) -> AndersonWrapperState:
    params, residuals = vectors.unpack(history.params), vectors.unpack(history.residuals)
    return AndersonWrapperState(iter_num, inner, inner.error, params, residuals, history.gram, inner.status)
