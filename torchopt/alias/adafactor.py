# SPDX-License-Identifier: Apache-2.0
"""Adafactor."""

from __future__ import annotations

from typing import Any

import torch

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.clip import clip_by_block_rms
from torchopt.combine import chain
from torchopt.dtypes import DTypeLike
from torchopt.spelling import suggesting
from torchopt.transform import (
    add_decayed_weights,
    ema,
    scale,
    scale_by_factored_rms,
    scale_by_learning_rate,
    scale_by_param_block_rms,
)


@suggesting
@shared_prose
def adafactor(
    learning_rate: Any = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Any = 0.8,
    decay_offset: int = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Any = 1.0,
    momentum: Any = None,
    dtype_momentum: DTypeLike = torch.float32,
    weight_decay_rate: Any = None,
    eps: Any = 1e-30,
    factored: bool = True,
    weight_decay_mask: Any = None,
) -> GradientTransformation:
    r"""Adafactor: factored second moments, and steps proportional to the scale of the parameters.

    With :math:`u_t` as in :func:`torchopt.transform.scale_by_factored_rms`, for each leaf,

    .. math::
        \hat u_t = \frac{u_t}{\max(1, \mathrm{rms}(u_t) / d)}, \qquad
        p_t = p_{t-1} - \eta \max(\mathrm{rms}(p_{t-1}), 10^{-3})\, \hat u_t - \lambda p_{t-1}.

    The state of an :math:`n \times m` matrix has :math:`n + m` numbers, if there is no momentum.

    Args:
        learning_rate: :math:`\eta`, a number, a 0-d tensor, or a schedule; None means 1.  With
            ``multiply_by_parameter_scale`` it is relative to the scale of the parameters.
        min_dim_size_to_factor: Factor the leaves whose second largest dimension has at least this size.
        decay_rate: The exponent :math:`c` of the decay rate :math:`1 - t^{-c}` of the second moments.
        decay_offset: The step count at which the decay rate starts again, for fine-tuning from an earlier state.
        multiply_by_parameter_scale: Whether to multiply by the factor :math:`\max(\mathrm{rms}(p_{t-1}), 10^{-3})`.
            ``update`` requires ``params`` in either case.
        clipping_threshold: The bound :math:`d`; None does not clip.
        momentum: Decay rate of an average of the steps, in [0, 1), without bias correction; None means none.
        dtype_momentum: The dtype of that average.
        weight_decay_rate: :math:`\lambda \ge 0`, or a schedule of it; it is not multiplied by the learning rate.
        eps: :math:`\epsilon \ge 0`, added to squared gradients.
        factored: Whether to factor second moments.
        <weight_decay_mask>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.adafactor(0.1)
        >>> params = [torch.tensor([3.0, -3.0])]
        >>> optimizer.update([torch.tensor([0.5, -2.0])], optimizer.init(params), params)[0]
        [tensor([-0.3000,  0.3000])]

    References:
        Shazeer and Stern, `Adafactor: adaptive learning rates with sublinear memory cost
        <https://arxiv.org/abs/1804.04235>`_, ICML 2018.
    """
    stages = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    if clipping_threshold is not None:
        stages.append(clip_by_block_rms(clipping_threshold))
    if learning_rate is not None:
        stages.append(scale_by_learning_rate(learning_rate, flip_sign=False))
    if multiply_by_parameter_scale:
        stages.append(scale_by_param_block_rms())
    if momentum is not None:
        stages.append(ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
    if weight_decay_rate is not None:
        stages.append(add_decayed_weights(weight_decay_rate, mask=weight_decay_mask))
    return chain(*stages, scale(-1.0))
