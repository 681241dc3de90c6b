# SPDX-License-Identifier: Apache-2.0
"""Losses for image segmentation: the Dice loss and its variants."""

from __future__ import annotations

import torch

from torchopt.levels import is_transformed
from torchopt.losses.arguments import Axis, Number, axes, floating, real, same_shape, tensor
from torchopt.losses.masked import total


def dice_loss(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    smooth: Number = 1.0,
    alpha: Number = 0.5,
    beta: Number = 0.5,
    apply_softmax: bool = True,
    reduction: str = 'mean',
    ignore_background: bool = False,
    axis: Axis = None,
) -> torch.Tensor:
    r"""The soft Dice loss; with unequal weights, the Tversky loss.

    With the overlap :math:`I_c = \sum_i p_{ic} t_{ic}` of class :math:`c` over the pixels :math:`i`,

    .. math::
        \ell_c = w_c \left( 1 - \frac{I_c + s}
            {I_c + \alpha \left(\sum_i p_{ic} - I_c\right) + \beta \left(\sum_i t_{ic} - I_c\right) + s} \right).

    Args:
        predictions: Logits, floating, of shape ``[batch, ..., num_classes]``.  If ``num_classes`` is 1, the
            segmentation is binary, and ``predictions`` or ``targets`` may leave this dimension out.
        targets: The one-hot classes :math:`t` of the same shape.
        class_weights: The weights :math:`w`, of shape ``[num_classes]``; ones if None.
        smooth: The number :math:`s > 0` that avoids division by zero for classes without pixels.
        alpha: The weight :math:`\alpha` of false positives.
        beta: The weight :math:`\beta` of false negatives.
        apply_softmax: Whether ``predictions`` are logits; the probabilities :math:`p` are then their softmax, or
            their sigmoid for one class.  If False, ``predictions`` are the probabilities.
        reduction: The reduction over the classes: ``'mean'``, ``'sum'`` or ``'none'``.
        ignore_background: Whether to leave class 0 out, if there is more than one class.
        axis: The axis or axes of the pixels; all but the first and the last if None.

    Returns:
        The losses, of shape ``[batch]``; ``[batch, num_classes]`` without reduction.

    Raises:
        TypeError: If ``predictions`` are not floating.
        ValueError: If the shapes differ, an axis is out of bounds, the reduction is unknown, or the probabilities of
            several classes do not sum to 1.  The sums are checked on the CPU only, which needs no synchronization,
            and not inside ``torch.func`` transforms or ``torch.compile``.

    Example:
        >>> import torch, torchopt
        >>> targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # one picture of two pixels
        >>> torchopt.losses.dice_loss(torch.zeros(1, 2, 2), targets)
        tensor([0.2500])

    References:
        Milletari et al., `V-Net <https://arxiv.org/abs/1606.04797>`_, 2016.  Salehi et al., `Tversky loss function
        for image segmentation <https://arxiv.org/abs/1706.05721>`_, 2017.
    """
    predictions = floating('predictions', predictions)
    targets = real('targets', targets, predictions)
    if predictions.ndim == targets.ndim - 1:
        predictions = predictions.unsqueeze(-1)
    elif targets.ndim == predictions.ndim - 1:
        targets = targets.unsqueeze(-1)
    same_shape('predictions', predictions, 'targets', targets)
    if reduction not in ('mean', 'sum', 'none'):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'.")
    p = _probabilities(predictions, apply_softmax)
    dims = tuple(range(1, p.ndim - 1)) if axis is None else axes(axis, 'predictions', p)
    overlap, positive, true = (total(x, dims) for x in (p * targets, p, targets))
    loss = 1.0 - (overlap + smooth) / (overlap + alpha * (positive - overlap) + beta * (true - overlap) + smooth)
    if class_weights is not None:
        weights = tensor(class_weights, p)
        if weights.ndim != 1:
            raise ValueError(
                f'class_weights has shape {tuple(weights.shape)}; expected [num_classes], one weight per class.'
            )
        loss = loss * weights
    if ignore_background and p.shape[-1] > 1:
        loss = loss[..., 1:]
    if reduction == 'none':
        return loss
    return loss.mean(-1) if reduction == 'mean' else loss.sum(-1)


