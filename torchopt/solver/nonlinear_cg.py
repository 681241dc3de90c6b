# SPDX-License-Identifier: Apache-2.0
"""Nonlinear conjugate gradients: a descent whose direction remembers the last one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from torchopt import tree
from torchopt.scalars import larger, numbers, pick, smaller, where
from torchopt.solver.descent import DescentSolver, Work
from torchopt.solver.linesearch import BacktrackingLineSearch, LineSearch, ZoomLineSearch
from torchopt.solver.memory import Pair
from torchopt.solver.objective import Vectors
from torchopt.solver.problem import Problem


@tree.safe_to_load
class NonlinearCGState(NamedTuple):
    """State of :class:`NonlinearCG`; the other fields are those of :class:`~torchopt.solver.lbfgs.LbfgsState`.

    Attributes:
        descent_direction: The direction of the next step.
        slope: The slope of the objective where the last step began, along its direction; 0 before the first step.
    """

    iter_num: Any
    stepsize: Any
    error: Any
    value: Any
    grad: Any
    descent_direction: Any
    aux: Any = None
    failed_linesearch: Any = False
    num_fun_eval: Any = 0
    num_grad_eval: Any = 0
    num_linesearch_iter: Any = 0
    status: Any = 0
    slope: Any = 0.0


class _Direction(NamedTuple):
    """The next direction, whether it is that of steepest descent, and the slope along the last one."""

    direction: Tensor
    is_steepest: Any
    slope: Any = 0.0


@dataclasses.dataclass(eq=False)
class NonlinearCG(DescentSolver[_Direction]):
    r"""Minimize a smooth function by nonlinear conjugate gradients.

    .. math:: w_{k+1} = w_k + \eta_k d_k, \qquad d_{k+1} = -g_{k+1} + \max(\beta_k, 0)\, d_k

    With :math:`y_k = g_{k+1} - g_k`, :math:`\beta_k` is
    :math:`\langle y_k, g_{k+1} \rangle / \lVert g_k \rVert^2` (Polak and Ribière),
    :math:`\lVert g_{k+1} \rVert^2 / \lVert g_k \rVert^2` (Fletcher and Reeves), or
    :math:`\langle y_k, g_{k+1} \rangle / \langle y_k, d_k \rangle` (Hestenes and Stiefel).  A direction that does not
    descend is replaced by :math:`-g_{k+1}`.

    Directions are conjugate only after accurate steps: the search ``'zoom'`` reduces the slope to a tenth, where those
    of quasi-Newton methods are content with nine tenths.  It lengthens steps fourfold, and takes the minimum of an
    interpolating polynomial also close to an end of its interval.

    The length of a direction says nothing about that of the step.  So a search begins with the step size that promises
    the same first-order decrease, :math:`-\eta \langle g, d \rangle`, as the last step had, and the first one, and
    each after a restart, with a step of length 1 or shorter, :math:`\min(1, 1 / \lVert g \rVert)`.

    The arguments are those of :class:`LBFGS`, without ``stepsize``, ``stop_if_linesearch_fails``, ``history_size`` and
    ``use_gamma``, and:

    Args:
        increase_factor: The factor on the first step size of a search where ``linesearch_init`` is ``'increase'``.
        max_stepsize: The largest step size; None means that of an instance of a line search, 1 for
            ``'backtracking'``, which only shortens steps, and 1000 for other searches, since steps along conjugate
            directions often are longer than 1.
        method: ``'polak-ribiere'``, ``'fletcher-reeves'`` or ``'hestenes-stiefel'``.

    Example:
        >>> import torch, torchopt
        >>> scales = torch.tensor([1.0, 10.0])
        >>> solver = torchopt.NonlinearCG(lambda x: (scales * (x - 3.0) ** 2).sum(), tol=1e-4)
        >>> params = solver.run(torch.zeros(2)).params
        >>> bool((params - 3.0).abs().max() < 1e-4)
        True

    References:
        Nocedal and Wright, `Numerical optimization <https://doi.org/10.1007/978-0-387-40065-5>`_, section 5.2, 2006.
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    maxiter: int = 100
    tol: float = 1e-3
    method: str = 'polak-ribiere'
    linesearch: str | LineSearch = 'zoom'
    linesearch_init: str = 'increase'
    condition: Any = None
    maxls: int = 30
    decrease_factor: Any = None
    increase_factor: float = 1.0
    max_stepsize: float | None = None
    min_stepsize: float = 1e-6

    zoom_options: ClassVar[Mapping[str, Any]] = {
        'c2': 0.1,
        'rel_tol_cubic': 0.01,
        'rel_tol_quad': 0.01,
        'increase_factor': 4.0,
    }
    continues_from: ClassVar[tuple[type, ...]] = (NonlinearCGState,)

    def __post_init__(self) -> None:
        """Check the options."""
        if self.max_stepsize is None:
            largest: float | None = 1.0 if self.linesearch == 'backtracking' else None
            if isinstance(self.linesearch, (BacktrackingLineSearch, ZoomLineSearch)):
                largest = self.linesearch.max_stepsize
            self.max_stepsize = 1000.0 if largest is None else largest
        super().__post_init__()
        if self.method not in ('polak-ribiere', 'fletcher-reeves', 'hestenes-stiefel'):
            raise ValueError(
                f"Invalid method: {self.method!r}; expected 'polak-ribiere', 'fletcher-reeves' or 'hestenes-stiefel'."
            )

    def _last_stepsize(self, work: Work, slope: Any) -> Any:
        known = (work.memory.slope < 0.0) & (slope < 0.0)
        stepsize = where(known, work.stepsize * work.memory.slope / where(known, slope, 1.0), 1.0)
        return smaller(stepsize, self.max_stepsize)

    def _empty(self, gradient: Tensor) -> _Direction:
        return _Direction(-gradient, True)

    def _direction(self, memory: _Direction, problem: Problem, x: Tensor, gradient: Tensor) -> Tensor:
        return memory.direction

    def _remember(self, memory: _Direction, x: Pair, gradient: Pair, direction: Tensor, moved: Any) -> _Direction:
        old, new = gradient
        y = new - old
        if self.method == 'fletcher-reeves':
            above, below = new @ new, old @ old
        elif self.method == 'polak-ribiere':
            above, below = y @ new, old @ old
        else:
            above, below = y @ new, y @ direction
        above, below, slope = numbers(above, below, old @ direction)
        known = (below > 0.0) & (above > 0.0)
        beta = where(known, above / where(known, below, 1.0), 0.0)
        return pick(moved, _Direction(beta * direction - new, False, slope), memory)

    def _is_empty(self, memory: _Direction) -> Any:
        return memory.is_steepest

    def _forget(self, memory: _Direction, gradient: Tensor, test: Any) -> _Direction:
        return pick(test, self._empty(gradient), memory)

    def _as_state(self, work: Work, problem: Problem) -> NonlinearCGState:
        unpack = problem.vectors.unpack
        gradient, direction = unpack(work.grad), unpack(problem.original(work.memory.direction))
        stepsize, slope = work.stepsize, work.memory.slope
        if problem.unit is not None:
            # A step is the product of the step size with a direction of the objective itself.
            largest = torch.finfo(problem.vectors.dtype).max
            stepsize = where(slope < 0.0, smaller(stepsize / problem.unit, largest), stepsize)
            slope = larger(problem.unit * (problem.unit * slope), -largest)
        return NonlinearCGState(work.iter_num, stepsize, work.error, work.value, gradient, direction, *work[6:], slope)

    def _as_memory(self, state: NonlinearCGState, vectors: Vectors, gradient: Tensor) -> _Direction:
        (slope,) = numbers(state.slope)
        return _Direction(vectors.pack(state.descent_direction), slope >= 0.0, slope)
