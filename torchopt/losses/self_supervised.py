# SPDX-License-Identifier: Apache-2.0
"""Losses for learning embeddings: NT-Xent and the triplet loss."""

from __future__ import annotations

import math

import torch

from torchopt.losses.arguments import Number, axes, broadcastable, floating, tensor
from torchopt.losses.cosine import cosine_similarity


def ntxent(embeddings: torch.Tensor, labels: torch.Tensor, temperature: Number = 0.07) -> torch.Tensor:
    r"""The contrastive loss NT-Xent of SimCLR, the normalized temperature-scaled cross entropy.

    Let :math:`s_{ij} = \cos(z_i, z_j) / \tau`, let :math:`P` be the pairs :math:`(i, j)`, :math:`i \ne j`, with equal
    labels, and :math:`N(i)` the indices whose label differs from that of :math:`i`.  Then

    .. math::
        \ell = -\frac{1}{|P|} \sum_{(i, j) \in P}
            \log \frac{e^{s_{ij}}}{e^{s_{ij}} + \sum_{k \in N(i)} e^{s_{ik}}}.

    Args:
        embeddings: The embeddings :math:`z`, floating, of shape ``[batch, dim]``.
        labels: One label for each embedding, of shape ``[batch]``.
        temperature: The temperature :math:`\tau > 0`.

    Returns:
        The loss, a 0-d tensor; NaN if there is no positive pair.

    Raises:
        TypeError: If ``embeddings`` are not floating.
        ValueError: If the shapes do not match.

    Example:
        >>> import torch, torchopt
        >>> z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> torchopt.losses.ntxent(z, torch.tensor([0, 0, 1, 1]), temperature=1.0)
        tensor(0.5514)

    References:
        Chen et al., `A simple framework for contrastive learning of visual representations
        <https://arxiv.org/abs/2002.05709>`_, 2020.
    """
    embeddings = floating('embeddings', embeddings)
    labels = labels if isinstance(labels, torch.Tensor) else torch.as_tensor(labels, device=embeddings.device)
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f'embeddings has shape {tuple(embeddings.shape)} and labels has shape {tuple(labels.shape)}; expected '
            f'[batch, dim] and [batch]. Pass one label for each embedding.'
        )
    epsilon = torch.finfo(embeddings.dtype).eps
    similar = cosine_similarity(embeddings.unsqueeze(0), embeddings.unsqueeze(1), epsilon=epsilon) / temperature
    match = labels.unsqueeze(1) == labels.unsqueeze(0)
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    positive = match & ~itself
    negatives = torch.where(match, -math.inf, similar)
    if len(embeddings) == 0:
        return similar.sum() / 0.0
    # The denominator of a positive pair contains the negatives of its row, but no other positives.
    largest = torch.where(itself, -math.inf, similar).amax(1, keepdim=True).detach()
    shifted = similar - largest
    rivals = (negatives - largest).exp().sum(1, keepdim=True)
    log_p = shifted - torch.where(positive, shifted.exp() + rivals, 1.0).log()
    return -torch.where(positive, log_p, 0.0).sum() / positive.sum()


def triplet_margin_loss(
    anchors: torch.Tensor,
    positives: torch.Tensor,
    negatives: torch.Tensor,
    axis: int = -1,
    norm_degree: Number = 2,
    margin: Number = 1.0,
    eps: Number = 1e-6,
) -> torch.Tensor:
    r"""The triplet loss, zero if an anchor is closer to its positive than to its negative by at least a margin.

    .. math::
        \ell = \max\bigl(0, d(a, p) - d(a, n) + m\bigr), \qquad
        d(x, y) = \Bigl(\sum_i |x_i - y_i|^q + \epsilon \Bigr)^{1/q}

    Args:
        anchors: The anchors :math:`a`, floating, of shape ``[..., dim]``.
        positives: The positives :math:`p`, floating, of a shape that broadcasts.
        negatives: The negatives :math:`n`, floating, of a shape that broadcasts.
        axis: The axis of the components.
        norm_degree: The degree :math:`q \ge 1` of the norm.
        margin: The margin :math:`m`.
        eps: The number :math:`\epsilon \ge 0` that keeps the derivative finite if a distance is zero.

    Returns:
        The losses, of shape ``[...]``.

    Raises:
        TypeError: If a tensor is not floating.
        ValueError: If the axis is out of bounds or the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> a, p, n = torch.tensor([0.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.5, 0.0])
        >>> torchopt.losses.triplet_margin_loss(a, p, n)
        tensor(0.5000)

    References:
        Balntas et al., `Learning local feature descriptors with triplets and shallow convolutional neural networks
        <https://doi.org/10.5244/C.30.119>`_, 2016.
    """
    anchors = floating('anchors', anchors)
    degree = tensor(norm_degree, anchors)
    # The absolute value has no second derivative at zero, so an even power is one of the square.
    even = degree % 2 == 0
    exponent = torch.where(even, degree / 2, degree)

    def distance(name: str, other: torch.Tensor) -> torch.Tensor:
        other = floating(name, other, anchors)
        broadcastable('anchors', anchors, name, other)
        gap = anchors - other
        dims = axes(axis, 'anchors', gap)
        least = tensor(eps, gap).pow(1 / degree)
        # Divide by the largest term so that the powers neither overflow nor underflow.
        largest = torch.maximum(gap.detach().abs().amax(dims, keepdim=True), least.detach())
        largest = torch.where(largest > 0, largest, 1.0)
        ratio = gap / largest
        powers = torch.where(even, ratio.square(), ratio.abs()).pow(exponent)
        powers = powers.sum(dims, keepdim=True) + (least / largest).pow(degree)
        return (largest * powers.pow(1 / degree)).squeeze(dims)

    ahead = distance('positives', positives) - distance('negatives', negatives) + margin
    return torch.maximum(ahead, torch.zeros_like(ahead))
