# SPDX-License-Identifier: Apache-2.0
"""Label smoothing."""

from __future__ import annotations

import math

from torch import Tensor

from torchopt.losses.arguments import Axis, Number, axes, floating, mask
from torchopt.losses.masked import total


def smooth_labels(labels: Tensor, alpha: Number, *, axis: Axis = -1, where: Tensor | None = None) -> Tensor:
    r"""Mix one-hot labels with the uniform distribution over the :math:`K` classes.

    .. math::
        y' = (1 - \alpha)\, y + \alpha / K

    A classifier trained on smoothed labels learns probabilities of at most about :math:`1 - \alpha + \alpha / K`.

    Args:
        labels: The distributions :math:`y`, floating, of shape ``[..., num_classes]``.
        alpha: The weight :math:`\alpha \in [0, 1]` of the uniform distribution.
        axis: The axis or axes of the classes; None for all.
        where: Mask of the classes counted in :math:`K`; all if None.

    Returns:
        The smoothed labels, of the same shape.

    Raises:
        TypeError: If ``labels`` are not floating.
        ValueError: If an axis is out of bounds.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.smooth_labels(torch.tensor([0.0, 1.0, 0.0, 0.0]), 0.2)
        tensor([0.0500, 0.8500, 0.0500, 0.0500])

    References:
        Müller et al., `When does label smoothing help? <https://arxiv.org/abs/1906.02629>`_, 2019.
    """
    labels = floating('labels', labels)
    where = mask(where, labels)
    if where is None:
        classes: Number = max(math.prod([labels.shape[dim] for dim in axes(axis, 'labels', labels)]), 1)
    else:
        classes = total(where, axes(axis, 'where', where), keepdim=True).to(labels.dtype)
    return (1.0 - alpha) * labels + alpha / classes
