# SPDX-License-Identifier: Apache-2.0
"""AdaDelta."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.spelling import OptaxRate, also_spelled
from torchopt.transform import scale_by_adadelta


@also_spelled(learning_rate='lr')
@shared_prose
def adadelta(
    lr: Any = 1e-3,
    rho: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    *,
    moment_requires_grad: bool = False,
    **optax: Unpack[OptaxRate],
) -> GradientTransformation:
    r"""AdaDelta: gradients scaled by the ratio of the root mean squares of past updates and gradients.

    .. math::
        v_t = \rho v_{t-1} + (1 - \rho) |g_t|^2, \qquad
        u_t = \sqrt{\frac{x_{t-1} + \epsilon}{v_t + \epsilon}}\; g_t, \qquad
        x_t = \rho x_{t-1} + (1 - \rho) |u_t|^2, \qquad p_t = p_{t-1} - \eta u_t

    Args:
        <lr>
        rho: Decay rate of both means, in [0, 1).
        eps: :math:`\epsilon \ge 0`, inside the roots.
        <weight_decay>
        <moment_requires_grad>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.adadelta(lr=1.0, rho=0.0, eps=9.0)
        >>> optimizer.update([torch.tensor(4.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-2.4000)]

    References:
        Zeiler, `ADADELTA: an adaptive learning rate method <https://arxiv.org/abs/1212.5701>`_, 2012.
    """
    return assemble(scale_by_adadelta(rho, eps, moment_requires_grad), lr=lr, weight_decay=weight_decay)
