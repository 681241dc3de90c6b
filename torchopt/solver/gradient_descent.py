# SPDX-License-Identifier: Apache-2.0
"""Gradient descent, accelerated or not."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.proximal import ProximalGradient
from torchopt.solver.proximal.gradient import ProxGradState
from torchopt.solver.run import Task


@dataclasses.dataclass(eq=False)
class GradientDescent(ProximalGradient):
    r"""Minimize a smooth function by gradient descent, with Nesterov's acceleration.

    .. math:: w_{k+1} = z_k - \eta_k \nabla f(z_k), \qquad z_{k+1} = w_{k+1} + \beta_k (w_{k+1} - w_k)

    This is :class:`ProximalGradient` without a second function: the step size, the acceleration and all arguments are
    described there.  ``run(init_params, *args)`` takes the data of ``fun`` directly after the parameters.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.GradientDescent(lambda x: (x - 3.0) ** 2, stepsize=0.5)
        >>> solver.run(torch.tensor(0.0)).params
        tensor(3.)

    References:
        Nesterov, *A method of solving a convex programming problem with convergence rate* :math:`O(1/k^2)`, 1983.
    """

    second_argument: ClassVar[str | None] = None

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> ProxGradState:
        """The state before the first step."""
        return super().init_state(init_params, None, *args, **kwargs)

    def update(self, params: Any, state: ProxGradState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        return super().update(params, state, None, *args, **kwargs)

    def task(self, init_params: Any, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, at whose end an objective without a lower bound is recognized."""
        return self._task(init_params, None, args, kwargs)

    def run(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        """Minimize; see :meth:`torchopt.solver.IterativeSolver.run`."""
        return IterativeSolver.run(self, init_params, *args, **kwargs)

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """The gradient of the objective."""
        return self._objective.gradient(params, *args, **kwargs)
