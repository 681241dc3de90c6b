# SPDX-License-Identifier: Apache-2.0
"""AdaBelief."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation, identity
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_belief, scale_by_learning_rate


@suggesting
@shared_prose
def adabelief(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    weight_decay: Any = None,
    weight_decay_mask: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    r"""AdaBelief: larger steps if the gradients are close to their moving average, smaller ones if not.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t - m_t|^2 + \bar\epsilon, \qquad
        p_t = p_{t-1} - \eta \left( \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}
        + \lambda p_{t-1} \right)

    Args:
        <learning_rate>
        <b1>
        <b2>
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, added to the second moment at every step.
        weight_decay: The decoupled decay :math:`\lambda \ge 0`, or a schedule of it; None means no decay.  If
            nonzero, ``update`` requires ``params``.
        <weight_decay_mask>
        <nesterov>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.adabelief(0.5, b1=0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.)]

    References:
        Zhuang et al., `AdaBelief optimizer: adapting stepsizes by the belief in observed gradients
        <https://arxiv.org/abs/2010.07468>`_, NeurIPS 2020.
    """
    return chain(
        scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov),
        identity() if weight_decay is None else add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
