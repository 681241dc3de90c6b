# SPDX-License-Identifier: Apache-2.0
"""Losses for multiclass classification: hinge, perceptron, sparsemax."""

from __future__ import annotations

import math

import torch

from torchopt.losses.arguments import broadcastable, floating, integral
from torchopt.projections import unit_simplex


def multiclass_hinge_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""The multiclass hinge loss of Crammer and Singer.

    .. math::
        \ell(s, y) = \max_j \bigl(s_j + [j \ne y]\bigr) - s_y

    Args:
        scores: The scores :math:`s`, floating, of shape ``[..., num_classes]``.
        labels: The correct classes :math:`y`, integers of shape ``[...]``.  Out of range, no score is subtracted.

    Returns:
        The losses, of shape ``[...]``.

    Raises:
        TypeError: If ``scores`` are not floating or ``labels`` are not integers.
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> scores, labels = torch.tensor([[1.0, 3.0], [1.0, 1.5]]), torch.tensor([1, 1])
        >>> torchopt.losses.multiclass_hinge_loss(scores, labels)
        tensor([0.0000, 0.5000])

    References:
        Crammer and Singer, `On the algorithmic implementation of multiclass kernel-based vector machines
        <https://www.jmlr.org/papers/v2/crammer01a.html>`_, 2001.
    """
    return _lead(scores, labels, 1.0)


def multiclass_perceptron_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""The loss of the multiclass perceptron, :math:`\max_j s_j - s_y`.

    The arguments, the result and the errors are those of :func:`multiclass_hinge_loss`.

    Example:
        >>> import torch, torchopt
        >>> scores, labels = torch.tensor([[1.0, 3.0], [1.0, 1.5]]), torch.tensor([1, 0])
        >>> torchopt.losses.multiclass_perceptron_loss(scores, labels)
        tensor([0.0000, 0.5000])

    References:
        Collins, `Discriminative training methods for hidden Markov models
        <https://aclanthology.org/W02-1001>`_, 2002.
    """
    return _lead(scores, labels, 0.0)


def multiclass_sparsemax_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    r"""The sparsemax loss: the Fenchel-Young loss of the Gini entropy.

    With :math:`p`, the Euclidean projection of the scores onto the probability simplex,

    .. math::
        \ell(s, y) = \langle p, s \rangle - s_y + \tfrac12 (1 - \|p\|^2), \qquad \nabla_s \ell = p - e_y.

    It is exactly zero if the score of the correct class exceeds all others by at least 1.

    Args:
        scores: The scores :math:`s`, floating, of shape ``[batch, num_classes]``.
        labels: The correct classes :math:`y`, integers of shape ``[batch]``.  Negative labels count from the end;
            labels out of range are replaced by the nearest class.

    Returns:
        The losses, of shape ``[batch]``.

    Raises:
        TypeError: If ``scores`` are not floating or ``labels`` are not integers.
        ValueError: If the shapes do not match.

    Example:
        >>> import torch, torchopt
        >>> scores, labels = torch.tensor([[1.0, 3.0], [1.0, 1.5]]), torch.tensor([1, 1])
        >>> torchopt.losses.multiclass_sparsemax_loss(scores, labels)
        tensor([0.0000, 0.0625])

    References:
        Martins and Astudillo, `From softmax to sparsemax <https://arxiv.org/abs/1602.02068>`_, 2016.
    """
    scores = floating('scores', scores)
    labels = integral('labels', labels, scores)
    if scores.ndim < 1 or labels.shape != scores.shape[:-1]:
        raise ValueError(
            f'labels has shape {tuple(labels.shape)}, but scores has shape {tuple(scores.shape)}. '
            f'Pass one label for each row of scores.'
        )
    p = unit_simplex(scores)
    right, _ = pick(scores, labels)
    # Classes of probability 0 contribute 0, even if their score is -inf.
    best = scores.detach().amax(-1)
    behind = torch.where(p > 0, scores - best.unsqueeze(-1), 0.0)
    return (p * behind).sum(-1) + 0.5 * (1.0 - p.square().sum(-1)) + (best - right)


def pick(scores: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The score of each label's class.

    Args:
        scores: Of shape ``[..., num_classes]``.
        labels: Of shape ``[...]``.  Negative labels count from the end.  Labels out of range are replaced by the
            nearest class, since on a GPU torch would raise a device-side assertion.

    Returns:
        The scores, of shape ``[...]``, and a mask, False for labels out of range.
    """
    classes = scores.shape[-1]
    index = torch.where(labels < 0, labels + classes, labels)
    nearest = index.clamp(0, classes - 1)
    return torch.take_along_dim(scores, nearest.unsqueeze(-1), -1).squeeze(-1), nearest == index


def _lead(scores: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """The best score, with a margin added for the wrong classes, minus the score of the correct class."""
    scores = floating('scores', scores)
    labels = integral('labels', labels, scores)
    broadcastable('a row of scores', scores.shape[:-1], 'labels', labels)
    classes = torch.arange(scores.shape[-1], device=scores.device)
    is_right = labels.unsqueeze(-1) == classes
    right = torch.where(is_right, scores, 0.0).sum(-1, keepdim=True)
    # If the correct class has the score -inf, subtracting it first would make all others +inf: subtract it last.
    excluded = right == -math.inf
    ahead = torch.where(
        is_right, torch.where(excluded, right, 0.0), scores + margin - torch.where(excluded, 0.0, right)
    )
    return ahead.amax(-1) - torch.where(excluded, right, 0.0).squeeze(-1)
