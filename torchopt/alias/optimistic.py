# SPDX-License-Identifier: Apache-2.0
"""Optimistic gradient descent and optimistic Adam."""

from __future__ import annotations

from typing import Any

from torchopt import checks
from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.dtypes import DTypeLike
from torchopt.spelling import suggesting
from torchopt.transform import scale_by_adam, scale_by_learning_rate, scale_by_optimistic_gradient


@suggesting
@shared_prose
def optimistic_gradient_descent(learning_rate: Any, alpha: Any = 1.0, beta: Any = 1.0) -> GradientTransformation:
    r"""Optimistic gradient descent, for games: :math:`p_t = p_{t-1} - \eta ((\alpha + \beta) g_t - \beta g_{t-1})`.

    Args:
        <learning_rate>
        alpha: The weight :math:`\alpha` of the gradient.
        beta: The weight :math:`\beta` of the difference of the last two gradients; may be negative.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.optimistic_gradient_descent(0.5)
        >>> state = optimizer.init([torch.zeros(())])
        >>> for g in (1.0, 3.0):
        ...     updates, state = optimizer.update([torch.tensor(g)], state)
        >>> updates
        [tensor(-2.5000)]

    References:
        Mokhtari et al., `A unified analysis of extra-gradient and optimistic gradient methods for saddle point
        problems <https://arxiv.org/abs/1901.08511>`_, AISTATS 2020.
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


@suggesting
@shared_prose
def optimistic_adam_v2(
    learning_rate: Any,
    *,
    alpha: Any = 1.0,
    beta: Any = 1.0,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    nesterov: bool = True,
) -> GradientTransformation:
    r"""Optimistic Adam: extrapolate the directions of Adam from the last two steps.

    With :math:`u_t` the direction of :func:`adam`,

    .. math::
        p_t = p_{t-1} - \eta ((\alpha + \beta) u_t - \beta u_{t-1})

    Args:
        <learning_rate>
        alpha: The weight :math:`\alpha` of the direction.
        beta: The weight :math:`\beta` of the difference of the last two directions.
        <b1>
        <b2>
        eps: :math:`\epsilon \ge 0`, outside the root.
        <eps_root>
        <mu_dtype>
        <nesterov>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.optimistic_adam_v2(0.5, nesterov=False)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.zeros(())]))[0]
        [tensor(-0.5000)]

    References:
        Daskalakis et al., `Training GANs with optimism <https://arxiv.org/abs/1711.00141>`_, ICLR 2018.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov, mu_dtype=mu_dtype),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_learning_rate(learning_rate),
    )


@suggesting
@shared_prose
def optimistic_adam(
    learning_rate: Any,
    optimism: Any = None,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    r"""Deprecated: use :func:`optimistic_adam_v2`, which also supports schedules.

    With :math:`u_t` the direction of :func:`adam`, :math:`p_t = p_{t-1} - (\eta + o) u_t + o\, u_{t-1}`.

    Args:
        learning_rate: :math:`\eta \ge 0`, a number or a 0-d tensor.
        optimism: The factor :math:`o`; None means the learning rate.
        <b1>
        <b2>
        eps: :math:`\epsilon \ge 0`, outside the root.
        <eps_root>
        <mu_dtype>
        <nesterov>

    Raises:
        ValueError: If a hyper-parameter is out of its range, or the learning rate is a schedule.
        TypeError: If a hyper-parameter has the wrong type.

    References:
        Daskalakis et al., `Training GANs with optimism <https://arxiv.org/abs/1711.00141>`_, ICLR 2018.
    """
    checks.deprecated(
        '`optimistic_adam` is deprecated, please use `optimistic_adam_v2` instead. For the same numbers, pass it '
        'learning_rate=1.0, alpha=learning_rate and beta=optimism.'
    )
    if checks.is_schedule(learning_rate):
        raise ValueError(
            'optimistic_adam does not support a schedule as learning_rate; use `optimistic_adam_v2` instead.'
        )
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov, mu_dtype=mu_dtype),
        scale_by_optimistic_gradient(learning_rate, learning_rate if optimism is None else optimism),
        scale_by_learning_rate(1.0),
    )
