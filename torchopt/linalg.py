# SPDX-License-Identifier: Apache-2.0
"""Linear algebra with matrices or linear functions, with the names of TorchOpt 0.7.3 and Optax.

The general solvers are in :mod:`torchopt.linear_solve`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt._old_paths import register_old_paths
from torchopt.dtypes import widened
from torchopt.kinds import kind_of
from torchopt.levels import eager
from torchopt.linear_solve import solve_cg
from torchopt.loop import while_loop
from torchopt.numerics import as_scalar_like, in_single
from torchopt.tree.random import Key, seed_or_generator

__all__ = ['cg', 'matrix_inverse_pth_root', 'nnls', 'ns', 'ns_inv', 'power_iteration']


def cg(
    A: Any, b: Any, x0: Any = None, *, rtol: float = 1e-5, atol: float = 0.0, maxiter: int | None = None, M: Any = None
) -> Any:
    r"""Solve :math:`A x = b` by conjugate gradients, for a symmetric positive definite :math:`A`.

    The derivatives with respect to :math:`A` and :math:`b` are implicit; see :func:`torchopt.linear_solve.solve_cg`.

    Args:
        A: A square matrix, a tree of them (one for each leaf of ``b``, a vector or a matrix of columns), or a linear
            function of trees.
        b: The right-hand side, a tree of tensors.
        x0: The initial solution, zero if None.
        rtol: The tolerance of the residual norm, relative to the norm of ``b``.
        atol: The absolute tolerance of the residual norm; the larger of the two tolerances applies.
        maxiter: The maximum number of iterations; ten per unknown if None.
        M: A preconditioner, of the same kinds as ``A``, an approximation of its inverse.

    Raises:
        TypeError: If a matrix is not square, or not a tensor.
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

    The derivative is that of this polynomial in :math:`A`.  (:func:`torchopt.linear_solve.solve_inv` with ``ns=True``
    has the derivative of the solution :math:`A^{-1} b`, and stores no terms.)

    Args:
        A: A square matrix, a tree of them (one for each leaf of ``b``), or a linear function of trees.
        b: The right-hand side, a tree of tensors.
        maxiter: :math:`K`, the number of terms beyond the first; 10 if None.
        alpha: :math:`\alpha`, 1 if None.

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


class _Power(NamedTuple):
    """An iterate of :func:`power_iteration`."""

    product: Any
    value: Any
    running: Any


@eager
def power_iteration(
    matrix: Any,
    *,
    v0: Any = None,
    num_iters: int = 100,
    error_tolerance: float = 1e-6,
    precision: Any = None,
    key: Key | None = None,
) -> tuple[Tensor, Any]:
    r"""The eigenvalue of a matrix with the largest absolute value, and its eigenvector.

    .. math::
        v_{k+1} = A v_k / \lVert A v_k \rVert, \qquad \lambda_k = \langle v_k, A v_k \rangle

    until :math:`\lVert A v_k - \lambda_k v_k \rVert < \tau |\lambda_k|`.  It converges if this eigenvalue is unique.

    Each iteration synchronizes with the device; in a batch of ``torch.func.vmap`` each matrix stops separately.  Under
    ``torch.compile`` this is one graph break.

    Args:
        matrix: A square matrix, or a linear function of trees.
        v0: The initial vector, not orthogonal to the eigenvector; random if None.  Required if ``matrix`` is a
            function.
        num_iters: The maximum number of iterations.
        error_tolerance: :math:`\tau`.
        precision: Not used, for compatibility with Optax.  See :func:`torch.set_float32_matmul_precision`.
        key: A seed or a generator for the random initial vector; the seed 0 if None.

    Returns:
        The eigenvalue, a 0-d tensor, and the eigenvector, of norm 1.

    Raises:
        ValueError: If the matrix is not square, or ``v0`` is missing for a function.

    Example:
        >>> import torch, torchopt
        >>> value, vector = torchopt.linalg.power_iteration(torch.tensor([[2.0, 0.0], [0.0, -5.0]]))
        >>> value, vector.abs().round(decimals=4)
        (tensor(-5.), tensor([0., 1.]))

    References:
        von Mises and Pollaczek-Geiringer, `Praktische Verfahren der Gleichungsauflösung
        <https://doi.org/10.1002/zamm.19290090206>`_, 1929.
    """
    if isinstance(matrix, Tensor) or not callable(matrix):
        _require_square(matrix, 'matrix', ValueError)
        product: Callable[[Any], Any] = functools.partial(torch.matmul, matrix)
        if v0 is None:
            v0 = _random_start(matrix, 0 if key is None else key)
    elif v0 is None:
        raise ValueError('v0 must be given if `matrix` is a function. Pass a tree like its argument.')
    else:
        product = matrix

    def step(last: _Power) -> _Power:
        vector = _normalized(last.product)
        image = product(vector)
        value = tree.vdot(vector, image)
        residual = tree.norm(tree.sub(image, tree.scale(value, vector)))
        return _Power(image, value, ~(residual < error_tolerance * abs(value)))

    image = product(_normalized(v0))
    start = _Power(image, tree.vdot(v0, image) * 0.0, True)
    found = while_loop(lambda last: last.running, step, start, num_iters)
    return found.value, _normalized(found.product)


