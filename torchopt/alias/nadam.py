# SPDX-License-Identifier: Apache-2.0
"""NAdam, and NAdam with decoupled weight decay."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.dtypes import DTypeLike
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_adam, scale_by_learning_rate


@suggesting
@shared_prose
def nadam(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    r"""NAdam: Adam with Nesterov momentum.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        p_t = p_{t-1} - \eta\, \frac{\beta_1 m_t / (1 - \beta_1^{t+1}) + (1 - \beta_1)\, g_t / (1 - \beta_1^t)}
                                {\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}

    Unlike ``torch.optim.NAdam``, this rule keeps :math:`\beta_1` constant.

    Args:
        <learning_rate>
        <b1>
        <b2>
        eps: :math:`\epsilon \ge 0`, outside the root.
        <eps_root>
        <mu_dtype>
        nesterov: False makes it Adam.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.nadam(1.0, b1=0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.3333)]

    References:
        Dozat, `Incorporating Nesterov momentum into Adam
        <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_, 2016.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov, mu_dtype=mu_dtype),
        scale_by_learning_rate(learning_rate),
    )


@suggesting
@shared_prose
def nadamw(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Any = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    r"""NAdam with decoupled weight decay.

    With :math:`u_t` the direction of :func:`nadam`, :math:`p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})`.

    Args:
        <learning_rate>
        <b1>
        <b2>
        eps: :math:`\epsilon \ge 0`, outside the root.
        <eps_root>
        <mu_dtype>
        weight_decay: :math:`\lambda \ge 0`, or a schedule of it.  If nonzero, ``update`` requires ``params``.
        <mask>
        nesterov: False makes it AdamW.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.nadamw(1.0, b1=0.5, weight_decay=0.5)
        >>> params = [torch.tensor(2.0)]
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init(params), params)[0]
        [tensor(-2.3333)]

    References:
        Dozat, `Incorporating Nesterov momentum into Adam
        <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_, 2016.
        Loshchilov and Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_, 2017.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov, mu_dtype=mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
