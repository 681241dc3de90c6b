# SPDX-License-Identifier: Apache-2.0
"""Elementwise losses for binary classification: logistic, focal, hinge, perceptron, sparsemax."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchopt.losses.arguments import Number, broadcastable, floating, real, same_shape, tensor
from torchopt.losses.masked import finite_where


def sigmoid_binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""The binary cross entropy of each logit.

    .. math::
        \ell(x, y) = -y \log \sigma(x) - (1 - y) \log \sigma(-x), \qquad 0 \log 0 = 0

    Args:
        logits: The log-odds :math:`x`, a floating tensor of any shape.
        labels: The probabilities :math:`y \in [0, 1]` of "yes", of any real dtype and a shape that broadcasts.

    Returns:
        The losses, of the common shape.

    Raises:
        TypeError: If ``logits`` are not floating.
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> logits, labels = torch.tensor([0.0, 2.0]), torch.tensor([1, 0])
        >>> torchopt.losses.sigmoid_binary_cross_entropy(logits, labels)
        tensor([0.6931, 2.1269])
    """
    logits = floating('logits', logits)
    labels = real('labels', labels, logits).to(logits.dtype)
    broadcastable('logits', logits, 'labels', labels)
    yes, no = labels, 1.0 - labels
    return -yes * finite_where(yes, F.logsigmoid(logits)) - no * finite_where(no, F.logsigmoid(-logits))


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, *, alpha: Number | None = None, gamma: Number = 2.0) -> Tensor:
    r"""The focal loss, a binary cross entropy with smaller weights for examples that are easy to classify.

    With the cross entropy :math:`\ell(x, y)` of :func:`sigmoid_binary_cross_entropy` and the probability
    :math:`q = (1 - y)\, \sigma(x) + y\, \sigma(-x)` of a wrong prediction,

    .. math::
        \ell_\text{focal} = \bigl(\alpha y + (1 - \alpha)(1 - y)\bigr)\, q^\gamma\, \ell(x, y).

    The power is computed in log space, so that it does not underflow if the prediction is nearly certain.

    Args:
        logits: The log-odds :math:`x`, a floating tensor of any shape.
        labels: The probabilities :math:`y \in [0, 1]` of "yes", of any real dtype and a shape that broadcasts.
        alpha: The weight :math:`\alpha \in (0, 1)` of the positive class; the factor is left out if None.
        gamma: The exponent :math:`\gamma \ge 0`; 0 gives the cross entropy.

    Returns:
        The losses, of the common shape.

    Raises:
        TypeError: If ``logits`` are not floating.
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> logits, labels = torch.tensor([0.0, 2.0]), torch.tensor([1, 1])
        >>> torchopt.losses.sigmoid_focal_loss(logits, labels)
        tensor([0.1733, 0.0018])

    References:
        Lin et al., `Focal loss for dense object detection <https://arxiv.org/abs/1708.02002>`_, 2017.
    """
    logits = floating('logits', logits)
    labels = real('labels', labels, logits).to(logits.dtype)
    loss = sigmoid_binary_cross_entropy(logits, labels)
    # log q = log((1 - y) e^a + y e^b). Terms of weight zero must not take part in the maximum.
    a = torch.where(labels == 1.0, -math.inf, F.logsigmoid(logits))
    b = torch.where(labels == 0.0, -math.inf, F.logsigmoid(-logits))
    largest = torch.maximum(a, b).detach()
    largest = torch.where(largest.isinf(), 0.0, largest)
    wrong = (1.0 - labels) * (a - largest).exp() + labels * (b - largest).exp()
    never = wrong == 0
    log_wrong = torch.where(never, 1.0, wrong).log() + largest
    factor = torch.where(never, 0.0 ** tensor(gamma, loss), (gamma * log_wrong).exp())
    # If the loss is infinite, the factor has reached its limit and its derivative is 0.
    endless = loss.isinf()
    loss = torch.where(endless, loss * factor.detach(), torch.where(endless, 0.0, loss) * factor)
    return loss if alpha is None else (alpha * labels + (1.0 - alpha) * (1.0 - labels)) * loss


def hinge_loss(predictor_outputs: Tensor, targets: Tensor) -> Tensor:
    r"""The hinge loss of the support vector machine, :math:`\max(0, 1 - x y)`.

    Args:
        predictor_outputs: The values :math:`x` of the decision function, of any shape.
        targets: The classes :math:`y \in \{-1, 1\}`, of a shape that broadcasts.

    Returns:
        The losses, of the common shape.

    Raises:
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.hinge_loss(torch.tensor([2.0, 0.5, 0.5]), torch.tensor([1, 1, -1]))
        tensor([0.0000, 0.5000, 1.5000])

    References:
        Cortes and Vapnik, `Support-vector networks <https://doi.org/10.1007/BF00994018>`_, 1995.
    """
    outputs = tensor(predictor_outputs)
    targets = tensor(targets, outputs)
    broadcastable('predictor_outputs', outputs, 'targets', targets)
    return _positive_part(1 - outputs * targets)


def perceptron_loss(predictor_outputs: Tensor, targets: Tensor) -> Tensor:
    r"""The loss of the binary perceptron, :math:`\max(0, -x y)`.

    Args:
        predictor_outputs: The scores :math:`x`, of any shape.
        targets: The classes :math:`y \in \{-1, 1\}`, of the same shape.

    Returns:
        The losses, of the same shape.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.perceptron_loss(torch.tensor([2.0, 0.5]), torch.tensor([1, -1]))
        tensor([0.0000, 0.5000])

    References:
        Rosenblatt, `The perceptron: a probabilistic model for information storage and organization in the brain
        <https://doi.org/10.1037/h0042519>`_, 1958.
    """
    outputs = tensor(predictor_outputs)
    targets = tensor(targets, outputs)
    same_shape('predictor_outputs', outputs, 'targets', targets)
    return _positive_part(-outputs * targets)


def sparsemax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    r"""The binary sparsemax loss, which is exactly zero for correct predictions with margin at least 1.

    With :math:`s = x` for a label of 0 and :math:`s = -x` for a label of 1,

    .. math::
        \ell(s) = \begin{cases}
            0 & \text{if } s \le -1 \\
            \tfrac14 (s + 1)^2 & \text{if } -1 < s < 1 \\
            s & \text{otherwise.}
        \end{cases}

    Args:
        logits: The scores :math:`x`, a floating tensor of any shape.
        labels: The classes 0 or 1 (or bools), of a shape that broadcasts.

    Returns:
        The losses, of the common shape.

    Raises:
        TypeError: If ``logits`` are not floating.
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.sparsemax_loss(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0, 0, 0]))
        tensor([0.0000, 0.2500, 3.0000])

    References:
        Blondel, Martins and Niculae, `Learning with Fenchel-Young losses <https://arxiv.org/abs/1901.02324>`_, 2020.
    """
    logits = floating('logits', logits)
    labels = tensor(labels, logits)
    broadcastable('logits', logits, 'labels', labels)
    s = torch.where(labels != 0, -logits, logits)
    # Without torch.where, whose unused branch would square a large s and make its derivatives infinite.
    return 0.25 * (s.clamp(-1.0, 1.0) + 1.0).square() + (s - 1.0).relu()


def _positive_part(x: Tensor) -> Tensor:
    r""":math:`\max(0, x)` with the derivative 1/2 at 0, the midpoint of its subdifferential."""
    return torch.maximum(x, torch.zeros_like(x))
