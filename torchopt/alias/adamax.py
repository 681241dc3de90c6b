# SPDX-License-Identifier: Apache-2.0
"""AdaMax, and AdaMax with decoupled weight decay."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from torchopt import checks
from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import OptaxAdam, also_spelled, suggesting
from torchopt.transform import add_decayed_weights, scale_by_adamax, scale_by_learning_rate


@also_spelled(learning_rate='lr', b1='betas.0', b2='betas.1')
@shared_prose
def adamax(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    *,
    moment_requires_grad: bool = False,
    **optax: Unpack[OptaxAdam],
) -> GradientTransformation:
    r"""AdaMax: Adam with the infinity norm in place of the second moment.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad n_t = \max(\beta_2 n_{t-1}, |g_t| + \epsilon), \qquad
        p_t = p_{t-1} - \eta \frac{m_t}{(1 - \beta_1^t)\, n_t}

    Args:
        <lr>
        <betas>
        eps: :math:`\epsilon \ge 0`, added to the absolute value of the gradient.
        <weight_decay>
        <moment_requires_grad>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.adamax(lr=0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.5000)]

    References:
        Kingma and Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, section 7, 2014.
    """
    return assemble(
        scale_by_adamax(*checks.pair('betas', betas), eps, moment_requires_grad), lr=lr, weight_decay=weight_decay
    )


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
