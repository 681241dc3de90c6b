# SPDX-License-Identifier: Apache-2.0
"""COCOB (continuous coin betting): optimization without a learning rate."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.combine import chain
from torchopt.contrib.constants import kept_copy
from torchopt.elementwise import as_constants, require_real
from torchopt.numerics import as_scalar_like
from torchopt.preconditions import params_for, state_of
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_learning_rate


@tree.safe_to_load
class COCOBState(NamedTuple):
    """State of :func:`scale_by_cocob`.

    Attributes:
        init_particles: The initial parameters.
        cumulative_gradients: The negative sum of the gradients.
        scale: The elementwise maximum of the absolute gradients.
        subgradients: The sum of the absolute gradients.
        reward: The accumulated reward :math:`R` of the bets.
    """

    init_particles: Any
    cumulative_gradients: Any
    scale: Any
    subgradients: Any
    reward: Any


@factory
def scale_by_cocob(alpha: Any = 100.0, eps: Any = 1e-8) -> GradientTransformation:
    r"""Compute the steps of COCOB (continuous coin betting) from gradients.

    For every element, with the initial value :math:`\theta_1`, :math:`L_0 = \epsilon` and :math:`G_0 = R_0 = C_0 = 0`,

    .. math::
        L_t = \max(L_{t-1}, |g_t|), \quad G_t = G_{t-1} + |g_t|, \quad
        R_t = \max(R_{t-1} - g_t (\theta_t - \theta_1), 0), \quad C_t = C_{t-1} - g_t, \quad
        \theta_{t+1} = \theta_1 + \frac{C_t}{L_t \max(G_t + L_t, \alpha L_t)} (L_t + R_t).

    The arguments are those of :func:`cocob`.

    Returns:
        A transformation with state :class:`COCOBState`, whose updates are :math:`\theta_{t+1} - \theta_t`.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.
        TypeError: In ``init``, if a parameter is complex.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.scale_by_cocob(alpha=4.0)
        >>> p = [torch.tensor(1.0)]
        >>> tx.update([torch.tensor(2.0)], tx.init(p), p)[0]
        [tensor(-0.2500)]

    References:
        Orabona and Tommasi, `Training deep networks without learning rates through coin betting
        <https://arxiv.org/abs/1705.07795>`_, NeurIPS 2017.
    """
    elementwise.check_each(checks.positive, 'alpha value', alpha)
    checks.positive('epsilon value', eps)
    hypers = elementwise.Hyperparams(partial(partial, _rule), alpha=alpha)

    def init(params: Any) -> COCOBState:
        start = kept_copy(params)
        require_real(params, 'COCOB')
        return COCOBState(
            start,
            elementwise.zero_moment(params),
            elementwise.full_moment(params, eps),
            elementwise.zero_moment(params),
            elementwise.zero_moment(params),
        )

    def prepare(state: COCOBState) -> elementwise.ElementwiseStep:
        return elementwise.ElementwiseStep(hypers.rule(), tuple(state), COCOBState, reads_params=True)

    return ElementwiseTransformation(
        init, prepare, state_of(COCOBState), params_for('COCOB, which uses their initial values'), hypers=hypers
    )


def _rule(
    g: Tensor, start: Tensor, sums: Tensor, scale: Tensor, total: Tensor, reward: Tensor, p: Tensor, *, alpha: Any
) -> tuple[Tensor, ...]:
    p, start = as_constants(g, p, start)
    size = g.abs()
    scale = torch.maximum(scale, size)
    total = total + size
    reward = torch.maximum(reward - g * (p - start), torch.zeros_like(reward))
    sums = sums - g
    bet = sums / (scale * torch.maximum(total + scale, scale * as_scalar_like(alpha, scale)))
    return start + bet * (scale + reward) - p, start, sums, scale, total, reward


@suggesting
def cocob(
    learning_rate: Any = 1.0, alpha: Any = 100.0, eps: Any = 1e-8, weight_decay: Any = 0.0, mask: Any = None
) -> GradientTransformation:
    r"""COCOB (continuous coin betting): optimization without a learning rate.

    It is :func:`scale_by_cocob` applied to :math:`\eta\,(g + \lambda p)`.

    Args:
        learning_rate: The factor :math:`\eta` of the gradients, usually 1, or a schedule.
        alpha: :math:`\alpha > 0`; the larger, the smaller are the first bets.
        eps: :math:`\epsilon > 0`, the initial bound of the gradients.
        weight_decay: :math:`\lambda \ge 0`.
        mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.cocob(alpha=4.0)
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-0.2500)]

    References:
        Orabona and Tommasi, `Training deep networks without learning rates through coin betting
        <https://arxiv.org/abs/1705.07795>`_, NeurIPS 2017.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )
