# SPDX-License-Identifier: Apache-2.0
"""Anderson acceleration of a fixed-point iteration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks
from torchopt.dtypes import widened
from torchopt.loop import cond
from torchopt.norms import norm_in_double
from torchopt.scalars import numbers
from torchopt.solver.arguments import check_state
from torchopt.solver.base import OptStep
from torchopt.solver.fixed_point.iteration import FixedPointProblem
from torchopt.solver.objective import Vectors
from torchopt.solver.status import Status


class History(NamedTuple):
    """The last points :math:`x_i`, the residuals :math:`r_i = T(x_i) - x_i`, as rows, and their inner products."""

    params: Tensor
    residuals: Tensor
    gram: Tensor

    @classmethod
    def before(cls, x: Tensor, size: int) -> History:
        """The history before the first step: the start, without residuals."""
        return cls(x.repeat(size, 1), x.new_zeros(size, x.numel()), x.new_zeros(size, size))

    @classmethod
    def of(cls, state: Any, vectors: Vectors) -> History:
        """The history in the state of a solver."""
        params, residuals = map(vectors.pack_rows, (state.params_history, state.residuals_history))
        return cls(params, residuals, state.residual_gram)

    def mixed(self, ridge: float, beta: float, otherwise: Tensor) -> Tensor:
        r"""The next iterate: a combination of the last ones whose residuals cancel best.

        .. math:: \min_\alpha \|R^\top \alpha\|^2 + \lambda \|\alpha\|^2 \quad\text{where}\quad \sum_i \alpha_i = 1,
            \qquad x = \sum_i \alpha_i\, (x_i + \beta\, r_i)

        With a multiplier for the constraint this is a linear system.  If it is singular, the iterate is ``otherwise``.
        """
        m = len(self.gram)
        ones = self.gram.new_ones(1, m)
        eye = torch.eye(m, dtype=self.gram.dtype, device=self.gram.device)
        upper = torch.cat([ones.new_zeros(1, 1), ones], 1)
        matrix = torch.cat([upper, torch.cat([ones.mT, self.gram + ridge * eye], 1)])
        unit = torch.cat([ones.new_ones(1), ones.new_zeros(m)])
        solution, info = torch.linalg.solve_ex(widened(matrix), widened(unit))
        regular = (info == 0) & torch.isfinite(solution).all()
        weights = torch.where(regular, solution, 0.0)[1:].to(self.gram.dtype)
        return torch.where(regular, weights @ self.params + beta * (weights @ self.residuals), otherwise)

    def pushed(self, position: Any, x: Tensor, residual: Tensor) -> History:
        """The history with one iterate replaced."""
        at = torch.arange(len(self.gram), device=x.device) == position
        params = torch.where(at[:, None], x, self.params)
        residuals = torch.where(at[:, None], residual, self.residuals)
        products = residuals @ residual
        return History(
            params, residuals, torch.where(at[:, None], products, torch.where(at, products[:, None], self.gram))
        )


def check_mixing(history_size: Any, mixing_frequency: Any, ridge: Any) -> None:
    """Check the options that all Anderson methods have."""
    checks.integer('history_size', history_size, 2)
    checks.integer('mixing_frequency', mixing_frequency, 1)
    checks.at_least('ridge', ridge)


def mixes(iter_num: Any, history_size: int, mixing_frequency: int) -> Any:
    """Whether this step combines the last iterates: once there are enough of them, every so many steps."""
    return (iter_num >= history_size) & (iter_num % mixing_frequency == 0)


class AndersonState(NamedTuple):
    """The state of :class:`AndersonAcceleration`.

    Attributes:
        iter_num: The number of steps.
        error: The Euclidean norm of the last residual.
        params_history: Where the function was evaluated in the last steps, a tree like the parameters with one more
            dimension in front.
        residuals_history: The residuals there, likewise.
        residual_gram: The inner products of the residuals, a matrix.
        aux: The auxiliary output.
        num_fun_eval: How often the function was called.
        status: How the run ended.
    """

    iter_num: Any
    error: Any
    params_history: Any
    residuals_history: Any
    residual_gram: Any
    aux: Any
    num_fun_eval: Any
    status: Any


@dataclasses.dataclass(eq=False)
class AndersonAcceleration(FixedPointProblem):
    r"""Anderson acceleration of the iteration :math:`x \leftarrow T(x)`.

    From the last :math:`m` points :math:`x_i` with residuals :math:`r_i = T(x_i) - x_i` it takes the combination whose
    residuals cancel best, and makes a step from there:

    .. math:: \min_\alpha \Big\|\sum_i \alpha_i r_i\Big\|^2 + \lambda \|\alpha\|^2
        \quad\text{where}\quad \sum_i \alpha_i = 1, \qquad
        x \leftarrow T\Big(\sum_i \alpha_i (x_i + \beta\, r_i)\Big)

    The first :math:`m` steps are plain ones.  It often converges where the plain iteration does not.

    Args:
        fixed_point_fun: ``fixed_point_fun(params, *args, **kwargs)`` returns a tree like ``params``.
        history_size: :math:`m`, at least 2.
        mixing_frequency: Only every so many steps combine points; the others are plain.
        beta: :math:`\beta`.
        maxiter: The largest number of steps.
        tol: The run ends when the Euclidean norm of a residual is at most this.
        ridge: :math:`\lambda`, which keeps the system solvable where residuals are nearly parallel.  A smaller one
            converges faster close to the solution, where residuals are small.
        has_aux: Whether ``fixed_point_fun`` returns a pair, its value and auxiliary output.

    Raises:
        TypeError: If ``fixed_point_fun`` is not a function.
        ValueError: If an option is out of range, or the function returns a tree unlike the parameters.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.AndersonAcceleration(torch.cos, history_size=2, tol=1e-6, ridge=1e-12)
        >>> params, state = solver.run(torch.tensor(1.0, dtype=torch.float64))
        >>> params.item(), state.iter_num.item() < 12  # the plain iteration takes 35 steps
        (0.739085..., True)

    References:
        Pollock and Rebholz, *Anderson acceleration for contractive and noncontractive operators*, 2019
        (arXiv 1909.04638).
    """

    fixed_point_fun: Callable[..., Any]
    history_size: int = 5
    mixing_frequency: int = 1
    beta: float = 1.0
    maxiter: int = 100
    tol: float = 1e-5
    ridge: float = 1e-5
    has_aux: bool = False

    error_name = 'Norm of the residual'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        check_mixing(self.history_size, self.mixing_frequency, self.ridge)
        checks.number('beta', self.beta)

    def init_state(self, init_params: Any, *args: Any, **kwargs: Any) -> AndersonState:
        """The state before the first step."""
        aux = self.next_and_aux(init_params, *args, **kwargs)[1] if self.has_aux else None
        vectors = Vectors(init_params)
        history = History.before(vectors.pack(init_params), self.history_size)
        return AndersonState(
            0,
            math.inf,
            vectors.unpack(history.params),
            vectors.unpack(history.residuals),
            history.gram,
            aux,
            int(self.has_aux),
            int(Status.RUNNING),
        )

    def update(self, params: Any, state: AndersonState, *args: Any, **kwargs: Any) -> OptStep:
        """One step."""
        check_state(state)
        vectors = Vectors(params)
        history = History.of(state, vectors)
        x = cond(
            mixes(state.iter_num, self.history_size, self.mixing_frequency),
            lambda: history.mixed(self.ridge, self.beta, vectors.pack(params)),
            lambda: vectors.pack(params),
        )
        new, aux = self.next_and_aux(vectors.unpack(x), *args, **kwargs)
        residual = vectors.pack(new) - x
        history = history.pushed(state.iter_num % self.history_size, x, residual)
        (error,) = numbers(norm_in_double(residual))
        new_state = AndersonState(
            state.iter_num + 1,
            error,
            vectors.unpack(history.params),
            vectors.unpack(history.residuals),
            history.gram,
            aux,
            state.num_fun_eval + 1,
            state.status,
        )
        return OptStep(new, new_state)
