# SPDX-License-Identifier: Apache-2.0
"""Softmax cross entropy: for distributions, for integer labels, with logits of -inf, and the PolyLoss."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchopt.losses.arguments import Axis, Number, axes, broadcastable, floating, integral, mask, real
from torchopt.losses.masked import align, keep, log_softmax, normalizer, total
from torchopt.losses.multiclass import pick


def softmax_cross_entropy(logits: Tensor, labels: Tensor, axis: Axis = -1, where: Tensor | None = None) -> Tensor:
    r"""The cross entropy of the softmax of the logits, for labels that are distributions.

    .. math::
        \ell(x, y) = -\sum_j y_j \log \frac{e^{x_j}}{\sum_k e^{x_k}}

    A logit of ``-inf`` with a label of 0 gives NaN; :func:`safe_softmax_cross_entropy` defines
    :math:`0 \log 0 = 0`.

    Args:
        logits: The logits :math:`x`, floating, of shape ``[..., num_classes]``.
        labels: The distributions :math:`y`, of a shape that broadcasts.
        axis: The axis or axes of the classes; None for all.
        where: Mask of the classes to include, of the shape of ``logits``, or of whole rows, of shape ``[...]``; all
            if None.  The loss of a row without classes is 0.

    Returns:
        The losses, of shape ``[...]``.

    Raises:
        TypeError: If ``logits`` are not floating.
        ValueError: If an axis is out of bounds or the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> logits = torch.tensor([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
        >>> labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> torchopt.losses.softmax_cross_entropy(logits, labels)
        tensor([0.2761, 2.9518])
    """
    logits = floating('logits', logits)
    labels = real('labels', labels, logits)
    broadcastable('logits', logits, 'labels', labels)
    dims = axes(axis, 'logits', logits)
    where = align(mask(where, logits), dims, logits.ndim)
    return -total(keep(where, labels)[0] * log_softmax(logits, dims, where), dims)


def softmax_cross_entropy_with_integer_labels(
    logits: Tensor, labels: Tensor, axis: int | tuple[int, ...] = -1, where: Tensor | None = None
) -> Tensor:
    r"""The cross entropy of the softmax of the logits, for integer labels.

    .. math::
        \ell(x, y) = \log \sum_j e^{x_j} - x_y

    Args:
        logits: The logits :math:`x`, floating, of shape ``[..., num_classes]``.
        labels: The classes :math:`y`, integers of shape ``[...]``.  Negative labels count from the end; a label out
            of range gives NaN.
        axis: The axis or axes of the classes.  For several axes, a label is an index into these axes flattened in
            the given order, the last one varying fastest.
        where: Mask of the classes to include, of the shape of ``logits``, or of whole rows, of shape ``[...]``; all
            if None.  The loss of a row without classes is 0.

    Returns:
        The losses, of shape ``[...]``.

    Raises:
        TypeError: If ``logits`` are not floating or ``labels`` are not integers.
        ValueError: If an axis is out of bounds or None, or the shapes do not match.

    Example:
        >>> import torch, torchopt
        >>> logits = torch.tensor([[1.2, -0.8, -0.5], [0.9, -1.2, 1.1]])
        >>> torchopt.losses.softmax_cross_entropy_with_integer_labels(logits, torch.tensor([0, 1]))
        tensor([0.2761, 2.9518])
    """
    logits = floating('logits', logits)
    labels = integral('labels', labels, logits)
    if axis is None:
        raise ValueError('axis is None; expected an int or a tuple of ints, the axes of the classes.')
    dims = axes(axis, 'logits', logits)
    where = align(mask(where, logits), dims, logits.ndim)
    scores = _classes_last(logits, dims)
    if labels.ndim != scores.ndim - 1:
        raise ValueError(
            f'labels has shape {tuple(labels.shape)}, but logits without the axes of the classes has shape '
            f'{tuple(scores.shape[:-1])}. Pass one class for each row; for one-hot labels use softmax_cross_entropy.'
        )
    broadcastable('logits without the axes of the classes', scores.shape[:-1], 'labels', labels)
    right, exists = pick(scores, labels)
    if where is not None:
        where = _classes_last(where.expand(logits.shape), dims)
    loss = normalizer(scores, (-1,), where) - torch.where(exists, right, math.nan)
    return loss if where is None else torch.where(where.any(-1), loss, 0.0)


def safe_softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""The cross entropy of :func:`softmax_cross_entropy`, with :math:`0 \log 0 = 0`.

    Logits of ``-inf`` thus exclude classes without NaN in the loss or in its gradient with respect to the logits.

    Args:
        logits: The logits, floating, of shape ``[..., num_classes]``.
        labels: The distributions, of a shape that broadcasts.

    Returns:
        The losses, of shape ``[...]``.

    Raises:
        TypeError: If ``logits`` are not floating.
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> logits, labels = torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([1.0, 0.0, 0.0])
        >>> torchopt.losses.safe_softmax_cross_entropy(logits, labels)
        tensor(0.6931)
    """
    logits = floating('logits', logits)
    labels = real('labels', labels, logits)
    broadcastable('logits', logits, 'labels', labels)
    log_p = torch.log_softmax(logits, -1)
    return -(labels * torch.where((labels == 0) & ~log_p.isfinite(), 0.0, log_p)).sum(-1)


def poly_loss_cross_entropy(
    logits: Tensor, labels: Tensor, *, epsilon: Number = 2.0, axis: Axis = -1, where: Tensor | None = None
) -> Tensor:
    r"""The PolyLoss: the cross entropy with a different first coefficient in its power series.

    With the probability :math:`p` of the correct class, the cross entropy is
    :math:`-\log p = \sum_{j \ge 1} (1 - p)^j / j`.  The PolyLoss changes the first coefficient to
    :math:`1 + \epsilon`:

    .. math::
        \ell(x, y) = -\sum_j y_j \log p_j + \epsilon \sum_j y_j (1 - p_j), \qquad p = \operatorname{softmax}(x)

    Args:
        logits: The logits :math:`x`, floating, of shape ``[..., num_classes]``.
        labels: The distributions :math:`y`, floating, of a shape that broadcasts.
        epsilon: The change :math:`\epsilon` of the first coefficient.  The paper uses 2 for image classification
            and -1 for detection and segmentation.
        axis: The axis or axes of the classes; None for all.
        where: Mask of the classes to include, of the shape of ``logits``; all if None.

    Returns:
        The losses, of shape ``[...]``.

    Raises:
        TypeError: If a tensor is not floating.
        ValueError: If an axis is out of bounds or the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.poly_loss_cross_entropy(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
        tensor(1.6931)

    References:
        Leng et al., `PolyLoss <https://arxiv.org/abs/2204.12511>`_, 2022.
    """
    logits = floating('logits', logits)
    labels = floating('labels', labels, logits)
    broadcastable('logits', logits, 'labels', labels)
    dims = axes(axis, 'logits', logits)
    where = align(mask(where, logits), dims, logits.ndim)
    log_p = log_softmax(logits, dims, where)
    return total(keep(where, labels)[0] * (epsilon * -torch.expm1(log_p) - log_p), dims)


def _classes_last(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Flatten the axes of the classes, in the given order, into one last axis."""
    if not dims:
        return x.unsqueeze(-1)
    return x.movedim(dims, tuple(range(-len(dims), 0))).flatten(-len(dims))
