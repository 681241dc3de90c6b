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
from torchopt._C import quasi_newton as kernels
from torchopt.columns import beside, dot, from_column
from torchopt.scalars import negated, pick, settled, where
from torchopt.solver.descent import DescentSolver, Work
from torchopt.solver.linesearch import LineSearch
from torchopt.solver.memory import Pair, difference, has_curvature, is_curved, limits_of, longer
from torchopt.solver.objective import Vectors
from torchopt.solver.problem import Problem

_Array = np.ndarray[Any, Any]


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


class _Inverses:
    """The inverse Hessian of each run of a batch, written in place, and whether it is still the identity."""

    def __init__(self, like: _Array) -> None:
        runs, length = like.shape
        self.limits = limits_of(like)
        self.matrix = np.tile(np.eye(length, dtype=like.dtype), (runs, 1, 1))
        self.is_identity: Any = np.ones(runs, dtype=np.bool_)
        self.s, self.y = (np.zeros((runs, 1, length), like.dtype) for _ in range(2))
        self.inner = np.empty((4, runs))
        self.next: _Array | None = None  # the product with the gradients that came with the last pairs

    def cleared(self, test: Any) -> _Inverses:
        """The memory itself, with the identity for the runs for which a test holds."""
        runs = slice(None) if test is True else test
        self.matrix[runs] = np.eye(self.matrix.shape[1])
        self.is_identity[runs] = True
        self.next = None
        return self

    def product(self, gradient: Any) -> Any:
        """The inverse Hessians times the gradients that were given with the last pairs."""
        return _times(self.matrix, gradient) if self.next is None else self.next

    def remember(self, x: tuple[Any, Any], gradient: tuple[Any, Any], moved: Any) -> _Inverses:
        """Update the matrices in place where the pairs have positive curvature; otherwise they grow."""
        place = np.where(moved, np.zeros(len(self.matrix), np.int64), -1)
        product, ss, yy, gg = difference(x, gradient, self.s, self.y, place, self.inner)
        curved = has_curvature(product, ss, yy, *self.limits) & moved
        bent = negated(curved) & moved
        scale = where(curved & self.is_identity, product / where(curved, yy, 1.0), 1.0)
        if settled(bent) is not False:
            largest = self.matrix.diagonal(axis1=1, axis2=2).max(1, initial=self.limits[1]).astype(np.float64)
            scale = where(bent, longer(largest, self.is_identity, ss, gg, self.limits[1]) / largest, scale)
        self.is_identity = self.is_identity & negated(moved)
        rho = where(curved, 1.0 / where(curved, product, 1.0), 0.0)
        self.next = np.empty_like(gradient[1])
        columns = (self.matrix,), (self.s,), (self.y,), (gradient[1],), (self.next,)
        if not kernels.bfgs(columns, scale, rho):
            self._update(curved, scale, rho)
            self.next = None
        return self

    def _update(self, curved: _Array, scale: _Array, rho: _Array) -> None:
        """The update in NumPy."""
        self.matrix *= beside(scale, self.matrix)
        s, y = (where(curved, part[:, 0], 0.0) for part in (self.s, self.y))
        rho = beside(rho, s)
        by_y = rho * _times(self.matrix, y)
        factor = rho + rho * beside(dot(y, by_y), s)
        left, right = np.stack([s, -by_y], 2), np.stack([factor * s - by_y, s], 1)
        torch.from_numpy(self.matrix).baddbmm_(torch.from_numpy(left), torch.from_numpy(right))

    def tensor(self) -> Tensor:
        """The matrix of a run, apart from this one."""
        return from_column(self.matrix.copy())


def _times(matrices: _Array, vectors: _Array) -> _Array:
    """The products of a batch of matrices with a batch of vectors."""
    return np.matmul(matrices, vectors[:, :, None])[:, :, 0]


_Memory = _Inverse | _Inverses


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

    def _empty(self, gradient: Tensor) -> _Memory:
        if isinstance(gradient, np.ndarray):
            return _Inverses(gradient)
        return _Inverse(torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device), True)

    def _direction(self, memory: _Memory, problem: Problem, x: Tensor, gradient: Tensor) -> Tensor:
        return -(memory.matrix @ gradient if isinstance(memory, _Inverse) else memory.product(gradient))

    def _remember(self, memory: _Memory, x: Pair, gradient: Pair, direction: Tensor, moved: Any) -> _Memory:
        if isinstance(memory, _Inverses):
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
        if settled(curved) is True or not len(s):
            return _Inverse(new, False)
        scale = memory.matrix.diagonal().amax()
        gg = gradient[0] @ gradient[0]
        scale = longer(scale, memory.is_identity, ss, gg, torch.finfo(s.dtype).tiny) / scale
        return _Inverse(pick(curved, new, memory.matrix * scale), False)

    def _is_empty(self, memory: _Memory) -> Any:
        return memory.is_identity

    def _forget(self, memory: _Memory, gradient: Tensor, test: Any) -> _Memory:
        if isinstance(memory, _Inverses):
            return memory.cleared(test)
        return pick(test, self._empty(gradient), memory)

    def _as_state(self, work: Work, problem: Problem) -> BfgsState:
        begin = (work.iter_num, work.value, problem.vectors.unpack(work.grad), work.stepsize, work.error)
        memory, unit = work.memory, problem.number(problem.unit)
        matrix = memory.matrix if isinstance(memory, _Inverse) else memory.tensor()
        return BfgsState(*begin, matrix if unit is None else matrix / unit, *work[6:])

    def _as_memory(self, state: BfgsState, vectors: Vectors, gradient: Tensor) -> _Inverse:
        return _Inverse(state.H, (torch.eye(len(state.H), dtype=state.H.dtype, device=state.H.device) == state.H).all())
