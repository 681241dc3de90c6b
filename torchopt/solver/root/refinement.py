# SPDX-License-Identifier: Apache-2.0
"""Iterative refinement of the solutions of linear systems."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torchopt import checks, tree
from torchopt.linear_solve import solve_gmres
from torchopt.scalars import numbers
from torchopt.solver.base import IterativeSolver, OptStep
from torchopt.solver.status import Status


class IterativeRefinementState(NamedTuple):
    """The state of :class:`IterativeRefinement`.

    Attributes:
        iter_num: The number of steps.
        error: The Euclidean norm of the residual.
        target_residuals: The residual, ``b - A x``.
        init: Where the next solve begins.
        num_matvec_eval: How many products with ``A`` were taken.
        num_matvec_bar_eval: How many systems with its approximation were set up.
        num_solve_eval: How many systems were solved.
        status: How the run ended.
    """

    iter_num: Any
    error: Any
    target_residuals: Any
    init: Any
    num_matvec_eval: Any
    num_matvec_bar_eval: Any
    num_solve_eval: Any
    status: Any


_rough = functools.partial(solve_gmres, ridge=1e-6)


@dataclasses.dataclass(eq=False)
class IterativeRefinement(IterativeSolver):
    r"""Solve :math:`A x = b` by repeated, approximate solves.

    .. math:: x \leftarrow x + \bar A^{-1} (b - A x)

    :math:`\bar A` approximates :math:`A`, or is :math:`A` itself and the solver is inexact: in lower precision,
    regularized, or stopped early.  The result is differentiable in ``A`` and ``b``.

    Args:
        matvec_A: ``matvec_A(A, x)``; by default the product of matrices, leaf by leaf.
        matvec_A_bar: ``matvec_A_bar(A_bar, x)``; if None, :math:`\bar A` is :math:`A`.
        solve: ``solve(matvec, b, init=...)``; by default GMRES with a ridge of 1e-6.
        maxiter: The largest number of steps.
        tol: The run ends when the Euclidean norm of the residual is at most this.

    Raises:
        TypeError: If an argument should be a function and is not.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.linear_solve import solve_lu
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> solver = torchopt.IterativeRefinement(solve=lambda matvec, b, init: solve_lu(matvec, b, ridge=0.1))
        >>> solver.run(None, A, torch.tensor([9.0, 5.0], dtype=torch.float64)).params
        tensor([2.0000, 1.0000], dtype=torch.float64)

    References:
        Wilkinson, *Rounding Errors in Algebraic Processes*, 1963.
    """

    matvec_A: Callable[..., Any] | None = None
    matvec_A_bar: Callable[..., Any] | None = None
    solve: Callable[..., Any] = _rough
    maxiter: int = 10
    tol: float = 1e-7

    error_name = 'Norm of the residual'

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        checks.function('solve', self.solve)
        for name in ('matvec_A', 'matvec_A_bar'):
            if getattr(self, name) is not None:
                checks.function(name, getattr(self, name))

    def _product(self, A: Any) -> Callable[[Any], Any]:
        return functools.partial(_leafwise if self.matvec_A is None else self.matvec_A, A)

    def init_params(self, A: Any, b: Any, A_bar: Any = None) -> Any:
        """Zeros like ``b``."""
        return tree.zeros_like(b)

    def run(self, init_params: Any, A: Any = None, b: Any = None, A_bar: Any = None) -> OptStep:
        """Solve the system.

        Args:
            init_params: Where to start, a tree like ``b``; zeros if None.
            A: What ``matvec_A`` multiplies with.
            b: The right-hand side, a tree.
            A_bar: What ``matvec_A_bar`` multiplies with.

        Returns:
            The solution, and the state.
        """
        if b is None:
            raise TypeError('IterativeRefinement.run needs the right-hand side: run(init_params, A, b).')
        return super().run(tree.zeros_like(b) if init_params is None else init_params, A, b, A_bar)

    def init_state(self, init_params: Any, A: Any, b: Any, A_bar: Any = None) -> IterativeRefinementState:
        """The state before the first step."""
        residual = tree.sub(b, self._product(A)(init_params))
        return IterativeRefinementState(0, math.inf, residual, tree.zeros_like(b), 1, 0, 0, int(Status.RUNNING))

    def update(self, params: Any, state: IterativeRefinementState, A: Any, b: Any, A_bar: Any = None) -> OptStep:
        """One step."""
        approximate = self._product(A) if self.matvec_A_bar is None else functools.partial(self.matvec_A_bar, A_bar)
        params = tree.add(params, self.solve(approximate, state.target_residuals, init=state.init))
        residual = tree.sub(b, self._product(A)(params))
        (error,) = numbers(tree.norm(residual))
        new_state = IterativeRefinementState(
            state.iter_num + 1,
            error,
            residual,
            state.init,
            state.num_matvec_eval + 1,
            state.num_matvec_bar_eval + 1,
            state.num_solve_eval + 1,
            state.status,
        )
        return OptStep(params, new_state)

    def optimality_fun(self, params: Any, A: Any, b: Any, A_bar: Any = None) -> Any:
        """The residual, ``b - A x``."""
        return tree.sub(b, self._product(A)(params))


def _leafwise(A: Any, x: Any) -> Any:
    """The product of matrices, leaf by leaf."""
    return tree.map(lambda a, z: a @ z, A, x)
