# SPDX-License-Identifier: Apache-2.0
"""Sign descent, with and without momentum."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.dtypes import DTypeLike
from torchopt.spelling import suggesting
from torchopt.transform import ema, scale_by_learning_rate, scale_by_sign


@suggesting
@shared_prose
def sign_sgd(learning_rate: Any) -> GradientTransformation:
    r"""Descent by the sign of the gradient: :math:`p_t = p_{t-1} - \eta \operatorname{sign}(g_t)`.

    Args:
        <learning_rate>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.sign_sgd(0.5)
        >>> optimizer.update([torch.tensor([3.0, -0.1])], optimizer.init([torch.zeros(2)]))[0]
        [tensor([-0.5000,  0.5000])]

    References:
        Bernstein et al., `signSGD: compressed optimisation for non-convex problems
        <https://arxiv.org/abs/1802.04434>`_, ICML 2018.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


@suggesting
@shared_prose
def signum(learning_rate: Any, beta: Any = 0.9, accumulator_dtype: DTypeLike | None = None) -> GradientTransformation:
    r"""Descent by the sign of the mean of the gradients.

    .. math::
        m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad p_t = p_{t-1} - \eta \operatorname{sign}(m_t)

    Args:
        <learning_rate>
        beta: Decay rate :math:`\beta` of the mean, in [0, 1).
        accumulator_dtype: Real dtype of the mean; None means the dtype of each parameter.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.signum(0.5)
        >>> optimizer.update([torch.tensor([3.0, -0.1])], optimizer.init([torch.zeros(2)]))[0]
        [tensor([-0.5000,  0.5000])]

    References:
        Bernstein et al., `signSGD: compressed optimisation for non-convex problems
        <https://arxiv.org/abs/1802.04434>`_, ICML 2018.
    """
    return chain(
        ema(beta, debias=False, accumulator_dtype=accumulator_dtype),
        scale_by_sign(),
        scale_by_learning_rate(learning_rate),
    )
