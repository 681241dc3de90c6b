# SPDX-License-Identifier: Apache-2.0
"""Lion."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.dtypes import DTypeLike
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_learning_rate, scale_by_lion


@suggesting
@shared_prose
def lion(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.99,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Any = 1e-3,
    mask: Any = None,
) -> GradientTransformation:
    r"""Lion: steps by the sign of an average of momentum and gradient.

    .. math::
        u_t = \operatorname{sign}(\beta_1 m_{t-1} + (1 - \beta_1) g_t), \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t, \qquad
        p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})

    Every element of :math:`u_t` has the absolute value 1, so the learning rate should be three to ten times smaller
    than for :func:`adamw`, and the weight decay larger by the same factor.

    Args:
        <learning_rate>
        b1: Weight :math:`\beta_1` of the mean in the update, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean, in [0, 1).
        <mu_dtype>
        weight_decay: :math:`\lambda \ge 0`, or a schedule of it.  If nonzero, ``update`` requires ``params``.
        <mask>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.lion(0.5, weight_decay=0.0)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.5000)]

    References:
        Chen et al., `Symbolic discovery of optimization algorithms <https://arxiv.org/abs/2302.06675>`_, NeurIPS 2023.
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype), add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate)
    )
