# SPDX-License-Identifier: Apache-2.0
"""Layer-wise learning rates for large batches: LARS and LAMB."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import (
    add_decayed_weights,
    masked,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_trust_ratio,
    trace,
)


@suggesting
@shared_prose
def lars(
    learning_rate: Any,
    weight_decay: Any = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: Any = 0.001,
    eps: Any = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Any = 0.9,
    nesterov: bool = False,
) -> GradientTransformation:
    r"""LARS: momentum with a learning rate per leaf, proportional to the ratio of parameter and gradient norms.

    .. math::
        d_t = g_t + \lambda p_{t-1}, \qquad
        m_t = \mu m_{t-1} - \eta\, c\, \frac{\lVert p_{t-1} \rVert}{\lVert d_t \rVert + \epsilon}\, d_t, \qquad
        p_t = p_{t-1} + m_t

    ``update`` requires ``params``.

    Args:
        <learning_rate>
        weight_decay: :math:`\lambda \ge 0`, or a schedule of it.
        weight_decay_mask: Which parameters decay; see :func:`torchopt.transform.masked`.
        trust_coefficient: The factor :math:`c`.
        eps: :math:`\epsilon \ge 0`.
        trust_ratio_mask: Which leaves are scaled by the ratio of norms; see :func:`torchopt.transform.masked`.
        momentum: :math:`\mu \ge 0`.
        <nesterov>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.lars(1.0, trust_coefficient=0.1)
        >>> params = [torch.tensor([3.0, 4.0])]
        >>> optimizer.update([torch.tensor([6.0, 8.0])], optimizer.init(params), params)[0]
        [tensor([-0.3000, -0.4000])]

    References:
        You et al., `Large batch training of convolutional networks <https://arxiv.org/abs/1708.03888>`_, 2017.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov=nesterov),
    )


@suggesting
@shared_prose
def lamb(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    r"""LAMB: Adam with a learning rate per leaf, proportional to the ratio of parameter and update norms.

    With :math:`u_t` the direction of :func:`adam`,

    .. math::
        d_t = u_t + \lambda p_{t-1}, \qquad
        p_t = p_{t-1} - \eta\, \frac{\lVert p_{t-1} \rVert}{\lVert d_t \rVert}\, d_t

    ``update`` requires ``params``.

    Args:
        <learning_rate>
        <b1>
        <b2>
        eps: :math:`\epsilon \ge 0`, outside the root.
        <eps_root>
        weight_decay: :math:`\lambda \ge 0`, or a schedule of it.
        <mask>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.lamb(0.5)
        >>> params = [torch.tensor([3.0, 4.0])]
        >>> optimizer.update([torch.tensor([2.0, 2.0])], optimizer.init(params), params)[0]
        [tensor([-1.7678, -1.7678])]

    References:
        You et al., `Large batch optimization for deep learning: training BERT in 76 minutes
        <https://arxiv.org/abs/1904.00962>`_, ICLR 2020.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )
