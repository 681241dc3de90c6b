# SPDX-License-Identifier: Apache-2.0
"""Methods that build the matrix and factor it, for at most a few thousand unknowns; and the Neumann series."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from torchopt import checks, tree
from torchopt.dtypes import is_inexact
from torchopt.levels import is_readable, is_tracing, without_wrappers
from torchopt.linear_solve.cg import solve_normal_cg
from torchopt.linear_solve.problem import Problem, Result, divide
from torchopt.linear_solve.solve import configurable, solve_with
from torchopt.linear_solve.status import Outcome


@dataclass(frozen=True)
class Direct:
    """A direct method.

    If a matrix is nonsingular only because of rounding, its factorization succeeds and gives numbers near the
    reciprocal of the precision.  The residual detects this.  Since the right-hand side may happen to have a small
    residual, a second column is solved for as well, and its residual is also checked.

    Attributes:
        factor_and_solve: ``(matrix, b) -> x``, where ``b`` and ``x`` are columns; raises for a singular matrix.
        reliable: The relative residual up to which a solution is reliable.
    """

    name: str
    factor_and_solve: Callable[[Tensor, Tensor], Tensor]
    symmetric: bool = False
    reliable: float = 1e-3

    power = 1
    truncates = False

    def run(self, problem: Problem) -> Result:
        """Solve."""
        matrix, b = problem.matrix(), problem.rhs
        probe, probe_norm = _probe(b.shape[-1], b.dtype, b.device)
        columns = torch.stack([b, probe.expand_as(b)], dim=-1)
        x = self.factor_and_solve(matrix, columns)
        left = torch.linalg.vector_norm(columns - matrix @ x, dim=-2)
        if not problem.layout.batch:
            of_b, of_probe = left.tolist()
            worst = max(divide(of_b, problem.norm), of_probe / probe_norm)
            _require(torch.tensor(worst <= _SINGULAR_FROM))
            return Result(x[:, 0], 1, of_b, Outcome.CONVERGED if worst <= self.reliable else Outcome.STAGNATED)
        worst = torch.maximum(divide(left[..., :1], problem.norm), left[..., 1:] / probe_norm)
        outcome = torch.where(worst <= self.reliable, int(Outcome.CONVERGED), int(Outcome.STAGNATED))
        regular = worst <= _SINGULAR_FROM
        if not bool(regular.all()):
            given = torch.isfinite(b).all(-1, keepdim=True)  # otherwise the residual says nothing about the matrix
            _require((regular | ~given).squeeze(-1))
            outcome = torch.where(given, outcome, int(Outcome.DIVERGED))
        return Result(x[..., 0], 1, left[..., :1], outcome)


_SINGULAR_FROM = 0.1
"""The relative residual above which a matrix counts as singular to the precision of its dtype."""


@functools.lru_cache(maxsize=64)
def _probe(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, float]:
    """A right-hand side without a pattern, unlikely to match the structure of a matrix; and its norm."""
    with torch.inference_mode(False):
        k = torch.arange(1, n + 1, dtype=torch.float64, device=device)
        probe = (k * k).cos().to(dtype)
        return probe, torch.linalg.vector_norm(probe).item()


_SINGULAR = (
    'the matrix is singular{where}, exactly or to the precision of its dtype. If it is the Jacobian of an optimality '
    'function, the solution is not isolated: regularize with ridge, or take the solution of least norm with '
    'solve_normal_cg.'
)


def _require(regular: Tensor) -> None:
    """Raise if some system of a batch is singular."""
    if not bool(regular.all()):
        bad = (~regular).nonzero().tolist() if regular.dim() else []
        raise LinAlgError(_SINGULAR.format(where=f' in system {bad[0]} of the batch' if bad else ''))


def _by_lu(matrix: Tensor, b: Tensor) -> Tensor:
    r""":math:`PA = LU`, with partial pivoting."""
    factors, pivots, info = torch.linalg.lu_factor_ex(matrix)
    _require(info == 0)
    return torch.linalg.lu_solve(factors, pivots, b)


def _by_cholesky(matrix: Tensor, b: Tensor) -> Tensor:
    r""":math:`A = LL^\top`, for symmetric positive definite matrices."""
    scale = matrix.abs().amax()
    if bool((matrix - matrix.mT).abs().amax() > 1e3 * torch.finfo(matrix.dtype).eps * scale):
        raise LinAlgError('the matrix is not symmetric. Use solve_lu.')
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool((info == 0).all()):
        raise LinAlgError('the matrix is not positive definite. Use solve_lu, or regularize with ridge.')
    return torch.cholesky_solve(b, factor)


def _by_qr(matrix: Tensor, b: Tensor) -> Tensor:
    r""":math:`A = QR`, with orthogonal :math:`Q`."""
    Q, R = torch.linalg.qr(matrix)
    pivots = R.diagonal(dim1=-2, dim2=-1).abs()
    _require(pivots.amin(-1) > matrix.shape[-1] * torch.finfo(matrix.dtype).eps * pivots.amax(-1))
    return torch.linalg.solve_triangular(R, Q.mT @ b, upper=True)


def _by_inverse(matrix: Tensor, b: Tensor) -> Tensor:
    """The inverse times the right-hand side."""
    inverse, info = torch.linalg.inv_ex(matrix)
    _require(info == 0)
    return inverse @ b


@configurable
def solve_lu(matvec: Callable[[Any], Any] | None = None, b: Any = None, ridge: Any = None) -> Any:
    r"""Solve :math:`(A + \lambda I)\, x = b` by the LU factorization of the matrix, for any nonsingular :math:`A`.

    It builds the matrix of all leaves together, with one matrix-vector product per real unknown.

    Args:
        matvec: The linear function :math:`x \mapsto A x` of trees; without it the configured solver is returned.
        b: The right-hand side, a tree of floating or complex tensors.
        ridge: :math:`\lambda`, a number or a 0-d tensor.

    Returns:
        A tree like ``b``.

    Raises:
        torch.linalg.LinAlgError: If the matrix is singular, exactly or to the precision of its dtype.
        ValueError: If ``b`` or the matrix is not finite, or trees do not match.

    Warns:
        LinearSolveWarning: If the matrix is so ill-conditioned that the residual is more than a thousandth of the
            right-hand side, or if the solution overflows or underflows its dtype.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_lu
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> solve_lu(A.matmul, torch.tensor([9.0, 5.0], dtype=torch.float64)).round(decimals=4)
        tensor([2., 1.], dtype=torch.float64)
    """
    return solve_with(Direct('solve_lu', _by_lu), matvec, b, ridge=ridge)


def solve_jacobian(matvec: Callable[[Any], Any], b: Any) -> Any:
    """Solve the system of an implicit derivative: by LU if it is small, else as :func:`solve_normal_cg` does.

    The solution by LU counts if all matrices are well-conditioned: the relative residual is at most the square root of
    the precision.  For a singular matrix, :func:`solve_normal_cg` computes the solution of least norm.
    """
    leaves = [x for x in tree.leaves(b) if is_inexact(x)]
    largest = _SMALL if all(map(is_readable, leaves)) else _SMALL_IN_BATCH
    if is_tracing() or sum(x.numel() for x in leaves) > largest:
        return solve_normal_cg(matvec, b)
    precision = max((torch.finfo(x.dtype).eps for x in leaves), default=1.0)
    method = Direct('solve_lu', _by_lu, reliable=precision**0.5)
    try:
        x, status = solve_with(method, matvec, b, return_status=True)
    except LinAlgError:
        return solve_normal_cg(matvec, b)
    reliable = bool(without_wrappers(status.outcome == int(Outcome.CONVERGED)).all())
    return x if reliable else solve_normal_cg(matvec, b)


_SMALL, _SMALL_IN_BATCH = 256, 64
"""The largest numbers of unknowns, of one system and of each in a batch, for which a matrix is built by default."""


@configurable
def solve_cholesky(matvec: Callable[[Any], Any] | None = None, b: Any = None, ridge: Any = None) -> Any:
    r"""Solve :math:`(A + \lambda I)\, x = b` by the Cholesky factorization, for symmetric positive definite :math:`A`.

    Arguments, result, warnings and the matrix are those of :func:`solve_lu`.

    Raises:
        torch.linalg.LinAlgError: If the matrix is not symmetric, not positive definite, or singular to the precision of
            its dtype.
        ValueError: If ``b`` or the matrix is not finite, or trees do not match.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_cholesky
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> solve_cholesky(A.matmul, torch.tensor([9.0, 5.0], dtype=torch.float64)).round(decimals=4)
        tensor([2., 1.], dtype=torch.float64)
    """
    return solve_with(Direct('solve_cholesky', _by_cholesky, symmetric=True), matvec, b, ridge=ridge)


@configurable
def solve_qr(matvec: Callable[[Any], Any] | None = None, b: Any = None, ridge: Any = None) -> Any:
    r"""Solve :math:`(A + \lambda I)\, x = b` by the QR factorization of the matrix, for any nonsingular :math:`A`.

    Arguments, result, warnings and the matrix are those of :func:`solve_lu`.

    Raises:
        torch.linalg.LinAlgError: If the matrix is singular, exactly or to the precision of its dtype.
        ValueError: If ``b`` or the matrix is not finite, or trees do not match.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_qr
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> solve_qr(A.matmul, torch.tensor([9.0, 5.0], dtype=torch.float64)).round(decimals=4)
        tensor([2., 1.], dtype=torch.float64)
    """
    return solve_with(Direct('solve_qr', _by_qr), matvec, b, ridge=ridge)


@dataclass(frozen=True)
class NeumannSeries:
    r"""The first terms of :math:`A^{-1} = \alpha \sum_{k \ge 0} (I - \alpha A)^k`.

    The series converges if the spectral radius of :math:`I - \alpha A` is below one.  The residual of a partial
    sum is the next term, so the last term shows how much is missing.

    Attributes:
        maxiter: The number of terms after the first, ten if None.
        alpha: The scale, one if None.
    """

    maxiter: int | None = None
    alpha: float | None = None
    name: str = 'solve_inv(ns=True)'
    symmetric: bool = False

    power = 1

    @property
    def truncates(self) -> bool:
        """Whether the number of terms was chosen."""
        return self.maxiter is not None

    def run(self, problem: Problem) -> Result:
        """Sum the terms."""
        alpha = 1.0 if self.alpha is None else self.alpha
        terms = 10 if self.maxiter is None else self.maxiter
        term = total = problem.rhs
        for _ in range(terms):
            term = term - alpha * problem.matvec(term)
            total = total + term
        first, last = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (problem.rhs, term))
        outcome = torch.where(last <= 0.5 * first, int(Outcome.CONVERGED), int(Outcome.MAXITER))
        outcome = torch.where(last <= 1.001 * first, outcome, int(Outcome.DIVERGED))
        batch = problem.layout.batch
        return Result(alpha * total, terms, last if batch else last[0], outcome if batch else outcome[0])


@configurable
def solve_inv(
    matvec: Callable[[Any], Any] | None = None,
    b: Any = None,
    ridge: Any = None,
    *,
    ns: bool = False,
    maxiter: int | None = None,
    alpha: float | None = None,
) -> Any:
    r"""Solve :math:`(A + \lambda I)\, x = b` by the inverse of the matrix, or by a Neumann series that approximates it.

    With ``ns=True`` the matrix is not built; the result is

    .. math:: x = \alpha \sum_{k=0}^{K} (I - \alpha A)^k\, b,

    which converges to the solution if the spectral radius of :math:`I - \alpha A` is below one.  Its derivative is that
    of the solution, with the same approximation of the inverse.

    Args:
        matvec: The linear function :math:`x \mapsto A x` of trees; without it the configured solver is returned.
        b: The right-hand side, a tree of floating or complex tensors.
        ridge: :math:`\lambda`, a number or a 0-d tensor.
        ns: Whether to use the Neumann series.
        maxiter: :math:`K`, 10 if None; only with ``ns``.
        alpha: :math:`\alpha`, 1 if None; only with ``ns``.

    Returns:
        A tree like ``b``.

    Raises:
        torch.linalg.LinAlgError: If the matrix is singular, exactly or to the precision of its dtype.
        TypeError: If ``maxiter`` or ``alpha`` is given without ``ns``.
        ValueError: If ``b`` or the matrix is not finite, or trees do not match.

    Warns:
        LinearSolveWarning: If the terms of the Neumann series grow; without ``maxiter``, also if its last term is more
            than half of the first, so most of the solution is missing.  Without ``ns``, if the matrix is so
            ill-conditioned that the residual is more than a thousandth of the right-hand side.

    Example:
        >>> import torch
        >>> from torchopt.linear_solve import solve_inv
        >>> A = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
        >>> solve_inv(A.matmul, torch.tensor([2.0, 2.0]), ns=True)
        tensor([1., 2.])

    References:
        Lorraine, Vicol and Duvenaud, *Optimizing Millions of Hyperparameters by Implicit Differentiation*, 2020.
    """
    if not ns:
        if maxiter is not None or alpha is not None:
            raise TypeError('solve_inv: maxiter and alpha belong to the Neumann series. Pass ns=True, or omit them.')
        return solve_with(Direct('solve_inv', _by_inverse), matvec, b, ridge=ridge)
    checks.integer('maxiter', maxiter, 0, optional=True)
    return solve_with(NeumannSeries(maxiter, alpha), matvec, b, ridge=ridge)