def _random_start(matrix: Tensor, key: Key) -> Tensor:
    """A vector of numbers between -1 and 1; for a seed, the same one for all elements of a batch."""
    n = matrix.shape[-1]
    source = seed_or_generator(key)
    if isinstance(source, torch.Generator):
        start = torch.rand(n, generator=source, dtype=torch.float64, device=source.device) * 2.0 - 1.0
    else:
        start = torch.as_tensor(np.random.default_rng(source % 2**64).uniform(-1.0, 1.0, n))
    return start.to(dtype=matrix.dtype, device=matrix.device)


def _normalized(x: Any) -> Any:
    norm = tree.wide_norm(x)
    return tree.map(in_single(lambda x: x / as_scalar_like(norm, x)), x)


class _Root(NamedTuple):
    """An iterate of :func:`matrix_inverse_pth_root`."""

    m: Any
    h: Any
    error: Any
    running: Any


@eager
def matrix_inverse_pth_root(
    matrix: Tensor,
    p: int,
    num_iters: int = 100,
    ridge_epsilon: float = 1e-6,
    error_tolerance: float = 1e-6,
    precision: Any = None,
) -> tuple[Tensor, Tensor]:
    r"""The inverse :math:`p`-th root :math:`A^{-1/p}` of a symmetric positive semidefinite matrix.

    First, :math:`\epsilon \lambda_{\max} I` is added to the matrix.  Then, with :math:`z = (1 + p) / (2 \lVert A
    \rVert)`, Newton's method is applied to two matrices, where :math:`M` converges to :math:`I` and :math:`H^{-p} M =
    A` in every iteration:

    .. math::
        T_k = \frac{(p + 1) I - M_k}{p}, \qquad M_{k+1} = T_k^p M_k, \qquad H_{k+1} = H_k T_k, \qquad
        M_0 = z A, \quad H_0 = z^{1/p} I.

    It stops if :math:`M` is close to :math:`I`, or no longer approaches it due to rounding.  Each iteration
    synchronizes with the device; in a batch of ``torch.func.vmap`` each matrix stops separately.  Under
    ``torch.compile`` this is one graph break.

    Args:
        matrix: The matrix :math:`A`.
        p: The order of the root, at least 1.
        num_iters: The maximum number of iterations.
        ridge_epsilon: :math:`\epsilon`.
        error_tolerance: The tolerance of the largest element of :math:`|M - I|`.
        precision: Not used, for compatibility with Optax.  See :func:`torch.set_float32_matmul_precision`.

    Returns:
        The root, in the dtype of the matrix, and the last error, the largest element of :math:`|M - I|`.

    Raises:
        ValueError: If the matrix is not square, or ``p`` is less than 1.

    Example:
        >>> import torch, torchopt
        >>> root, error = torchopt.linalg.matrix_inverse_pth_root(torch.tensor([[4.0, 0.0], [0.0, 16.0]]), 2)
        >>> root.round(decimals=3)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]])

    References:
        Guo and Higham, `A Schur-Newton method for the matrix p-th root and its inverse
        <https://doi.org/10.1137/050643374>`_, 2006.
    """
    _require_square(matrix, 'matrix', ValueError)
    checks.integer('p', p, 1)
    a = widened(matrix)
    ridge = ridge_epsilon * power_iteration(a)[0].clamp(min=1e-16)
    if a.shape[0] == 1:
        return ((a + ridge) ** (-1.0 / p)).to(matrix.dtype), torch.zeros_like(ridge)
    identity = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    a = a + ridge * identity
    z = (1 + p) / (2.0 * torch.linalg.norm(a))

    def step(last: _Root) -> _Root:
        t = ((p + 1) * identity - last.m) / p
        m = torch.linalg.matrix_power(t, p) @ last.m
        error = (m - identity).abs().max()
        # The error may increase a little at first; a larger increase is caused by rounding.
        better = error < 1.2 * last.error
        h = torch.where(better, last.h @ t, last.h)
        return _Root(m, h, error, better & (error > error_tolerance))

    m = z * a
    error = (m - identity).abs().max()
    start = _Root(m, identity * z ** (1.0 / p), error, error > error_tolerance)
    found = while_loop(lambda last: last.running, step, start, num_iters)
    return found.h.to(matrix.dtype), found.error


