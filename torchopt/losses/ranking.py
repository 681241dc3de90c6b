# SPDX-License-Identifier: Apache-2.0
"""Losses for learning to rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchopt.losses.arguments import broadcastable, floating, mask, real
from torchopt.losses.masked import keep, log_softmax, total


def ranking_softmax_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    where: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    reduce_fn: Callable[..., Any] | None = torch.mean,
) -> torch.Tensor:
    r"""The softmax ranking loss, also known as the ListNet loss.

    .. math::
        \ell(s, y) = -\sum_i w_i y_i \log \frac{e^{s_i}}{\sum_j e^{s_j}}

    Args:
        logits: The scores :math:`s` of the items, floating, of shape ``[..., list_size]``.
        labels: Their relevance :math:`y`, of any real dtype and of the same shape.
        where: Mask of the items to include; all if None.
        weights: The weights :math:`w` of the items, of a shape that broadcasts; ones if None.
        reduce_fn: Reduces the losses of the lists.  ``torch.mean`` and ``torch.sum`` ignore lists without items.
            Any other function is called as ``f(losses, where=mask_of_lists)``, with None as ``where`` if there is no
            mask.  None means no reduction; the loss of a list without items is then 0.

    Returns:
        The reduced loss, or the losses, of shape ``[...]``.  If all lists are without items, the mean is 0.

    Raises:
        TypeError: If ``logits`` are not floating.
        ValueError: If the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> scores = torch.tensor([[2.0, 1.0, 0.0], [1.0, 0.5, 1.5]])
        >>> labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> where = torch.tensor([[True, True, False], [True, True, True]])
        >>> torchopt.losses.ranking_softmax_loss(scores, labels, where=where)
        tensor(0.4968)

    References:
        Cao et al., `Learning to rank: from pairwise approach to listwise approach
        <https://doi.org/10.1145/1273496.1273513>`_, 2007.
    """
    logits = floating('logits', logits)
    labels = real('labels', labels, logits).to(logits.dtype)
    broadcastable('logits', logits, 'labels', labels)
    where = mask(where, logits)
    if weights is not None:
        weights = real('weights', weights, logits)
        broadcastable('labels', labels, 'weights', weights)
        labels, weights = keep(where, labels, weights)
        labels = labels * weights
    (labels,) = keep(where, labels)
    loss = -total(labels * log_softmax(logits, (logits.ndim - 1,), where), (-1,))
    exists = None if where is None else where.any(-1)
    if reduce_fn is torch.mean:
        count: Any = max(loss.numel(), 1) if exists is None else exists.expand(loss.shape).sum().clamp(min=1)
        return loss.sum() / count
    if reduce_fn is torch.sum:
        return loss.sum()
    return loss if reduce_fn is None else reduce_fn(loss, where=exists)
