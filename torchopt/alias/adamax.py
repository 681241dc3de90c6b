# SPDX-License-Identifier: Apache-2.0
"""AdaMax."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from torchopt import checks
from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.spelling import OptaxAdam, also_spelled
from torchopt.transform import scale_by_adamax

__all__ = ['adamax']


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
