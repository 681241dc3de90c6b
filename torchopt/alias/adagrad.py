# SPDX-License-Identifier: Apache-2.0
"""AdaGrad."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from torchopt import checks
from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.schedule import inverse_time_decay
from torchopt.spelling import OptaxRate, also_spelled
from torchopt.transform import scale_by_rss, scale_by_schedule


@also_spelled(learning_rate='lr')
@shared_prose
def adagrad(
    lr: Any = 1e-2,
    lr_decay: Any = 0.0,
    weight_decay: Any = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: Any = 1e-10,
    *,
    maximize: bool = False,
    **optax: Unpack[OptaxRate],
) -> GradientTransformation:
    r"""AdaGrad: gradients divided by the root of the sum of their squares so far.

    .. math::
        s_t = s_{t-1} + |g_t|^2, \qquad
        p_t = p_{t-1} - \frac{\eta}{1 + (t - 1)\,\delta} \cdot \frac{g_t}{\sqrt{s_t} + \epsilon}

    Args:
        <lr>
        lr_decay: :math:`\delta \ge 0`.
        <weight_decay>
        initial_accumulator_value: First value of :math:`s`, at least 0.
        eps: :math:`\epsilon \ge 0`.
        <maximize>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.adagrad(lr=1.0, initial_accumulator_value=16.0)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.6000)]

    References:
        Duchi et al., `Adaptive subgradient methods <https://jmlr.org/papers/v12/duchi11a.html>`_, JMLR 2011.
    """
    checks.at_least('lr_decay value', lr_decay)
    return assemble(
        scale_by_rss(initial_accumulator_value, eps),
        scale_by_schedule(inverse_time_decay(1.0, lr_decay)),
        lr=lr,
        weight_decay=weight_decay,
        maximize=maximize,
    )