def nnls(A: Tensor, b: Tensor, iters: int, unroll: int | bool = 1, L: Any = None) -> Tensor:
    r"""Nonnegative least squares, :math:`\min_{x \ge 0} \lVert A x - b \rVert`.

    It takes a fixed number of accelerated projected gradient steps, with :math:`x_0 = y_0 = 0` and :math:`c_0 = 0`:

    .. math::
        x_{k+1} = \max\bigl(0, y_k - \tfrac{1}{L} (A^\mathsf{T} A y_k - A^\mathsf{T} b)\bigr), \qquad
        y_{k+1} = x_{k+1} + \frac{c_k - 1}{c_{k+1}} (x_{k+1} - x_k), \qquad
        c_{k+1} = \frac{1 + \sqrt{1 + 4 c_k^2}}{2}

    The derivative is that of the last iterate.

    Args:
        A: A real matrix of shape ``[m, n]``.
        b: A vector of shape ``[m]``, or columns ``[m, k]``.
        iters: The number of iterations.
        unroll: Not used, for compatibility with Optax.
        L: An upper bound of the largest eigenvalue of :math:`A^\mathsf{T} A`; the smaller of two of its norms if None.

    Returns:
        The solution, of shape ``[n]`` or ``[n, k]``.

    Raises:
        ValueError: If the shapes do not match.

    Example:
        >>> import torch, torchopt
        >>> A, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([5.0, 6.0])
        >>> torchopt.linalg.nnls(A, b, 1000)
        tensor([0.0000, 1.7000])

    References:
        Polyak, `Projected gradient method for non-negative least square
        <https://doi.org/10.1090/conm/636/12735>`_, 2015.
    """
    if A.dim() != 2 or b.dim() not in (1, 2) or b.shape[0] != A.shape[0]:
        raise ValueError(
            f'A has shape {tuple(A.shape)} and b {tuple(b.shape)}; expected [m, n], and [m] or [m, k] with the same m.'
        )
    square, target = A.mT @ A, A.mT @ b
    if L is None and square.numel():
        L = torch.minimum(torch.linalg.norm(square), square.abs().sum(dim=0).max())
    L = torch.where(L == 0, 1.0, L) if isinstance(L, Tensor) else L or 1.0
    x = y = torch.zeros_like(target)
    c = 0.0
    for _ in range(iters):
        after = (1.0 + math.sqrt(1.0 + 4.0 * c * c)) / 2.0
        last, x = x, torch.relu(y - (square @ y - target) / L)
        y = x + (c - 1.0) / after * (x - last)
        c = after
    return x


def _terms(maxiter: int | None) -> int:
    checks.integer('maxiter', maxiter, 0, optional=True)
    return 10 if maxiter is None else maxiter


def _as_function(A: Any, b: Any, name: str, error: type[Exception]) -> Callable[[Any], Any]:
    if callable(A) and not isinstance(A, Tensor):
        return A
    rhs, spec = tree.flatten(b)
    for matrix, column in zip(tree.flatten_up_to(spec, A, name=name, like='b'), rhs):
        if not (matrix is None and column is None):
            _require_square(matrix, name, error)
            if not column.dim() or column.shape[max(column.dim() - 2, 0)] != matrix.shape[0]:
                raise ValueError(
                    f'A matrix of `{name}` has shape {tuple(matrix.shape)}, but the corresponding leaf of b has shape '
                    f'{tuple(column.shape)}. Pass a vector of shape (n,) or columns of shape (n, k).'
                )
    return lambda x: tree.map(torch.matmul, A, x)


def _require_square(matrix: Any, name: str, error: type[Exception]) -> None:
    if not isinstance(matrix, Tensor):
        raise TypeError(f'`{name}` must be a square matrix, a tree of them or a function, but it is {kind_of(matrix)}.')
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


register_old_paths(__name__)
