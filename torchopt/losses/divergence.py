# SPDX-License-Identifier: Apache-2.0
"""The Kullback-Leibler divergence of distributions and of unnormalized measures."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt.losses.arguments import Axis, axes, broadcastable, floating, mask
from torchopt.losses.masked import finite_where, keep, total


def kl_divergence(log_predictions: Tensor, targets: Tensor, axis: Axis = -1, where: Tensor | None = None) -> Tensor:
    r"""The Kullback-Leibler divergence of predictions from targets.

    .. math::
        \operatorname{KL}(p \,\|\, q) = \sum_j p_j (\log p_j - \log q_j), \qquad 0 \log 0 = 0

    Thus :math:`\log q_j = -\infty` is allowed if :math:`p_j = 0`.

    Args:
        log_predictions: The logarithms :math:`\log q`, floating, of shape ``[..., dim]``.
        targets: The distributions :math:`p \ge 0`, floating, of a shape that broadcasts.
        axis: The axis or axes of a distribution; None for all.
        where: Mask of the elements to include; all if None.

    Returns:
        The divergences, of shape ``[...]``.

    Raises:
        TypeError: If a tensor is not floating.
        ValueError: If an axis is out of bounds or the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> q, p = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])
        >>> torchopt.losses.kl_divergence(q.log(), p)
        tensor(0.6931)

    References:
        Kullback and Leibler, `On information and sufficiency <https://doi.org/10.1214/aoms/1177729694>`_, 1951.
    """
    log_q, p = _two(log_predictions, targets, 'targets', where)
    # Replace log 0 by log 1: the infinite derivative of log at 0 would make the gradient NaN.
    terms = p * (torch.where(p == 0, 1.0, p).log() - finite_where(p, log_q))
    return _sum(terms, axis, where)


def kl_divergence_with_log_targets(
    log_predictions: Tensor, log_targets: Tensor, axis: Axis = -1, where: Tensor | None = None
) -> Tensor:
    r"""The Kullback-Leibler divergence of :func:`kl_divergence`, given the logarithms of the targets.

    Args:
        log_predictions: The logarithms :math:`\log q`, floating, of shape ``[..., dim]``.
        log_targets: The logarithms :math:`\log p`, floating, of a shape that broadcasts.
        axis: The axis or axes of a distribution; None for all.
        where: Mask of the elements to include; all if None.

    Returns:
        The divergences, of shape ``[...]``.

    Raises:
        TypeError: If a tensor is not floating.
        ValueError: If an axis is out of bounds or the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> q, p = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> torchopt.losses.kl_divergence_with_log_targets(q.log(), p.log())
        tensor(0.1308)
    """
    log_q, log_p = _two(log_predictions, log_targets, 'log_targets', where)
    p = log_p.exp()
    return _sum(p * (finite_where(p, log_p) - finite_where(p, log_q)), axis, where)


def generalized_kl_divergence(
    log_predictions: Tensor, targets: Tensor, axis: Axis = -1, where: Tensor | None = None
) -> Tensor:
    r"""The Kullback-Leibler divergence of measures that need not sum to one.

    .. math::
        D(p \,\|\, q) = \sum_j \Bigl( p_j \log \frac{p_j}{q_j} - p_j + q_j \Bigr)

    It is the Bregman divergence of :math:`x \log x - x`: nonnegative, and zero only if :math:`p = q`.

    The arguments and errors are those of :func:`kl_divergence`, for measures.

    Example:
        >>> import torch, torchopt
        >>> q, p = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0])
        >>> torchopt.losses.generalized_kl_divergence(q.log(), p)
        tensor(0.3863)

    References:
        Bregman, `The relaxation method of finding the common point of convex sets
        <https://doi.org/10.1016/0041-5553(67)90040-7>`_, 1967.
    """
    log_q, p = _two(log_predictions, targets, 'targets', where)
    return kl_divergence(log_q, p, axis, where) + _sum(log_q.exp() - p, axis, where)


convex_kl_divergence = generalized_kl_divergence
"""Optax's older name of :func:`generalized_kl_divergence`."""


def _two(log_predictions: Tensor, targets: Tensor, name: str, where: Tensor | None) -> tuple[Tensor, ...]:
    x = floating('log_predictions', log_predictions)
    y = floating(name, targets, x)
    broadcastable('log_predictions', x, name, y)
    return keep(mask(where, x), x, y)


def _sum(terms: Tensor, axis: Axis, where: Tensor | None) -> Tensor:
    return total(terms, axes(axis, 'log_predictions', terms), mask(where, terms))
