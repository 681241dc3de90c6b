# SPDX-License-Identifier: Apache-2.0
"""MADGRAD: dual averaging with momentum, and with a cube root instead of AdaGrad's square root."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.combine import chain
from torchopt.contrib.constants import kept_copy
from torchopt.contrib.scalars import at_count
from torchopt.elementwise import as_constants, ranges
from torchopt.numerics import abs_sq, advance, as_scalar_like, zero_count
from torchopt.preconditions import Precondition, params_for, state_of
from torchopt.rules import plus, times
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights


@tree.safe_to_load
class MadgradState(NamedTuple):
    """State of :func:`scale_by_madgrad`.

    Attributes:
        count: The step count.
        grad_sum_sq: The weighted sum of the squared gradients.
        s: The weighted sum of the gradients.
        x0: The initial parameters.
    """

    count: Any
    grad_sum_sq: Any
    s: Any
    x0: Any


@factory
def scale_by_madgrad(learning_rate: Any, momentum: float = 0.9, eps: float = 1e-6) -> GradientTransformation:
    r"""Compute the steps of MADGRAD (momentumized, adaptive, dual averaged gradients) from gradients.

    With :math:`\lambda_t = (\eta + \epsilon) \sqrt{t}` in step :math:`t = 1, 2, \dots`

    .. math::
        v_t = v_{t-1} + \lambda_t |g_t|^2, \quad
        s_t = s_{t-1} + \lambda_t g_t, \quad
        z_t = x_0 - \frac{s_t}{\sqrt[3]{v_t} + \epsilon}, \quad
        x_t = \mu\, x_{t-1} + (1 - \mu) z_t.

    The arguments are those of :func:`madgrad`.

    Returns:
        A transformation with state :class:`MadgradState`, whose updates are :math:`x_t - x_{t-1}`.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.scale_by_madgrad(1.0, momentum=0.0, eps=0.0)
        >>> p = [torch.tensor(1.0)]
        >>> tx.update([torch.tensor(8.0)], tx.init(p), p)[0]
        [tensor(-2.)]

    References:
        Defazio and Jelassi, `Adaptivity without compromise: a momentumized, adaptive, dual averaged gradient method for
        stochastic optimization <https://arxiv.org/abs/2101.11075>`_, JMLR 2022.
    """
    ranges.learning_rate(learning_rate)
    ranges.decay_rate('momentum value', momentum)
    ranges.at_least_zero('epsilon value', eps)

    def init(params: Any) -> MadgradState:
        return MadgradState(
            zero_count(), elementwise.zero_moment(params, real=True), elementwise.zero_moment(params), kept_copy(params)
        )

    schedule = at_count(learning_rate)

    trees = {} if checks.is_schedule(learning_rate) else {'learning_rate': learning_rate}
    hypers = elementwise.Hyperparams(_make, momentum=momentum, eps=eps, **trees)

    def prepare(state: MadgradState) -> elementwise.ElementwiseStep:
        count, t = advance(state.count)
        rule = hypers.rule(t, schedule(state))
        return elementwise.ElementwiseStep(rule, tuple(state[1:]), partial(MadgradState, count), reads_params=True)

    return ElementwiseTransformation(
        init,
        prepare,
        state_of(MadgradState),
        params_for('MADGRAD, which averages them'),
        Precondition(schedule),
        hypers=hypers,
    )


def _make(t: Any, rate_now: Any, *, momentum: Any, eps: Any, learning_rate: Any = None) -> partial[Any]:
    root = t.sqrt() if isinstance(t, Tensor) else math.sqrt(t)
    weight = ((rate_now if learning_rate is None else learning_rate) + eps) * root
    return partial(_rule, weight=weight, momentum=momentum, eps=eps)


def _rule(
    g: Tensor, v: Tensor, s: Tensor, start: Tensor, p: Tensor, *, weight: Any, momentum: Any, eps: Any
) -> tuple[Tensor, ...]:
    p, start = as_constants(g, p, start)
    v = plus(v, times(weight, abs_sq(g)))
    s = plus(s, times(weight, g))
    z = start - s / plus(_cube_root(v), as_scalar_like(eps, v))
    return times(1 - momentum, z - p), v, s, start


def _cube_root(x: Tensor) -> Tensor:
    """The cube root of nonnegative numbers, with the derivative zero at zero."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).pow(1.0 / 3.0), torch.zeros_like(x))


@suggesting
def madgrad(
    learning_rate: Any, momentum: float = 0.9, weight_decay: float = 0.0, eps: float = 1e-6
) -> GradientTransformation:
    r"""MADGRAD: dual averaging with momentum, and with a cube root instead of AdaGrad's square root.

    It is :func:`scale_by_madgrad` applied to gradients with an l2 penalty, :math:`g + \lambda p`.

    Args:
        learning_rate: :math:`\eta`, a number or a schedule, or a tree of numbers.
        momentum: :math:`\mu`, in [0, 1).
        weight_decay: :math:`\lambda \ge 0`.
        eps: :math:`\epsilon \ge 0`.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.madgrad(1.0, momentum=0.5, eps=0.0)
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(8.0)], optimizer.init(p), p)[0]
        [tensor(-1.)]

    References:
        Defazio and Jelassi, `Adaptivity without compromise: a momentumized, adaptive, dual averaged gradient method for
        stochastic optimization <https://arxiv.org/abs/2101.11075>`_, JMLR 2022.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))