def multiclass_generalized_dice_loss(
    predictions: torch.Tensor,
    targets: torch.Tensor,
    *,
    smooth: Number = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
) -> torch.Tensor:
    r"""The Dice loss with larger weights for rarer classes.

    The weight of a class with :math:`n_c` pixels in the batch is proportional to :math:`1 / n_c^2`; their mean is 1.

    Args:
        predictions: Logits, floating, of shape ``[batch, ..., num_classes]``.
        targets: The one-hot classes, of the same shape.
        smooth: The number added to numerator and denominator; see :func:`dice_loss`.
        apply_softmax: Whether ``predictions`` are logits; if False, they are probabilities.
        ignore_background: Whether to leave class 0 out, if there is more than one class.

    Returns:
        The mean over batch and classes, a 0-d tensor.

    Raises:
        TypeError: If ``predictions`` are not floating.
        ValueError: If the shapes differ, or the probabilities do not sum to 1; see :func:`dice_loss`.

    Example:
        >>> import torch, torchopt
        >>> targets = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> torchopt.losses.multiclass_generalized_dice_loss(torch.zeros(1, 2, 2), targets)
        tensor(0.2500)

    References:
        Sudre et al., `Generalised Dice overlap as a deep learning loss function for highly unbalanced segmentations
        <https://arxiv.org/abs/1707.03237>`_, 2017.
    """
    predictions = floating('predictions', predictions)
    targets = real('targets', targets, predictions)
    same_shape('predictions', predictions, 'targets', targets)
    weights = 1.0 / (total(targets, tuple(range(targets.ndim - 1))).square() + 1e-7)
    weights = weights / weights.mean()
    return dice_loss(
        predictions,
        targets,
        class_weights=weights,
        smooth=smooth,
        apply_softmax=apply_softmax,
        reduction='none',
        ignore_background=ignore_background,
    ).mean()


def binary_dice_loss(
    predictions: torch.Tensor, targets: torch.Tensor, *, smooth: Number = 1.0, apply_sigmoid: bool = True
) -> torch.Tensor:
    r"""The Dice loss of a binary segmentation.

    Args:
        predictions: Logits, floating, of shape ``[batch, ...]`` or ``[batch, ..., 1]``.
        targets: The classes 0 or 1, of one of these shapes.
        smooth: The number added to numerator and denominator; see :func:`dice_loss`.
        apply_sigmoid: Whether ``predictions`` are logits; if False, they are the probabilities of class 1.

    Returns:
        The losses, of shape ``[batch]``.

    Raises:
        TypeError: If ``predictions`` are not floating.
        ValueError: If the shapes differ.

    Example:
        >>> import torch, torchopt
        >>> torchopt.losses.binary_dice_loss(torch.zeros(1, 2), torch.tensor([[1, 0]]))
        tensor([0.2500])
    """
    predictions = floating('predictions', predictions)
    targets = real('targets', targets, predictions)
    if predictions.ndim == targets.ndim and predictions.shape[-1:] != (1,):
        predictions, targets = predictions.unsqueeze(-1), targets.unsqueeze(-1)
    return dice_loss(predictions, targets, smooth=smooth, apply_softmax=apply_sigmoid)


def _probabilities(predictions: torch.Tensor, apply_softmax: bool) -> torch.Tensor:
    single = predictions.shape[-1] == 1
    if apply_softmax:
        return predictions.sigmoid() if single else predictions.softmax(-1)
    if not single and predictions.device.type == 'cpu' and not is_transformed(predictions):
        sums = predictions.detach().sum(-1)
        tolerance = max(1e-5, 4 * torch.finfo(sums.dtype).eps)
        if not torch.allclose(sums, torch.ones_like(sums), rtol=tolerance):
            raise ValueError(
                f'predictions sum to between {sums.min():.6f} and {sums.max():.6f} along the classes; expected '
                f'probabilities, which sum to 1. Pass apply_softmax=True if they are logits.'
            )
    return predictions
