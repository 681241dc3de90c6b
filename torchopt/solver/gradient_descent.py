# SPDX-License-Identifier: Apache-2.0
"""Gradient descent, accelerated or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torchopt.solver.forward_backward import ForwardBackward

__all__ = ['GradientDescent']


@dataclasses.dataclass(eq=False)
class GradientDescent(ForwardBackward):
    r"""Minimize a smooth function by gradient descent, with Nesterov's acceleration.

    .. math::
        w_{k+1} = z_k - \eta_k \nabla f(z_k), \qquad
        z_{k+1} = w_{k+1} + \frac{t_k - 1}{t_{k+1}} (w_{k+1} - w_k), \qquad
        t_{k+1} = \frac{1 + \sqrt{1 + 4 t_k^2}}{2}

    The step size is shortened until
    :math:`f(w_{k+1}) \le f(z_k) - \frac{\eta_k}{2} \lVert \nabla f(z_k) \rVert^2`, and grows again from step to step.
    If none is short enough after ``maxls`` trials, the parameters stay as they are, and the next step goes on.

    Args:
        fun: The objective, ``fun(params, *args, **kwargs)``.
        value_and_grad: Whether ``fun`` returns the value and the gradient; or a function that does.
        has_aux: Whether ``fun`` returns ``(value, aux)``.
        stepsize: A constant step size, or a function of the number of the step; if it is at most 0, there is a line
            search.
        maxiter: The largest number of steps.
        maxls: The largest number of trials of a search.
        tol: The run ends when the length of a step, divided by its size, is at most this.
        acceleration: Whether to accelerate; otherwise :math:`z_k = w_k`.
        decrease_factor: The factor by which steps are shortened.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.GradientDescent(lambda x: (x - 3.0) ** 2, stepsize=0.5)
        >>> solver.run(torch.tensor(0.0)).params
        tensor(3.)

    References:
        Beck and Teboulle, `A fast iterative shrinkage-thresholding algorithm <https://doi.org/10.1137/080716542>`_,
        2009.
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    stepsize: float | Callable[[Any], Any] = 0.0
    maxiter: int = 500
    maxls: int = 15
    tol: float = 1e-3
    acceleration: bool = True
    decrease_factor: float = 0.5

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The gradient of the objective."""
        return self._objective.gradient(params, *args, **kwargs)

    def _apply_prox(self, params: Any, hyperparams: Any, stepsize: Any) -> Any:
        return params
