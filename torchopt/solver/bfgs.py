# SPDX-License-Identifier: Apache-2.0
"""BFGS: a descent with a dense approximation of the inverse Hessian."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchopt import tree
from torchopt.scalars import pick, settled, where
from torchopt.solver.batch_window import BatchInverse
from torchopt.solver.compact import Pair, is_curved, longer
from torchopt.solver.descent import DescentSolver, Work
from torchopt.solver.linesearch import LineSearch
from torchopt.solver.objective import Vectors
from torchopt.solver.problem import Problem

__all__ = ['BFGS', 'BfgsState']


@tree.safe_to_load
class BfgsState(NamedTuple):
    """State of :class:`BFGS`; the other fields are those of :class:`~torchopt.solver.lbfgs.LbfgsState`.

    Attributes:
        H: The approximation of the inverse Hessian, for the elements of all leaves as one vector.
    """

    iter_num: Any
    value: Any
    grad: Any
    stepsize: Any
    error: Any
    H: Any
    aux: Any = None
    failed_linesearch: Any = False
    num_fun_eval: Any = 0
    num_grad_eval: Any = 0
    num_linesearch_iter: Any = 0
    status: Any = 0


class _Inverse(NamedTuple):
    """The inverse Hessian, and whether it is still the identity."""

    matrix: Tensor
    is_identity: Any


_Memory = _Inverse | BatchInverse


@dataclasses.dataclass(eq=False)
class BFGS(DescentSolver[_Memory]):
    r"""Minimize a smooth function of few parameters by the BFGS method.

    .. math::
        w_{k+1} = w_k - \eta_k H_k \nabla f(w_k), \qquad
        H_{k+1} = (I - \rho_k s_k y_k^\mathsf{T})\, H_k\, (I - \rho_k y_k s_k^\mathsf{T}) + \rho_k s_k s_k^\mathsf{T},

    with :math:`s_k = w_{k+1} - w_k`, :math:`y_k = \nabla f(w_{k+1}) - \nabla f(w_k)` and
    :math:`\rho_k = 1 / \langle s_k, y_k \rangle`.  :math:`H_k` has as many rows as there are parameters.  Before the
    first update, the identity is scaled by :math:`\langle s, y \rangle / \lVert y \rVert^2`; a pair without positive
    curvature is skipped, and the matrix grows instead.

    The arguments are those of :class:`LBFGS`, without ``stop_if_linesearch_fails``, ``history_size`` and ``use_gamma``.

    Example:
        >>> import torch, torchopt
        >>> solver = torchopt.BFGS(lambda x: ((x - 3.0) ** 4).sum(), tol=1e-9)
        >>> solver.run(torch.zeros(2, dtype=torch.float64)).params
        tensor([2.9995, 2.9995], dtype=torch.float64)

    References:
        Nocedal and Wright, `Numerical optimization <https://doi.org/10.1007/978-0-387-40065-5>`_, algorithm 6.1, 2006.
    """

    fun: Callable[..., Any]
    value_and_grad: bool | Callable[..., Any] = False
    has_aux: bool = False
    maxiter: int = 500
    tol: float = 1e-3
    stepsize: float | Callable[[Any], Any] = 0.0
    linesearch: str | LineSearch = 'zoom'
    linesearch_init: str = 'max'
    condition: Any = None
    maxls: int = 30
    decrease_factor: Any = None
    increase_factor: float = 1.5
    max_stepsize: float = 1.0
    min_stepsize: float = 1e-6

    works_on_batches = True

    continues_from: ClassVar[tuple[type, ...]] = (BfgsState,)

    def _empty(self, gradient: Tensor, in_place: bool) -> _Memory:
        if isinstance(gradient, np.ndarray):
            return BatchInverse(gradient)
        return _Inverse(torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device), True)

    def _direction(self, memory: _Memory, problem: Problem, x: Tensor, gradient: Tensor) -> Tensor:
        return -(memory.matrix @ gradient if isinstance(memory, _Inverse) else memory.product(gradient))

    def _remember(self, memory: _Memory, x: Pair, gradient: Pair, direction: Tensor, moved: Any) -> _Memory:
        if isinstance(memory, BatchInverse):
            return memory.remember(x, gradient, moved)
        return pick(moved, self._after(memory, x, gradient), memory)

    def _after(self, memory: _Inverse, x: Pair, gradient: Pair) -> _Inverse:
        s, y = x[1] - x[0], gradient[1] - gradient[0]
        product, ss, yy = s @ y, s @ s, y @ y
        curved = is_curved(product, ss, yy, s.dtype)
        rho, yy = 1.0 / where(curved, product, 1.0), where(curved, yy, 1.0)
        matrix = memory.matrix * where(memory.is_identity, 1.0 / (rho * yy), 1.0)
        by_y = matrix @ y
        new = torch.addr(matrix, s, (rho + rho * rho * (y @ by_y)) * s - rho * by_y) - torch.outer(rho * by_y, s)
        if settled(curved) is True:
            return _Inverse(new, False)
        scale = memory.matrix.diagonal().amax()
        gg = gradient[0] @ gradient[0]
        scale = longer(scale, memory.is_identity, ss, gg, torch.finfo(s.dtype).tiny) / scale
        return _Inverse(pick(curved, new, memory.matrix * scale), False)

    def _is_empty(self, memory: _Memory) -> Any:
        return memory.is_identity

    def _forget(self, memory: _Memory, gradient: Tensor, test: Any) -> _Memory:
        if isinstance(memory, BatchInverse):
            return memory.cleared(test)
        return pick(test, self._empty(gradient, False), memory)

    def _as_state(self, work: Work, problem: Problem) -> BfgsState:
        begin = (work.iter_num, work.value, problem.vectors.unpack(work.grad), work.stepsize, work.error)
        memory, unit = work.memory, problem.number(problem.unit)
        matrix = memory.matrix if isinstance(memory, _Inverse) else memory.tensor()
        return BfgsState(*begin, matrix if unit is None else matrix / unit, *work[6:])

    def _as_memory(self, state: BfgsState, vectors: Vectors, gradient: Tensor, in_place: bool) -> _Inverse:
        return _Inverse(state.H, (torch.eye(len(state.H), dtype=state.H.dtype, device=state.H.device) == state.H).all())
