# SPDX-License-Identifier: Apache-2.0
"""Block coordinate descent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt.kinds import kind_of
from torchopt.norms import norm_in_double
from torchopt.objective import CompositeLinearFunction
from torchopt.scalars import numbers
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.objective import Objective
from torchopt.solver.proximal.composite import count_and_error


class BlockCDState(NamedTuple):
    """The state of :class:`BlockCoordinateDescent`.

    Attributes:
        iter_num: The number of passes over the blocks.
        error: The length of the change in the last pass.
        predictions: The linear function at the parameters.
        subfun_g: The gradient of the objective in the predictions.
        num_fun_eval: How often the objective was evaluated.
        num_prox_eval: How often the operator was.
        num_grad_eval: How often the gradient was.
        status: How the run ended, a :class:`~torchopt.solver.Status`.
    """

    iter_num: Any
    error: Any
    predictions: Any
    subfun_g: Any
    num_fun_eval: Any = 0
    num_prox_eval: Any = 0
    num_grad_eval: Any = 0
    status: Any = 0


@dataclasses.dataclass(eq=False)
class BlockCoordinateDescent(IterativeSolver):
    r"""Block coordinate descent: a proximal gradient step for each element, or row, of the parameters in turn.

    It minimizes :math:`f(x) + \sum_i g(x_i)`, where :math:`f` is a function of a linear model and :math:`g` has a
    proximity operator.  The step size of a block is the reciprocal of its Lipschitz constant, so the objective never
    increases.  A block of a column of zeros, which the objective does not depend on, has a step size of one.

    ``run(init_params, hyperparams_prox, *args, **kwargs)`` starts from a vector, or a matrix whose rows are the blocks,
    and passes the data ``*args`` and ``**kwargs`` on to ``fun``.  It ends when the change in a pass over all blocks has
    at most the length ``tol``.

    Args:
        fun: The smooth part, a :class:`torchopt.objective.CompositeLinearFunction` such as
            :data:`torchopt.objective.least_squares`.
        block_prox: ``block_prox(x_i, hyperparams_prox, scaling)``; see :mod:`torchopt.prox`.
        maxiter: The largest number of passes.
        tol: The tolerance.

    Raises:
        TypeError: If ``fun`` is of another kind.

    Example:
        >>> import torch, torchopt
        >>> X, y = torch.eye(3), torch.tensor([3.0, -0.5, 1.5])
        >>> solver = torchopt.BlockCoordinateDescent(torchopt.objective.least_squares, torchopt.prox.prox_lasso)
        >>> solver.run(torch.zeros(3), 1 / 3, (X, y)).params.round(decimals=3) + 0.0
        tensor([2.0000, 0.0000, 0.5000])
    """

    fun: CompositeLinearFunction
    block_prox: Callable[..., Any]
    maxiter: int = 500
    tol: float = 1e-4

    error_name = 'Length of the change'
    problem_function, second_argument = 'fun', 'hyperparams_prox'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not isinstance(self.fun, CompositeLinearFunction):
            raise TypeError(
                f'Invalid fun: {kind_of(self.fun)}; expected a torchopt.objective.CompositeLinearFunction, '
                f'such as torchopt.objective.least_squares.'
            )
        self._objective, self._subfun = Objective(self.fun), Objective(self.fun.subfun)

    def init_state(self, init_params: Any, hyperparams_prox: Any = None, *args: Any, **kwargs: Any) -> BlockCDState:
        """The state before the first step; for the arguments see :meth:`run`.

        Raises:
            ValueError: If the number of blocks is not that of the columns of the linear function.
        """
        linop = self.fun.make_linop(*args, **kwargs)
        if not isinstance(init_params, Tensor) or init_params.ndim not in (1, 2):
            raise ValueError('init_params is no vector and no matrix; expected one element or row for each block.')
        if len(init_params) != linop.shape()[1]:
            raise ValueError(
                f'init_params has {len(init_params)} blocks, but the data have {linop.shape()[1]} columns. They must '
                f'be the same.'
            )
        predictions = linop.matvec(init_params)
        gradient = self._subfun.gradient(predictions, *args, **kwargs)
        zero, error = count_and_error(init_params)
        return BlockCDState(zero, error, predictions, gradient, zero + 1, zero, zero + 1, 0)

    def update(
        self, params: Any, state: BlockCDState, hyperparams_prox: Any = None, *args: Any, **kwargs: Any
    ) -> OptStep:
        """One pass over all blocks; for the arguments see :meth:`run`."""
        linop = self.fun.make_linop(*args, **kwargs)
        constants = self.fun.columnwise_lipschitz_const(*args, **kwargs)
        sizes = torch.where(constants > 0, constants, 1.0).reciprocal()
        b = self.fun.b(*args, **kwargs)
        predictions, gradient, rows = state.predictions, state.subfun_g, list(params.unbind(0))
        for i, row in enumerate(rows):
            slope = linop.rmatvec_element(gradient, i)
            if b is not None:
                slope = slope + b[i]
            rows[i] = self.block_prox(row - sizes[i] * slope, hyperparams_prox, sizes[i])
            change = rows[i] - row
            predictions = linop.update_matvec(predictions, change, i)
            gradient = self._subfun.gradient(predictions, *args, **kwargs)
        new, count = torch.stack(rows), len(rows)
        (error,) = numbers(norm_in_double(new - params))
        evaluated = state.num_fun_eval + count, state.num_prox_eval + count, state.num_grad_eval + count
        new_state = BlockCDState(state.iter_num + 1, error, predictions, gradient, *evaluated, state.status)
        return OptStep(new, new_state)

    def optimality_fun(self, params: Any, hyperparams_prox: Any = None, *args: Any, **kwargs: Any) -> Any:
        r"""The residual :math:`\operatorname{prox}_g(x - \nabla f(x)) - x`, zero at the solution.

        For the arguments see :meth:`run`.
        """
        step = params - self._objective.gradient(params, *args, **kwargs)
        return torch.vmap(lambda row: self.block_prox(row, hyperparams_prox, 1.0))(step) - params
