# SPDX-License-Identifier: Apache-2.0
"""D-Adaptation for AdamW: the learning rate is an estimate of the distance to the solution."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.contrib.constants import without_graphs
from torchopt.contrib.scalars import at_count, check_rate, inner, real_part, scalar_beside
from torchopt.numerics import (
    abs_sq,
    advance,
    as_scalar_like,
    bias_correction,
    in_single,
    one_minus,
    positive_ratio,
    safe_sqrt,
    zero_count,
)
from torchopt.preconditions import Precondition, params_for, state_of
from torchopt.rules import moving_average, plus, times


@tree.safe_to_load
class DAdaptAdamWState(NamedTuple):
    """State of :func:`dadapt_adamw`.

    Attributes:
        exp_avg: The mean of the scaled gradients.
        exp_avg_sq: The mean square of the gradients.
        grad_sum: The mean of the scaled gradients, with the root of the second decay rate.
        estim_lr: The estimate of the distance.
        numerator_weighted: The numerator of the estimate.
        count: The step count.
    """

    exp_avg: Any
    exp_avg_sq: Any
    grad_sum: Any
    estim_lr: Any
    numerator_weighted: Any
    count: Any


@factory
def dadapt_adamw(
    learning_rate: Any = 1.0,
    betas: tuple[Any, Any] = (0.9, 0.999),
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    weight_decay: Any = 0.0,
) -> GradientTransformationExtraArgs:
    r"""D-Adaptation for AdamW: the learning rate is an estimate of the distance to the solution.

    With :math:`\lambda_t = d_t\, \eta\, \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)` and :math:`\beta = \sqrt{\beta_2}`,

    .. math::
        r_t &= \beta r_{t-1} + (1 - \beta)\, \lambda_t \Bigl\langle g_t, \frac{s_{t-1}}{\sqrt{v_{t-1}} + \epsilon}
        \Bigr\rangle, \qquad
        s_t = \beta s_{t-1} + (1 - \beta) \lambda_t g_t, \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) \lambda_t g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \\
        d_{t+1} &= \max\Bigl( d_t, \frac{r_t}{(1 - \beta) \lVert s_t \rVert_1} \Bigr), \qquad
        u_t = - \frac{m_t}{\sqrt{v_t} + \epsilon} - w \lambda_t p_t.

    Args:
        learning_rate: The factor :math:`\eta`, usually 1, or a schedule.
        betas: Decay rates :math:`\beta_1, \beta_2`, each in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        estim_lr0: The initial estimate :math:`d_1 > 0`; it should be too small rather than too large.
        weight_decay: :math:`w \ge 0`.

    Returns:
        A transformation with state :class:`DAdaptAdamWState`.  The estimate has the lowest dtype among the parameters,
        but at least float32.  While all gradients are zero, the estimate does not change.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.dadapt_adamw(estim_lr0=0.1)
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-0.1000)]

    References:
        Defazio and Mishchenko, `Learning-rate-free learning by D-adaptation <https://arxiv.org/abs/2301.07733>`_,
        ICML 2023.
    """
    b1, b2 = checks.pair('betas', betas)
    for i, rate in enumerate((b1, b2)):
        checks.unit_interval(f'beta parameter at index {i}', rate)
    check_rate(learning_rate)
    checks.at_least('epsilon value', eps)
    checks.positive('estim_lr0 value', estim_lr0)
    checks.at_least('weight_decay value', weight_decay)
    pace = b2**0.5

    def init(params: Any) -> DAdaptAdamWState:
        return DAdaptAdamWState(
            elementwise.zero_moment(params),
            elementwise.zero_moment(params, real=True),
            elementwise.zero_moment(params),
            scalar_beside(params, estim_lr0),
            scalar_beside(params, 0.0),
            zero_count(),
        )

    schedule = at_count(learning_rate)

    def divisor(v: Tensor) -> Any:
        return plus(safe_sqrt(v), as_scalar_like(eps, v))

    def update(
        updates: Any, state: DAdaptAdamWState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, DAdaptAdamWState]:
        g, p = without_graphs(updates, params, inplace=inplace)
        count, t = advance(state.count)
        d = state.estim_lr
        correction = bias_correction(b2, t) ** 0.5 / bias_correction(b1, t)
        rate = d * as_scalar_like(schedule(state) * correction, d)
        lean = tree.map(in_single(lambda g, s, v: s / divisor(v)), g, state.grad_sum, state.exp_avg_sq)
        progress = inner(g, lean, d)
        numerator = moving_average(pace, state.numerator_weighted, rate * progress)

        def rule(g: Tensor, m: Tensor, v: Tensor, s: Tensor, p: Tensor) -> tuple[Tensor, ...]:
            scaled = g * as_scalar_like(rate, g)
            m = moving_average(b1, m, scaled)
            v = moving_average(b2, v, abs_sq(g))
            s = moving_average(pace, s, scaled)
            decayed = times(weight_decay, p * as_scalar_like(rate, p))
            return -plus(m / divisor(v), decayed), m, v, s

        moments = (state.exp_avg, state.exp_avg_sq, state.grad_sum)
        u, m, v, s = elementwise.apply_rule(rule, g, *moments, reads=(p,), inplace=inplace)
        size = real_part(tree.wide_norm(s, 1), d) * as_scalar_like(one_minus(pace), d)
        estimate = torch.maximum(d, positive_ratio(numerator, size))
        return u, DAdaptAdamWState(m, v, s, estimate, numerator, count)

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(DAdaptAdamWState), params_for('dadapt_adamw'), Precondition(schedule)
    )
