# SPDX-License-Identifier: Apache-2.0
r"""Common objectives of linear models, functions of parameters and ``data = (X, y)`` that return a 0-d tensor.

Names and signatures are those of JAXopt.  Instances of :class:`CompositeLinearFunction` also provide their parts
:math:`g(A w) + \langle b, w \rangle`, which :class:`torchopt.BlockCoordinateDescent` requires.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt import losses

__all__ = [
    'BinaryLogreg',
    'CompositeLinearFunction',
    'LeastSquares',
    'LinearOperator',
    'MulticlassLinearSvmDual',
    'MulticlassLogreg',
    'binary_logreg',
    'l2_multiclass_logreg',
    'l2_multiclass_logreg_with_intercept',
    'least_squares',
    'multiclass_linear_svm_dual',
    'multiclass_logreg',
    'multiclass_logreg_with_intercept',
    'ridge_regression',
]

Data = tuple[Tensor, Tensor]


class LinearOperator:
    """A matrix and its products with vectors, for coordinate descent.

    Args:
        A: The matrix, of shape ``[m, n]``.

    Example:
        >>> import torch
        >>> from torchopt.objective import LinearOperator
        >>> A = LinearOperator(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> A.matvec(torch.ones(2)), A.column_l2_norms(squared=True)
        (tensor([3., 7.]), tensor([10., 20.]))
    """

    def __init__(self, A: Tensor) -> None:
        self.A = torch.as_tensor(A)
        if self.A.ndim != 2:
            raise ValueError(f'A has shape {tuple(self.A.shape)}; expected a matrix.')

    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return tuple(self.A.shape)

    def matvec(self, x: Tensor) -> Tensor:
        """:math:`A x`, for a vector or a matrix :math:`x`."""
        return self.A @ x

    def matvec_element(self, x: Tensor, idx: int) -> Tensor:
        """Element (or row) ``idx`` of :math:`A x`."""
        return self.A[idx] @ x

    def rmatvec(self, x: Tensor) -> Tensor:
        r""":math:`A^\top x`."""
        return self.A.T @ x

    def rmatvec_element(self, x: Tensor, idx: int) -> Tensor:
        r"""Element (or row) ``idx`` of :math:`A^\top x`."""
        return self.A[:, idx] @ x

    def update_matvec(self, Ax: Tensor, delta: Tensor, idx: int) -> Tensor:
        """:math:`A x` after ``delta`` was added to element (or row) ``idx`` of :math:`x`."""
        return Ax + self._multiples(self.A[:, idx], delta, Ax, 'Ax')

    def update_rmatvec(self, ATx: Tensor, delta: Tensor, idx: int) -> Tensor:
        r""":math:`A^\top x` after ``delta`` was added to element (or row) ``idx`` of :math:`x`."""
        return ATx + self._multiples(self.A[idx], delta, ATx, 'ATx')

    def column_l2_norms(self, squared: bool = False) -> Tensor:
        """The 2-norms of the columns, or their squares."""
        norms = torch.linalg.vector_norm(self.A, dim=0)
        return norms * norms if squared else norms

    @staticmethod
    def _multiples(vector: Tensor, delta: Tensor, result: Tensor, name: str) -> Tensor:
        if result.ndim not in (1, 2):
            raise ValueError(f'{name} has shape {tuple(result.shape)}; expected a vector or a matrix.')
        return vector * delta if result.ndim == 1 else torch.outer(vector, delta)


class CompositeLinearFunction:
    r"""A function of the form :math:`f(w) = g(A w) + \langle b, w \rangle`.

    A subclass defines ``subfun``, which is :math:`g`, ``make_linop`` and ``columnwise_lipschitz_const``, and ``b`` if
    there is a linear term.  Their arguments are those of the function except the first one.

    Example:
        >>> import torch, torchopt
        >>> X, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 2.0])
        >>> objective = torchopt.objective.LeastSquares()
        >>> objective(torch.zeros(2), (X, y)), objective.subfun(torch.zeros(2), (X, y))
        (tensor(1.2500), tensor(1.2500))
    """

    def subfun(self, predictions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The function :math:`g` of ``predictions``, :math:`A w`."""
        raise NotImplementedError(f'{type(self).__name__} does not define subfun(predictions, ...).')

    def make_linop(self, *args: Any, **kwargs: Any) -> LinearOperator:
        """The matrix :math:`A`."""
        raise NotImplementedError(f'{type(self).__name__} does not define make_linop(...).')

    def columnwise_lipschitz_const(self, *args: Any, **kwargs: Any) -> Tensor:
        """The Lipschitz constants of the partial derivatives, for each element (or row) of the parameters."""
        raise NotImplementedError(f'{type(self).__name__} does not define columnwise_lipschitz_const(...).')

    def b(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """The coefficients of the linear term, None if there is none."""
        return None

    def lipschitz_const(self, hyperparams: Any) -> Any:
        """The Lipschitz constant of the gradient of :math:`g`."""
        raise NotImplementedError(f'{type(self).__name__} does not define lipschitz_const(hyperparams).')

    def __call__(self, params: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The value of the function."""
        value = self.subfun(self.make_linop(*args, **kwargs).matvec(params), *args, **kwargs)
        b = self.b(*args, **kwargs)
        return value if b is None else value + (params * b).sum()


class _OfSamples(CompositeLinearFunction):
    """A function of the predictions of a linear model, :math:`X w`."""

    curvature: float
    """An upper bound of the eigenvalues of the Hessian of the loss with respect to one prediction."""

    def make_linop(self, data: Data) -> LinearOperator:
        """The matrix of samples, ``X``."""
        return LinearOperator(data[0])

    def columnwise_lipschitz_const(self, data: Data) -> Tensor:
        """For each feature, the Lipschitz constant of the derivative with respect to its weights."""
        return self.make_linop(data).column_l2_norms(squared=True) * (self.curvature / self.count(data[1]))

    def count(self, y: Tensor) -> int:
        """The number of losses in the mean."""
        return max(len(y), 1)


class LeastSquares(_OfSamples):
    """The objective :func:`least_squares`, with its parts.

    Example:
        >>> import torch, torchopt
        >>> X, y = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 2.0])
        >>> torchopt.objective.LeastSquares().columnwise_lipschitz_const((X, y))
        tensor([ 5., 10.])
    """

    curvature = 1.0

    def subfun(self, predictions: Tensor, data: Data) -> Tensor:
        """Half of the mean of the squared residuals."""
        _check_targets(data[1], predictions, predictions.shape)
        return 0.5 * (predictions - data[1]).square().mean()

    def count(self, y: Tensor) -> int:
        """The number of residuals in the mean, over all outputs."""
        return max(y.numel(), 1)

    def __call__(self, W: Tensor, data: Data) -> Tensor:
        r"""Least squares, :math:`\frac{1}{2 n} \|X W - y\|_2^2`.

        Args:
            W: The weights, of shape ``[features]`` or ``[features, outputs]``.
            data: ``(X, y)``: samples, of shape ``[n, features]``, and targets, of shape ``[n]`` or ``[n, outputs]``.

        Raises:
            ValueError: If the shape of ``y`` is another one.

        Example:
            >>> import torch, torchopt
            >>> X, y = torch.eye(2), torch.tensor([1.0, 3.0])
            >>> torchopt.objective.least_squares(torch.ones(2), (X, y))
            tensor(1.)
        """
        return super().__call__(W, data)


class MulticlassLogreg(_OfSamples):
    """The objective :func:`multiclass_logreg`, with its parts.

    Example:
        >>> import torch, torchopt
        >>> objective = torchopt.objective.MulticlassLogreg()
        >>> objective.subfun(torch.zeros(2, 2), (torch.eye(2), torch.tensor([0, 1])))
        tensor(0.6931)
    """

    curvature = 0.5

    def subfun(self, predictions: Tensor, data: Data) -> Tensor:
        """The mean logistic loss of the predictions."""
        _check_targets(data[1], predictions, predictions.shape[:-1])
        return losses.softmax_cross_entropy_with_integer_labels(predictions, data[1]).mean()

    def __call__(self, W: Tensor, data: Data) -> Tensor:
        r"""Multiclass logistic regression, :math:`\frac{1}{n} \sum_i \ell(W^\top x_i, y_i)`.

        Args:
            W: The weights, of shape ``[features, classes]``.
            data: ``(X, y)``: samples, of shape ``[n, features]``, and their classes, int64, of shape ``[n]``.

        Raises:
            ValueError: If the shape of ``y`` is another one.

        Example:
            >>> import torch, torchopt
            >>> X, y = torch.eye(2), torch.tensor([0, 1])
            >>> torchopt.objective.multiclass_logreg(torch.zeros(2, 3), (X, y))
            tensor(1.0986)
        """
        return super().__call__(W, data)


class BinaryLogreg(_OfSamples):
    """The objective :func:`binary_logreg`, with its parts.

    Example:
        >>> import torch, torchopt
        >>> objective = torchopt.objective.BinaryLogreg()
        >>> objective.columnwise_lipschitz_const((torch.eye(2), torch.tensor([0, 1])))
        tensor([0.1250, 0.1250])
    """

    curvature = 0.25

    def subfun(self, predictions: Tensor, data: Data) -> Tensor:
        """The mean logistic loss of the predictions."""
        _check_targets(data[1], predictions, predictions.shape)
        return losses.sigmoid_binary_cross_entropy(predictions, data[1].to(predictions.dtype)).mean()

    def __call__(self, w: Tensor, data: Data) -> Tensor:
        r"""Logistic regression, :math:`\frac{1}{n} \sum_i \ell(w^\top x_i, y_i)`.

        Args:
            w: The weights, of shape ``[features]``.
            data: ``(X, y)``: samples, of shape ``[n, features]``, and labels 0 or 1, of shape ``[n]``.

        Raises:
            ValueError: If the shape of ``y`` is another one.

        Example:
            >>> import torch, torchopt
            >>> X, y = torch.eye(2), torch.tensor([0, 1])
            >>> torchopt.objective.binary_logreg(torch.zeros(2), (X, y))
            tensor(0.6931)
        """
        return super().__call__(w, data)


class MulticlassLinearSvmDual(CompositeLinearFunction):
    r"""The dual objective of multiclass linear support vector machines, to be minimized.

    .. math:: f(\beta) = \frac{1}{2 \lambda} \|X^\top (Y - \beta)\|^2 + \langle \beta, Y - 1 \rangle

    Each row of :math:`\beta` is a point of the probability simplex; the primal solution is
    :math:`W = X^\top (Y - \beta) / \lambda`.  Call it as ``multiclass_linear_svm_dual(beta, l2reg, (X, Y))``, with
    samples of shape ``[n, features]`` and one-hot labels of any dtype, of shape ``[n, classes]``.

    Example:
        >>> import torch, torchopt
        >>> X, Y = torch.eye(2), torch.eye(2)
        >>> torchopt.objective.multiclass_linear_svm_dual(torch.full((2, 2), 0.5), 1.0, (X, Y))
        tensor(-0.5000)
    """

    def subfun(self, predictions: Tensor, l2reg: Any, data: Data) -> Tensor:
        r"""The quadratic part as a function of the ``predictions`` :math:`X^\top \beta`."""
        X, Y = data
        _check_targets(Y, predictions, (len(X), *predictions.shape[1:]))
        return (0.5 / l2reg) * (X.T @ Y.to(X.dtype) - predictions).square().sum()

    def make_linop(self, l2reg: Any, data: Data) -> LinearOperator:
        """The transpose of the matrix of samples."""
        return LinearOperator(data[0].T)

    def columnwise_lipschitz_const(self, l2reg: Any, data: Data) -> Tensor:
        """For each sample, the Lipschitz constant of the derivative with respect to its row."""
        return self.make_linop(l2reg, data).column_l2_norms(squared=True) / l2reg

    def b(self, l2reg: Any, data: Data) -> Tensor:
        """The coefficients of the linear term, :math:`Y - 1`."""
        X, Y = data
        return Y.to(X.dtype) - 1


def _check_targets(y: Tensor, predictions: Tensor, expected: Sequence[int]) -> None:
    """Require targets of the expected shape: those of shape ``[n, 1]`` would broadcast with ``[n]`` predictions."""
    if tuple(y.shape) != tuple(expected):
        raise ValueError(
            f'data = (X, y): y has shape {tuple(y.shape)}; expected {tuple(expected)}, since the predictions have '
            f'shape {tuple(predictions.shape)}. Reshape y, such as by y.squeeze(-1), or the parameters.'
        )


least_squares = LeastSquares()
multiclass_logreg = MulticlassLogreg()
binary_logreg = BinaryLogreg()
#: The dual of the multi-class support vector machine, an instance of :class:`MulticlassLinearSvmDual`.
multiclass_linear_svm_dual = MulticlassLinearSvmDual()
for _instance in (least_squares, multiclass_logreg, binary_logreg):
    _instance.__doc__ = type(_instance).__call__.__doc__
multiclass_linear_svm_dual.__doc__ = MulticlassLinearSvmDual.__doc__


def ridge_regression(params: Tensor, l2reg: Any, data: Data) -> Tensor:
    r"""Ridge regression, :math:`\frac{1}{2 n} \|X W - y\|_2^2 + \frac{\lambda}{2} \|W\|_2^2`.

    Args:
        params: The weights :math:`W`, as in :func:`least_squares`.
        l2reg: The weight :math:`\lambda`, a number or a 0-d tensor.
        data: ``(X, y)``, as in :func:`least_squares`.

    Example:
        >>> import torch, torchopt
        >>> X, y = torch.eye(2), torch.tensor([1.0, 3.0])
        >>> torchopt.objective.ridge_regression(torch.ones(2), 2.0, (X, y))
        tensor(3.)
    """
    return least_squares(params, data) + 0.5 * l2reg * params.square().sum()


def multiclass_logreg_with_intercept(params: tuple[Tensor, Tensor], data: Data) -> Tensor:
    r"""Multiclass logistic regression with intercept, :math:`\frac{1}{n} \sum_i \ell(W^\top x_i + b, y_i)`.

    Args:
        params: ``(W, b)``: weights, of shape ``[features, classes]``, and intercepts, of shape ``[classes]``.
        data: ``(X, y)``, as in :func:`multiclass_logreg`.

    Example:
        >>> import torch, torchopt
        >>> data = torch.eye(2), torch.tensor([0, 1])
        >>> torchopt.objective.multiclass_logreg_with_intercept((torch.zeros(2, 3), torch.zeros(3)), data)
        tensor(1.0986)
    """
    W, b = params
    return multiclass_logreg.subfun(data[0] @ W + b, data)


def l2_multiclass_logreg(W: Tensor, l2reg: Any, data: Data) -> Tensor:
    r"""Regularized multiclass logistic regression: :func:`multiclass_logreg` plus :math:`\frac{\lambda}{2} \|W\|_2^2`.

    Args:
        W: The weights, of shape ``[features, classes]``.
        l2reg: The weight :math:`\lambda`, a number or a 0-d tensor.
        data: ``(X, y)``, as in :func:`multiclass_logreg`.

    Example:
        >>> import torch, torchopt
        >>> data = torch.eye(2), torch.tensor([0, 1])
        >>> torchopt.objective.l2_multiclass_logreg(torch.zeros(2, 3), 0.1, data)
        tensor(1.0986)
    """
    return multiclass_logreg(W, data) + 0.5 * l2reg * W.square().sum()


def l2_multiclass_logreg_with_intercept(params: tuple[Tensor, Tensor], l2reg: Any, data: Data) -> Tensor:
    r"""Regularized multiclass logistic regression with intercept, which is not regularized.

    Args:
        params: ``(W, b)``, as in :func:`multiclass_logreg_with_intercept`.
        l2reg: The weight :math:`\lambda` of :math:`\frac{1}{2} \|W\|_2^2`, a number or a 0-d tensor.
        data: ``(X, y)``, as in :func:`multiclass_logreg`.

    Example:
        >>> import torch, torchopt
        >>> data = torch.eye(2), torch.tensor([0, 1])
        >>> torchopt.objective.l2_multiclass_logreg_with_intercept((torch.zeros(2, 3), torch.zeros(3)), 0.1, data)
        tensor(1.0986)
    """
    return multiclass_logreg_with_intercept(params, data) + 0.5 * l2reg * params[0].square().sum()
