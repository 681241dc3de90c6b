# SPDX-License-Identifier: Apache-2.0
"""Losses, as ``jaxopt.loss`` has them: of one example, the label first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import losses
from torchopt.dtypes import is_inexact
from torchopt.losses.arguments import broadcastable

__all__ = [
    'binary_hinge_loss',
    'binary_logistic_loss',
    'binary_perceptron_loss',
    'binary_sparsemax_loss',
    'huber_loss',
    'make_fenchel_young_loss',
    'multiclass_hinge_loss',
    'multiclass_logistic_loss',
    'multiclass_perceptron_loss',
    'multiclass_sparsemax_loss',
    'sparse_plus',
    'sparse_sigmoid',
]


def _scores(x: Any) -> Tensor:
    """A tensor; integers become floating, as in JAX."""
    x = torch.as_tensor(x)
    return x if is_inexact(x) else x.to(torch.get_default_dtype())


def _of_one_shape(label: Any, score: Any) -> tuple[Tensor, Tensor]:
    x, y = torch.as_tensor(label), _scores(score)
    broadcastable('the prediction', y, 'the label', x)
    shape = torch.broadcast_shapes(x.shape, y.shape)  # type: ignore[no-untyped-call]
    return x.expand(shape), y.expand(shape)


def huber_loss(target: Tensor, pred: Tensor, delta: float = 1.0) -> Tensor:
    """Huber's loss: see :func:`torchopt.losses.huber_loss`."""
    target, pred = _of_one_shape(target, pred)
    return losses.huber_loss(pred, target, delta=delta)


def binary_logistic_loss(label: Tensor, logit: Tensor) -> Tensor:
    """The logistic loss of labels 0 and 1: see :func:`torchopt.losses.sigmoid_binary_cross_entropy`."""
    label, logit = _of_one_shape(label, logit)
    return losses.sigmoid_binary_cross_entropy(logit, label.to(logit.dtype))


def binary_sparsemax_loss(label: Tensor, logit: Tensor) -> Tensor:
    """The sparsemax loss of labels 0 and 1: see :func:`torchopt.losses.sparsemax_loss`."""
    label, logit = _of_one_shape(label, logit)
    return losses.sparsemax_loss(logit, label)


def sparse_plus(x: Tensor) -> Tensor:
    r"""The sparse twin of softplus: 0 below -1, :math:`x` above 1, and :math:`(x + 1)^2 / 4` between.

    Example:
        >>> import torch
        >>> from torchopt.compat.jaxopt.loss import sparse_plus
        >>> sparse_plus(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([0.0000, 0.2500, 3.0000])
    """
    x = torch.as_tensor(x)
    return torch.where(x <= -1.0, 0.0, torch.where(x >= 1.0, x, (x + 1.0) ** 2 / 4))


def sparse_sigmoid(x: Tensor) -> Tensor:
    r"""The derivative of :func:`sparse_plus`: :math:`(x + 1) / 2`, between 0 and 1.

    Example:
        >>> import torch
        >>> from torchopt.compat.jaxopt.loss import sparse_sigmoid
        >>> sparse_sigmoid(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """
    return 0.5 * torch.clamp(torch.as_tensor(x) + 1.0, 0.0, 2.0)


def _signed(label: Any, score: Any) -> tuple[Tensor, Tensor]:
    """The score, and labels -1 and 1 for 0 and 1, of one shape."""
    label, score = _of_one_shape(label, score)
    return score, 2 * label.to(score.dtype) - 1


def binary_hinge_loss(label: Tensor, score: Tensor) -> Tensor:
    """The hinge loss of labels 0 and 1: see :func:`torchopt.losses.hinge_loss`."""
    return losses.hinge_loss(*_signed(label, score))


def binary_perceptron_loss(label: Tensor, score: Tensor) -> Tensor:
    """The perceptron loss of labels 0 and 1: see :func:`torchopt.losses.perceptron_loss`."""
    return losses.perceptron_loss(*_signed(label, score))


def multiclass_logistic_loss(label: Tensor, logits: Tensor) -> Tensor:
    """The cross-entropy: see :func:`torchopt.losses.softmax_cross_entropy_with_integer_labels`."""
    return losses.softmax_cross_entropy_with_integer_labels(_scores(logits), torch.as_tensor(label))


def multiclass_sparsemax_loss(label: Tensor, scores: Tensor) -> Tensor:
    """The sparsemax loss: see :func:`torchopt.losses.multiclass_sparsemax_loss`."""
    return losses.multiclass_sparsemax_loss(_scores(scores), torch.as_tensor(label))


def multiclass_hinge_loss(label: Tensor, scores: Tensor) -> Tensor:
    """The hinge loss of Crammer and Singer: see :func:`torchopt.losses.multiclass_hinge_loss`."""
    return losses.multiclass_hinge_loss(_scores(scores), torch.as_tensor(label))


def multiclass_perceptron_loss(label: Tensor, scores: Tensor) -> Tensor:
    """The perceptron loss: see :func:`torchopt.losses.multiclass_perceptron_loss`."""
    return losses.multiclass_perceptron_loss(_scores(scores), torch.as_tensor(label))


def make_fenchel_young_loss(max_fun: Callable[..., Any]) -> Callable[..., Tensor]:
    """A loss from a smooth maximum, ``loss(y_true, scores)``: see :func:`torchopt.losses.make_fenchel_young_loss`."""
    loss = losses.make_fenchel_young_loss(max_fun)

    def fy_loss(y_true: Tensor, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return loss(scores, y_true, *args, **kwargs)

    return fy_loss
