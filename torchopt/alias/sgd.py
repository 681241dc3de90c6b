# SPDX-License-Identifier: Apache-2.0
"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any, overload

from typing_extensions import Unpack

from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.spelling import OptaxRate, also_spelled
from torchopt.transform import trace

__all__ = ['sgd']


@overload
def sgd(
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: bool = False,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
) -> GradientTransformation: ...


@overload
def sgd(*, learning_rate: Any, **options: Any) -> GradientTransformation: ...


@also_spelled(learning_rate='lr')  # type: ignore[misc]  # makes it take the second signature too
@shared_prose
def sgd(
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: bool = False,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    **optax: Unpack[OptaxRate],
) -> GradientTransformation:
    r"""Stochastic gradient descent, with optional momentum.

    .. math::
        b_1 = g_1, \qquad b_t = \mu b_{t-1} + (1 - \tau) g_t, \qquad
        p_t = p_{t-1} - \eta \cdot \begin{cases} g_t + \mu b_t & \text{Nesterov} \\ b_t & \text{otherwise} \end{cases}

    Args:
        <lr>
        momentum: :math:`\mu \ge 0`.
        dampening: :math:`\tau`; it does not apply to the first step.
        <weight_decay>
        nesterov: Use Nesterov momentum; requires a momentum and no dampening.
        <moment_requires_grad>
        <maximize>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.sgd(lr=0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.5000)]

    References:
        Sutskever et al., `On the importance of initialization and momentum in deep learning
        <https://proceedings.mlr.press/v28/sutskever13.html>`_, ICML 2013.
    """
    return assemble(
        trace(momentum, dampening, nesterov, moment_requires_grad), lr=lr, weight_decay=weight_decay, maximize=maximize
    )
