# SPDX-License-Identifier: Apache-2.0
"""Elementwise losses for regression: squared error, Huber, log-cosh."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from torchopt.losses.arguments import Number, broadcastable, floating, real, same_shape, tensor


def squared_error(predictions: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
    r"""The squared error :math:`(x - y)^2` of each prediction.

    Its mean is the mean squared error; :func:`l2_loss` is half of it.

    Args:
        predictions: The predictions :math:`x`, a floating tensor of any shape.
        targets: The targets :math:`y` of the same shape; zeros if None.

    Returns:
        The errors, of the shape of ``predictions``.

    Raises:
        TypeError: If ``predictions`` are not floating.
        ValueError: If the shapes differ.  The loss does not broadcast, since predictions of shape ``[n, 1]`` with
            targets of shape ``[n]`` would silently give ``[n, n]`` errors.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.squared_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor([0., 4.])
    """
    predictions = floating('predictions', predictions)
    if targets is None:
        return predictions.square()
    targets = real('targets', targets, predictions)
    same_shape('predictions', predictions, 'targets', targets)
    return (predictions - targets).square()


def l2_loss(predictions: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
    r"""Half the squared error, :math:`\tfrac12 (x - y)^2`, whose gradient is the error itself.

    The arguments and errors are those of :func:`squared_error`.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.l2_loss(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor([0., 2.])
    """
    return 0.5 * squared_error(predictions, targets)


def huber_loss(predictions: torch.Tensor, targets: torch.Tensor | None = None, *, delta: Number = 1.0) -> torch.Tensor:
    r"""The Huber loss: quadratic near zero, linear far from it.

    With the error :math:`e = x - y`,

    .. math::
        \ell(e) = \begin{cases}
            \tfrac12 e^2 & \text{if } |e| \le \delta \\
            \delta (|e| - \tfrac12 \delta) & \text{otherwise.}
        \end{cases}

    Its gradient is that of :func:`l2_loss`, clipped to :math:`[-\delta, \delta]`.

    Args:
        predictions: The predictions :math:`x`, a floating tensor of any shape.
        targets: The targets :math:`y`, of a shape that broadcasts; zeros if None.
        delta: The threshold :math:`\delta \ge 0`, a number or a tensor that broadcasts.

    Returns:
        The losses, of the common shape.

    Raises:
        TypeError: If ``predictions`` are not floating.
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.huber_loss(torch.tensor([0.5, 3.0]), torch.tensor([0.0, 0.0]))
        tensor([0.1250, 2.5000])

    References:
        Huber, `Robust estimation of a location parameter <https://doi.org/10.1214/aoms/1177703732>`_, 1964.
    """
    error = _errors(predictions, targets)
    delta = tensor(delta, error)
    near = torch.clamp(error, -delta, delta)  # of the error itself, since |e| has no second derivative at zero
    slope = torch.where(error.abs() > delta, delta * error.detach().sign(), 0.0)
    return 0.5 * near.square() + slope * (error - near)


def log_cosh(predictions: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
    r"""The loss :math:`\log \cosh(x - y)`, a smooth approximation of the Huber loss.

    It is about :math:`\tfrac12 e^2` for a small error :math:`e = x - y` and :math:`|e| - \log 2` for a large one.
    For :math:`|e| < 1` it is computed as :math:`\log(1 + 2 \sinh^2 \tfrac{e}{2})`, which avoids cancellation, else as
    :math:`|e| + \log(1 + e^{-2|e|}) - \log 2`, which avoids overflow.

    Args:
        predictions: The predictions :math:`x`, a floating tensor of any shape.
        targets: The targets :math:`y`, of a shape that broadcasts; zeros if None.

    Returns:
        The losses, of the common shape.

    Raises:
        TypeError: If ``predictions`` are not floating.
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.log_cosh(torch.tensor([0.0, 1.0, 10.0]))
        tensor([0.0000, 0.4338, 9.3069])

    References:
        Chen et al., `Log hyperbolic cosine loss improves variational auto-encoder
        <https://openreview.net/forum?id=rkglvsC9Ym>`_, 2019.
    """
    error = _errors(predictions, targets)
    small = error.abs() < 1.0
    near = torch.log1p(2.0 * torch.sinh(0.5 * torch.where(small, error, 0.0)).square())
    far = torch.where(small, 1.0, error.abs())
    return torch.where(small, near, far + F.softplus(-2.0 * far) - math.log(2.0))


def _errors(predictions: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    predictions = floating('predictions', predictions)
    if targets is None:
        return predictions
    targets = real('targets', targets, predictions)
    broadcastable('predictions', predictions, 'targets', targets)
    return predictions - targets
