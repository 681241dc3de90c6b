# SPDX-License-Identifier: Apache-2.0
"""Prodigy: D-Adaptation with a faster estimate of the distance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.contrib.constants import kept_copy, without_graphs
from torchopt.contrib.scalars import at_count, check_rate, inner, real_part, scalar_beside
from torchopt.dtypes import widened
from torchopt.numerics import (
    abs_sq,
    advance,
    as_scalar_like,
    bias_correction,
    in_single,
    positive_ratio,
    safe_sqrt,
    tensor_like,
    zero_count,
)
from torchopt.preconditions import Precondition, params_for, state_of
from torchopt.rules import moving_average, plus, times
from torchopt.transform.wrappers.masking import resolve_mask


@tree.safe_to_load
class ProdigyState(NamedTuple):
    """State of :func:`prodigy`.

    Attributes:
        exp_avg: The mean of the scaled gradients.
        exp_avg_sq: The mean square of the scaled gradients.
        grad_sum: The decaying sum of the scaled gradients.
        params0: The initial parameters.
        estim_lr: The estimate of the distance.
        numerator_weighted: The numerator of the estimate.
        count: The step count.
    """

    exp_avg: Any
    exp_avg_sq: Any
    grad_sum: Any
    params0: Any
    estim_lr: Any
    numerator_weighted: Any
    count: Any


@factory
def prodigy(
    learning_rate: Any = 1.0,
    betas: tuple[Any, Any] = (0.9, 0.999),
    beta3: Any = None,
    eps: Any = 1e-8,
    estim_lr0: Any = 1e-6,
    estim_lr_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
    weight_decay_mask: Any = None,
) -> GradientTransformationExtraArgs:
    r"""Prodigy: D-Adaptation with a faster estimate of the distance.

    With :math:`\lambda_t = d_t\, \eta\, \sqrt{1 - \beta_2^t} / (1 - \beta_1^t)`,

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1)\, d_t g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2)\, d_t^2 |g_t|^2, \\
        r_t &= \beta_3 r_{t-1} + \frac{d_t}{d_1} \lambda_t \langle g_t, p_1 - p_t \rangle, \qquad
        s_t = \beta_3 s_{t-1} + \frac{d_t}{d_1} \lambda_t g_t, \\
        d_{t+1} &= \max\Bigl( d_t,\ c\, \frac{r_t}{\lVert s_t \rVert_1} \Bigr), \qquad
        u_t = - \lambda_t \frac{m_t}{\sqrt{v_t} + d_{t+1} \epsilon} - w \lambda_t p_t.

    Args:
        learning_rate: The factor :math:`\eta`, usually 1, or a schedule.
        betas: Decay rates :math:`\beta_1, \beta_2`, each in [0, 1).
        beta3: Decay rate :math:`\beta_3` of the estimate, in [0, 1); None means :math:`\sqrt{\beta_2}`.
        eps: :math:`\epsilon \ge 0`.
        estim_lr0: The initial estimate :math:`d_1 > 0`; it should be too small rather than too large.
        estim_lr_coef: The factor :math:`c` of the estimate.
        weight_decay: :math:`w \ge 0`.
        safeguard_warmup: Leave :math:`\eta` and its corrections out of :math:`s_t`; use it with a learning rate warmup.
        weight_decay_mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.

    Returns:
        A transformation with state :class:`ProdigyState`.  The estimate has the lowest dtype among the parameters, but
        at least float32.  While all gradients are zero, the estimate does not change.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.prodigy(estim_lr0=0.1)
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-0.1000)]

    References:
        Mishchenko and Defazio, `Prodigy: an expeditiously adaptive parameter-free learner
        <https://arxiv.org/abs/2306.06101>`_, ICML 2024.
    """
    b1, b2 = checks.pair('betas', betas)
    for i, rate in enumerate((b1, b2)):
        checks.unit_interval(f'beta parameter at index {i}', rate)
    b3 = b2**0.5 if beta3 is None else beta3
    check_rate(learning_rate)
    checks.unit_interval('beta3 value', b3)
    checks.at_least('epsilon value', eps)
    checks.positive('estim_lr0 value', estim_lr0)
    checks.number('estim_lr_coef value', estim_lr_coef)
    checks.at_least('weight_decay value', weight_decay)

    def init(params: Any) -> ProdigyState:
        # Gradients are scaled by a small estimate before they are squared, which requires the range of float32.
        wide = tree.map(widened, params)
        return ProdigyState(
            elementwise.zero_moment(wide),
            elementwise.zero_moment(wide, real=True),
            elementwise.zero_moment(wide),
            kept_copy(params),
            scalar_beside(params, estim_lr0),
            scalar_beside(params, 0.0),
            zero_count(),
        )

    schedule = at_count(learning_rate)

    def update(
        updates: Any, state: ProdigyState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, ProdigyState]:
        g, p, start = without_graphs(updates, params, state.params0, inplace=inplace)
        count, t = advance(state.count)
        d = state.estim_lr
        correction = bias_correction(b2, t) ** 0.5 / bias_correction(b1, t)
        rate = d * as_scalar_like(schedule(state) * correction, d)
        growth = d / as_scalar_like(estim_lr0, d)
        came = inner(g, tree.map(lambda g, p0, p: p0 - p, g, start, p), d)
        numerator = plus(times(b3, state.numerator_weighted), growth * rate * came)
        weight = growth * (d if safeguard_warmup else rate)

        def rule(g: Tensor, m: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, ...]:
            scaled = g * as_scalar_like(d, g)
            m = moving_average(b1, m, scaled)
            v = moving_average(b2, v, abs_sq(scaled))
            return g, m, v, plus(times(b3, s), g * as_scalar_like(weight, g))

        moments = (state.exp_avg, state.exp_avg_sq, state.grad_sum)
        _, m, v, s = elementwise.apply_rule(rule, g, *moments, inplace=inplace)
        estimate = times(estim_lr_coef, positive_ratio(numerator, real_part(tree.wide_norm(s, 1), d)))
        estimate = torch.maximum(d, tensor_like(estimate, d))
        floor = times(eps, estimate)

        mask = tree.broadcast_prefix(resolve_mask(weight_decay_mask, params), params, name='mask', like='params')

        def move(g: Tensor, m: Tensor, v: Tensor, p: Tensor, decays: Any) -> Tensor:
            step = m / plus(safe_sqrt(v), as_scalar_like(floor, v))
            if decays is not False:
                decay = times(weight_decay, p)
                step = plus(step, decay if decays is True else torch.where(decays, decay, 0.0))
            return -as_scalar_like(rate, g) * step

        u = tree.map(lambda g, *row: in_single(move)(g, *row).to(g.dtype), g, m, v, p, mask)
        return u, ProdigyState(m, v, s, start, estimate, numerator, count)

    return GradientTransformationExtraArgs.requiring(
        init,
        update,
        state_of(ProdigyState),
        params_for('prodigy, which uses the distance to their initial values'),
        Precondition(schedule),
    )
