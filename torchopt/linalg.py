# SPDX-License-Identifier: Apache-2.0
"""Linear algebra with matrices or linear functions, as TorchOpt 0.7.3 names it.

The general solvers are in :mod:`torchopt.linear_solve`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.linear_solve import solve_cg
from torchopt.linear_solve.door import iteration_limit

__all__ = ['cg', 'ns', 'ns_inv']


def cg(
    A: Any,
    b: Any,
    x0: Any = None,
    *,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
) -> Any:
    r"""Solve :math:`A x = b` by conjugate gradients, for a symmetric positive definite :math:`A`.

    As :func:`torchopt.linear_solve.solve_cg`, with the same implicit derivatives in :math:`A` and :math:`b`.

    Args:
        A: A square matrix, a tree of them (one for each leaf of ``b``, a vector or a matrix of columns), or a linear
            function of trees.
        b: The right-hand side, a tree of tensors.
        x0: Where to start, zero if None.
        rtol: The residual norm to reach, relative to that of ``b``.
        atol: The residual norm that suffices in any case.
        maxiter: The number of iterations that are allowed; ten per unknown if None.
        M: A preconditioner, of the same kinds as ``A``, close to its inverse.

    Returns:
        A tree like ``b``.

    Raises:
        TypeError: If a matrix is not square, or no tensor.
        ValueError: If trees or shapes do not match, or values are not finite.

    Warns:
        LinearSolveWarning: If the tolerance is not reached.

    Example:
        >>> import torch, torchopt
        >>> torchopt.linalg.cg(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([2.0, 8.0])).round(decimals=4)
        tensor([1., 2.])
    """
    preconditioner = None if M is None else _as_function(M, b, 'M', TypeError)
    x0 = None if x0 is None else _checked_start(x0, b)
    return solve_cg(
        _as_function(A, b, 'A', TypeError), b, init=x0, rtol=rtol, atol=atol, maxiter=maxiter, M=preconditioner
    )


def ns(A: Any, b: Any, maxiter: int | None = None, *, alpha: float | None = None) -> Any:
    r"""Approximate :math:`A^{-1} b` by the first terms of the Neumann series.

    .. math:: \alpha \sum_{k=0}^{K} (I - \alpha A)^k\, b

    The result is differentiated as the polynomial in :math:`A` that it is.  (:func:`torchopt.linear_solve.solve_inv`
    with ``ns=True`` has the derivative of a solution, and keeps no terms.)

    Args:
        A: A square matrix, a tree of them (one for each leaf of ``b``), or a linear function of trees.
        b: The right-hand side, a tree of tensors.
        maxiter: :math:`K`, the number of terms beyond the first; 10 if None.
        alpha: :math:`\alpha`, 1 if None.

    Returns:
        A tree like ``b``.

    Raises:
        ValueError: If a matrix is not square, or ``maxiter`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.linalg.ns(torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.tensor([2.0, 2.0]))
        tensor([1., 2.])
    """
    matvec = _as_function(A, b, 'A', ValueError)
    terms, scale = _terms(maxiter), 1.0 if alpha is None else alpha
    term, total = b, tree.scale(1.0, b)
    for _ in range(terms):
        product = matvec(term)
        tree.check_matching(product, b, name='A(b)', like='b')
        term = tree.sub(term, tree.scale(scale, product))
        total = tree.add(total, term)
    return total if alpha is None else tree.scale(scale, total)


def ns_inv(A: Any, maxiter: int | None = None, *, alpha: float | None = None) -> Any:
    r"""Approximate the inverse of matrices by the first terms of the Neumann series.

    .. math:: \alpha \sum_{k=0}^{K - 1} (I - \alpha A)^k

    As in TorchOpt 0.7.3 the sum has :math:`K` terms, one fewer than that of :func:`ns`.

    Args:
        A: A square matrix, or a tree of them.
        maxiter: :math:`K`, 10 if None.
        alpha: :math:`\alpha`, 1 if None.

    Returns:
        A tree like ``A``.

    Raises:
        ValueError: If a matrix is not square, or ``maxiter`` is negative.

    Example:
        >>> import torch, torchopt
        >>> torchopt.linalg.ns_inv(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
        tensor([[ 1.0000, -0.5000],
                [ 0.0000,  1.0000]])
    """
    terms, scale = _terms(maxiter), 1.0 if alpha is None else alpha

    def inverse(matrix: Any) -> Tensor:
        _require_square(matrix, 'A', ValueError)
        identity = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
        step = identity - scale * matrix
        term, total = identity, torch.zeros_like(matrix)
        for _ in range(terms):
            total, term = total + term, term @ step
        return total if alpha is None else scale * total

    return tree.map(inverse, A)


def _terms(maxiter: int | None) -> int:
    limit = iteration_limit(maxiter)
    return 10 if limit is None else limit


def _as_function(A: Any, b: Any, name: str, error: type[Exception]) -> Callable[[Any], Any]:
    if callable(A) and not isinstance(A, Tensor):
        return A
    rhs, spec = tree.flatten(b)
    for matrix, column in zip(tree.flatten_up_to(spec, A, name=name, like='b'), rhs):
        if not (matrix is None and column is None):
            _require_square(matrix, name, error)
            if not column.dim() or column.shape[max(column.dim() - 2, 0)] != matrix.shape[0]:
                raise ValueError(
                    f'A matrix of `{name}` has shape {tuple(matrix.shape)}, but the vector (or columns) in b that it '
                    f'stands for has shape {tuple(column.shape)}. A vector needs shape (n,), columns (n, k).'
                )
    return lambda x: tree.map(torch.matmul, A, x)


def _require_square(matrix: Any, name: str, error: type[Exception]) -> None:
    if not isinstance(matrix, Tensor):
        raise TypeError(
            f'`{name}` must be a square matrix, a tree of them or a function, but it is a {type(matrix).__name__}.'
        )
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        what = 'Linear operator must be a square matrix' if error is TypeError else f'`{name}` must be a square matrix'
        raise error(f'{what}, but has shape: {tuple(matrix.shape)}. For a linear function pass the function itself.')


def _checked_start(x0: Any, b: Any) -> Any:
    found = tree.flatten_up_to(tree.structure(b), x0, name='x0', like='b')
    expected = tree.flatten(b)[0]
    shapes = [[tuple(x.shape) if isinstance(x, Tensor) else x for x in leaves] for leaves in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'Tensors in x0 and b must have matching shapes: {shapes[0]} vs. {shapes[1]}.')
    return x0
