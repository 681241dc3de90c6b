# SPDX-License-Identifier: Apache-2.0
"""Rectified Adam."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from torchopt import checks
from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.spelling import OptaxAdam, also_spelled
from torchopt.transform import scale_by_radam


@also_spelled(learning_rate='lr', b1='betas.0', b2='betas.1')
@shared_prose
def radam(
    lr: Any = 1e-3,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    *,
    moment_requires_grad: bool = False,
    **optax: Unpack[OptaxAdam],
) -> GradientTransformation:
    r"""Rectified Adam: momentum while the variance of the second moment is large, then a rescaled Adam.

    The update is :math:`-\eta` times that of :func:`torchopt.transform.scale_by_radam`.

    Args:
        <lr>
        <betas>
        eps: :math:`\epsilon \ge 0`, added to the root of the second moment.
        <weight_decay>
        <moment_requires_grad>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.radam(lr=0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.5000)]

    References:
        Liu et al., `On the variance of the adaptive learning rate and beyond
        <https://arxiv.org/abs/1908.03265>`_, 2019.
    """
    return assemble(
        scale_by_radam(*checks.pair('betas', betas), eps, moment_requires_grad), lr=lr, weight_decay=weight_decay
    )
