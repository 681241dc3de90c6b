# SPDX-License-Identifier: Apache-2.0
"""Fixed-point iteration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt import checks, tree
from torchopt.kinds import kind_of
from torchopt.scalars import numbers
from torchopt.solver.arguments import check_state, split_aux
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.status import Status


class FixedPointState(NamedTuple):
    """The state of :class:`FixedPointIteration`.

    Attributes:
        iter_num: The number of steps.
        error: The Euclidean norm of the last step.
        aux: The auxiliary output.
        num_fun_eval: How often the function was called.
        status: How the run ended.
    """

    iter_num: Any
    error: Any
    aux: Any
    num_fun_eval: Any
    status: Any


class FixedPointProblem(IterativeSolver):
    """What solvers of fixed-point problems share: the function, and the condition of optimality."""

    fixed_point_fun: Callable[..., Any]
    has_aux: bool

    problem_function = 'fixed_point_fun'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        checks.function('fixed_point_fun', self.fixed_point_fun)

    def next_and_aux(self, params: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """The value of the function, and its auxiliary output."""
        found = self.fixed_point_fun(params, *args, **kwargs)
        if not self.has_aux and isinstance(found, tuple) and not isinstance(params, tuple):
            raise TypeError(
                f'fixed_point_fun returned a tuple, but init_params is {kind_of(params)}. If it returns '
                f'auxiliary output too, pass has_aux=True.'
            )
        value, aux = split_aux(found, self.has_aux, 'fixed_point_fun')
        tree.check_matching(value, params, name='the result of fixed_point_fun', like='init_params')
        return value, aux

    def optimality_fun(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        """The residual, ``fixed_point_fun(params) - params``."""
        return tree.sub(self.next_and_aux(params, *args, **kwargs)[0], params)


@dataclasses.dataclass(eq=False)
class FixedPointIteration(FixedPointProblem):
    r"""The iteration :math:`x \leftarrow T(x)`.

    It converges to the fixed point if :math:`T` is a contraction, with an error that decreases in each step by the
    factor of the contraction.  :class:`~torchopt.AndersonAcceleration` needs fewer steps where that is close to one.

    Args:
        fixed_point_fun: ``fixed_point_fun(params, *args, **kwargs)`` returns a tree like ``params``.
        maxiter: The largest number of steps.
        tol: The run ends when the Euclidean norm of a step is at most this.
        has_aux: Whether ``fixed_point_fun`` returns a pair, its value and auxiliary output.

    Raises:
        TypeError: If ``fixed_point_fun`` is not a function.
        ValueError: If it returns a tree unlike the parameters.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.FixedPointIteration(lambda x, a: 0.5 * (x + a / x))  # Heron's, for the square root
        >>> solver.run(torch.tensor(1.0), torch.tensor(9.0)).params
        tensor(3.)
        >>> torch.func.grad(lambda a: solver.run(torch.tensor(1.0), a).params)(torch.tensor(9.0))
        tensor(0.1667)
    """

    fixed_point_fun: Callable[..., Any]
    maxiter: int = 100
    tol: float = 1e-5
    has_aux: bool = False

    error_name = 'Norm of the step'

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> FixedPointState:
        """The state before the first step."""
        aux = self.next_and_aux(init_params, *args, **kwargs)[1] if self.has_aux else None
        return FixedPointState(0, math.inf, aux, int(self.has_aux), int(Status.RUNNING))

    def update(self, params: Any, state: FixedPointState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        check_state(state)
        new, aux = self.next_and_aux(params, *args, **kwargs)
        (error,) = numbers(tree.norm(tree.sub(new, params)))
        return OptStep(new, FixedPointState(state.iter_num + 1, error, aux, state.num_fun_eval + 1, state.status))
