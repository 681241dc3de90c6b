# SPDX-License-Identifier: Apache-2.0
"""MoMo-Adam: Adam whose step size comes from the values of the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.autodiff.objective import objective_value
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.contrib.constants import without_graphs
from torchopt.contrib.momo import polyak_step
from torchopt.contrib.scalars import at_count, check_rate, inner, scalar_beside
from torchopt.numerics import abs_sq, advance, as_scalar_like, bias_correction, safe_sqrt, zero_count
from torchopt.preconditions import Precondition, params_for, state_of
from torchopt.rules import moving_average, plus


@tree.safe_to_load
class MomoAdamState(NamedTuple):
    """State of :func:`momo_adam`.

    Attributes:
        exp_avg: The mean of the gradients.
        exp_avg_sq: The mean square of the gradients.
        barf: The mean of the values.
        gamma: The mean of the inner products of gradient and parameters.
        lb: The lower bound of the objective.
        count: The step count.
    """

    exp_avg: Any
    exp_avg_sq: Any
    barf: Any
    gamma: Any
    lb: Any
    count: Any


@factory
def momo_adam(
    learning_rate: Any = 1e-2,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    lower_bound: Any = 0.0,
    weight_decay: Any = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformationExtraArgs:
    r"""MoMo-Adam: Adam whose step size comes from the values of the loss.

    It is :func:`momo` in the metric :math:`D_t = \operatorname{diag}(\sqrt{v_t / (1 - \beta_2^t)} + \epsilon)` of Adam,
    with means initialized at zero, whose bias correction is :math:`c_t = 1 - \beta_1^t`:

    .. math::
        \tau_t = \min\Bigl( \frac{\eta}{c_t},\
        \frac{\max((1 + \eta\lambda)(\bar f_t - c_t f_* - \gamma_t) + \langle d_t, x_t \rangle, 0)}
        {\langle d_t, D_t^{-1} d_t \rangle} \Bigr), \qquad
        x_{t+1} = \frac{x_t}{1 + \eta\lambda} - \tau_t D_t^{-1} d_t.

    The arguments are those of :func:`momo`, with the decay rates :math:`\beta_1` of the means and :math:`\beta_2` of
    the mean square, each in [0, 1), and :math:`\epsilon \ge 0`.

    Returns:
        A transformation with state :class:`MomoAdamState`, whose ``update`` requires ``params`` and the extra argument
        ``value``, the objective at them.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.
        TypeError: In ``update``, if ``value`` is not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.momo_adam(0.5)
        >>> p = torch.tensor(3.0)
        >>> optimizer.update([2 * p], optimizer.init([p]), [p], value=p**2)[0]
        [tensor(-0.5000)]

    References:
        Schaipp et al., `MoMo: momentum models for adaptive learning rates <https://arxiv.org/abs/2305.07583>`_,
        ICML 2024.
    """
    check_rate(learning_rate)
    checks.unit_interval('beta parameter at index 0', b1)
    checks.unit_interval('beta parameter at index 1', b2)
    checks.at_least('epsilon value', eps)
    checks.number('lower_bound value', lower_bound)
    checks.at_least('weight_decay value', weight_decay)

    def init(params: Any) -> MomoAdamState:
        start = scalar_beside(params, 0.0)
        return MomoAdamState(
            elementwise.zero_moment(params),
            elementwise.zero_moment(params, real=True),
            start,
            start.clone(),
            scalar_beside(params, lower_bound),
            zero_count(),
        )

    schedule = at_count(learning_rate)

    def update(
        updates: Any,
        state: MomoAdamState,
        params: Any = None,
        *,
        value: Any = None,
        inplace: bool = False,
        **extra: Any,
    ) -> tuple[Any, MomoAdamState]:
        g, x = without_graphs(updates, params, inplace=inplace)
        loss = objective_value(value, state.barf, updates, params, inplace=inplace)
        count, t = advance(state.count)
        c1, c2, eta = bias_correction(b1, t), bias_correction(b2, t), schedule(state)

        def rule(g: Tensor, d: Tensor, v: Tensor) -> tuple[Tensor, ...]:
            d = moving_average(b1, d, g)
            v = moving_average(b2, v, abs_sq(g))
            return d / plus(safe_sqrt(v / as_scalar_like(c2, v)), as_scalar_like(eps, v)), d, v

        direction, d, v = elementwise.apply_rule(rule, g, state.exp_avg, state.exp_avg_sq, inplace=inplace)
        shown = tree.map(lambda g, d: d, g, d)
        barf = moving_average(b1, state.barf, loss)
        gamma = moving_average(b1, state.gamma, inner(g, x, state.gamma))
        updates, lb = polyak_step(
            direction,
            x,
            barf - gamma,
            inner(shown, x, barf),
            inner(shown, direction, barf),
            rate=eta,
            weight_decay=weight_decay,
            lb=state.lb,
            correction=c1,
            lower_bound=lower_bound if adapt_lower_bound else None,
        )
        return updates, MomoAdamState(d, v, barf, gamma, lb, count)

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(MomoAdamState), params_for('the step size of momo_adam'), Precondition(schedule)
    )
