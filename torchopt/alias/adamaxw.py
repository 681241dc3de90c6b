# SPDX-License-Identifier: Apache-2.0
"""AdaMax with decoupled weight decay."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_adamax, scale_by_learning_rate

__all__ = ['adamaxw']


@suggesting
@shared_prose
def adamaxw(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8, weight_decay: Any = 1e-4, mask: Any = None
) -> GradientTransformation:
    r"""AdaMax with decoupled weight decay.

    With :math:`u_t` the direction of :func:`adamax`, :math:`p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})`.

    Args:
        <learning_rate>
        <b1>
        b2: Decay rate :math:`\beta_2` of the infinity norm, in [0, 1).
        eps: :math:`\epsilon \ge 0`, added to the absolute value of the gradient.
        weight_decay: :math:`\lambda \ge 0`, or a schedule of it.  If nonzero, ``update`` requires ``params``.
        <mask>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.adamaxw(0.5, weight_decay=0.5)
        >>> params = [torch.tensor(2.0)]
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init(params), params)[0]
        [tensor(-1.)]

    References:
        Kingma and Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.
        Loshchilov and Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_, 2017.
    """
    return chain(
        scale_by_adamax(b1, b2, eps), add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate)
    )
