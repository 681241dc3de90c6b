# SPDX-License-Identifier: Apache-2.0
"""Gradient descent."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from torchopt import tree
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.objective import Objective

__all__ = ['GradientDescent']


class GradientDescentState(NamedTuple):
    """The state of :class:`GradientDescent`."""

    iter_num: Any
    error: Any
    stepsize: Any
    aux: Any
    status: Any


@dataclasses.dataclass(eq=False)
class GradientDescent(IterativeSolver):
    """Gradient descent with a constant step size.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.GradientDescent(lambda x: (x - 3.0) ** 2, stepsize=0.5)
        >>> solver.run(torch.tensor(0.0)).params
        tensor(3.)
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    stepsize: float = 0.1
    maxiter: int = 500
    tol: float = 1e-3

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self._objective = Objective(self.fun, self.value_and_grad, self.has_aux)

    @property
    def reference_signature(self) -> Callable[..., Any] | inspect.Signature:
        """The objective, whose arguments :meth:`optimality_fun` has too."""
        return self.fun

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> GradientDescentState:
        """The state before the first step."""
        value, _, aux = self._objective(init_params, *args, **kwargs)
        like = value.detach()
        return GradientDescentState(
            torch.zeros((), dtype=torch.int64), torch.full_like(like, float('inf')), self.stepsize, aux, 0
        )

    def update(self, params: Any, state: GradientDescentState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        _, gradient, aux = self._objective(params, *args, **kwargs)
        new = tree.map(lambda p, g: p - self.stepsize * g, params, gradient)
        return OptStep(
            new, GradientDescentState(state.iter_num + 1, tree.norm(gradient), self.stepsize, aux, state.status)
        )

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The gradient of the objective."""
        return self._objective.gradient(params, *args, **kwargs)
