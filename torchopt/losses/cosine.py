# SPDX-License-Identifier: Apache-2.0
"""Cosine similarity and cosine distance."""

from __future__ import annotations

import torch
from torch import Tensor

from torchopt.losses.arguments import Axis, Number, axes, broadcastable, floating, mask, tensor
from torchopt.losses.masked import keep, total


def cosine_similarity(
    predictions: Tensor, targets: Tensor, *, epsilon: Number = 0.0, axis: Axis = -1, where: Tensor | None = None
) -> Tensor:
    r"""The cosine similarity of predictions and targets.

    .. math::
        \cos(x, y) = \frac{\langle x, y \rangle}{\sqrt{\max(\|x\|^2, \epsilon)} \sqrt{\max(\|y\|^2, \epsilon)}}

    Args:
        predictions: The vectors :math:`x`, floating, of shape ``[..., dim]``.
        targets: The vectors :math:`y`, floating, of a shape that broadcasts.
        epsilon: The lower bound :math:`\epsilon \ge 0` of the squared norms.  With 0, a zero vector gives NaN.
        axis: The axis or axes of the components; None for all.
        where: Mask of the components to include; all if None.

    Returns:
        The cosines, of shape ``[...]``.

    Raises:
        TypeError: If a tensor is not floating.
        ValueError: If an axis is out of bounds or the shapes do not broadcast.

    Example:
        >>> import torch, torchopt
        >>> x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> torchopt.losses.cosine_similarity(x, y)
        tensor([0.6000, 0.0000])
    """
    x = floating('predictions', predictions)
    y = floating('targets', targets, x)
    broadcastable('predictions', x, 'targets', y)
    where = mask(where, x)

    def unit(v: Tensor) -> Tensor:
        dims = axes(axis, 'a tensor', v)
        least = tensor(epsilon, v).sqrt()
        # Divide by the largest component so that the squares neither overflow nor underflow.
        largest = v.detach().abs().amax(dims, keepdim=True) if v.numel() and dims else v.detach().abs()
        largest = torch.where(largest > 0, largest, 1.0)
        squared = total((v / largest).square(), dims, keepdim=True)
        short = (least > 0) & (squared.detach().sqrt() * largest <= least)
        return v / torch.where(short, least, torch.where(short, 1.0, squared).sqrt() * largest)

    x, y = keep(where, x, y)
    product = unit(x) * unit(y)
    return total(product, axes(axis, 'predictions', product))


def cosine_distance(
    predictions: Tensor, targets: Tensor, *, epsilon: Number = 0.0, axis: Axis = -1, where: Tensor | None = None
) -> Tensor:
    r"""One minus the cosine similarity: 0 for equal directions, 2 for opposite ones.

    The arguments and errors are those of :func:`cosine_similarity`.

    Returns:
        The distances, of shape ``[...]``.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.cosine_distance(torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0]))
        tensor(2.)
    """
    return 1.0 - cosine_similarity(predictions, targets, epsilon=epsilon, axis=axis, where=where)
