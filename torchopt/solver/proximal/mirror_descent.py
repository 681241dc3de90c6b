# SPDX-License-Identifier: Apache-2.0
"""Mirror descent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torchopt.levels import eager
from torchopt.solver.arguments import check_state
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.objective import Objective
from torchopt.solver.proximal.composite import (
    PLAIN,
    confirmed,
    count_and_error,
    defined,
    measures_of,
    minus,
    plus,
    stepsize_at,
)
from torchopt.solver.run import Task, as_before
from torchopt.solver.unbounded import recognizing_no_bound


class MirrorDescentState(NamedTuple):
    """The state of :class:`MirrorDescent`.

    Attributes:
        iter_num: The number of steps.
        error: The length of the last step, divided by its step size.
        aux: The auxiliary output of the objective.
        num_fun_eval: How often the objective was evaluated.
        num_grad_eval: How often its gradient was.
        num_proj_eval: How often the projection was.
        status: How the run ended, a :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    error: Any
    aux: Any = None
    num_fun_eval: Any = 0
    num_grad_eval: Any = 0
    num_proj_eval: Any = 0
    status: Any = 0


@dataclasses.dataclass(eq=False)
class MirrorDescent(IterativeSolver):
    r"""Mirror descent: gradient steps in the geometry of a mirror map :math:`\phi`.

    .. math:: x_{k+1} = P\bigl(\phi(x_k) - \eta_k \nabla f(x_k)\bigr)

    With the logarithm as the map and the softmax as the projection :math:`P`, it is the method of exponentiated
    gradients on the simplex of probabilities; with the identity and a Euclidean projection, projected gradient descent.

    The run ends when :math:`\|x_{k+1} - x_k\|_2 / \eta_k` is at most ``tol``.

    Args:
        fun: ``fun(params, *args, **kwargs)``, the objective.
        projection_grad: ``projection_grad(params, gradient, stepsize, hyperparams_proj)``, the next point; see
            :meth:`make_projection_grad`.
        stepsize: The step size, a number or a function of the number of steps.
        maxiter: The largest number of steps.
        tol: The tolerance.
        has_aux: Whether ``fun`` returns a pair, the value and auxiliary output.

    Example:
        >>> import torch, torchopt
        >>> def projection(y, hyperparams):
        ...     return torch.softmax(y, -1)
        >>> update = torchopt.MirrorDescent.make_projection_grad(projection, torch.log)
        >>> def fun(w, target):
        ...     return 0.5 * ((w - target) ** 2).sum()
        >>> solver = torchopt.MirrorDescent(fun, update, stepsize=1.0, tol=1e-6)
        >>> solver.run(torch.full((3,), 1 / 3), None, torch.tensor([0.5, 0.3, 0.2])).params.round(decimals=3)
        tensor([0.5000, 0.3000, 0.2000])

    References:
        Beck and Teboulle, `Mirror descent and nonlinear projected subgradient methods for convex optimization
        <https://doi.org/10.1016/S0167-6377(02)00231-6>`_, 2003.
    """

    fun: Callable[..., Any]
    projection_grad: Callable[..., Any]
    stepsize: float | Callable[[Any], Any]
    maxiter: int = 500
    tol: float = 1e-2
    _: dataclasses.KW_ONLY
    has_aux: bool = False

    error_name = 'Length of the step / step size'
    problem_function, second_argument = 'fun', 'hyperparams_proj'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not callable(self.stepsize) and not stepsize_at(self.stepsize, 0) > 0:
            raise ValueError(f'Invalid stepsize: {self.stepsize!r}; expected a number > 0 or a function.')
        self._objective = Objective(self.fun, has_aux=self.has_aux)

    @staticmethod
    def make_projection_grad(
        projection: Callable[..., Any], mapping_fun: Callable[[Any], Any]
    ) -> Callable[[Any, Any, Any, Any], Any]:
        r"""The step of a mirror map.

        Args:
            projection: ``projection(y, hyperparams_proj)``, the feasible point nearest to the mirrored point :math:`y`
                in the divergence of the map.
            mapping_fun: The map :math:`\phi`, a gradient of a convex function.

        Returns:
            ``projection_grad(params, gradient, stepsize, hyperparams_proj)``.
        """

        def projection_grad(x: Any, gradient: Any, stepsize: Any, hyperparams_proj: Any) -> Any:
            return projection(plus(mapping_fun(x), -stepsize, gradient), hyperparams_proj)

        return projection_grad

    def init_state(
        self, init_params: Any, hyperparams_proj: Any = None, *args: Any, **kwargs: Any
    ) -> MirrorDescentState:
        """The state before the first step; for the arguments see :meth:`run`."""
        aux = self._objective.auxiliary_at_start(init_params, *args, **kwargs)
        zero, error = count_and_error(init_params)
        return MirrorDescentState(zero, error, aux, zero, zero, zero, 0)

    def update(
        self, params: Any, state: MirrorDescentState, hyperparams_proj: Any = None, *args: Any, **kwargs: Any
    ) -> OptStep:
        """One step; for the arguments see :meth:`run`."""
        check_state(state)
        size = stepsize_at(self.stepsize, state.iter_num)
        value, gradient, aux = self._objective(params, *args, **kwargs)
        new = self._step_from(hyperparams_proj, params, gradient, size)
        evaluated = state.num_fun_eval + 1, state.num_grad_eval + 1, state.num_proj_eval + 1
        error = defined(PLAIN.norm(minus(new, params)) / size, PLAIN.number(value))
        error = confirmed(error, self.tol, partial(self._step_from, hyperparams_proj), params, gradient, size)
        error = as_before(error, state.error)
        return OptStep(new, MirrorDescentState(state.iter_num + 1, error, aux, *evaluated, state.status))

    @eager
    def run(self, init_params: Any, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> OptStep:
        """Minimize.

        Args:
            init_params: Where to start, a tree, inside of the domain of the mirror map.
            hyperparams_proj: Hyper-parameters of the projection.
            *args: Data of the objective.
            **kwargs: Data of the objective, by name.

        Returns:
            The parameters, and the state.  With ``implicit_diff`` the parameters are differentiable in the data, the
            hyper-parameters, and in tensors that the functions close over.
        """
        return super().run(init_params, hyperparams_proj, *args, **kwargs)

    def optimality_fun(self, sol: Any, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> Any:
        """By how much a step of size one changes the parameters, zero at the solution.

        For the arguments see :meth:`run`.
        """
        gradient = self._objective.gradient(sol, *args, **kwargs)
        return minus(self._step_from(hyperparams_proj, sol, gradient, 1.0), sol)

    def task(self, init_params: Any, hyperparams_proj: Any = None, *args: Any, **kwargs: Any) -> Task:
        """The steps of a run, at whose end an objective without a lower bound is recognized."""
        task = super().task(init_params, hyperparams_proj, *args, **kwargs)
        step = partial(self._step_from, hyperparams_proj)
        return recognizing_no_bound(task, measures_of(self._objective, step, args, kwargs), self.tol)

    def _step_from(self, hyperparams_proj: Any, x: Any, gradient: Any, size: Any) -> Any:
        return self.projection_grad(x, gradient, size, hyperparams_proj)
