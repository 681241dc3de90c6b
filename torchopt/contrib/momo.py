# SPDX-License-Identifier: Apache-2.0
"""MoMo: momentum with a Polyak step size from the values of the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.autodiff.objective import objective_value
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.contrib.constants import without_graphs
from torchopt.contrib.scalars import at_count, check_rate, inner, real_part, scalar_beside
from torchopt.numerics import as_scalar_like, in_single, increment, tensor_like, zero_count
from torchopt.preconditions import Precondition, params_for, state_of
from torchopt.rules import moving_average, times
from torchopt.scalars import pick

_SMALLEST = torch.finfo(torch.float64).eps
"""Squared norms of at most this number count as zero."""


@tree.safe_to_load
class MomoState(NamedTuple):
    """State of :func:`momo`.

    Attributes:
        exp_avg: The mean of the gradients.
        barf: The mean of the values.
        gamma: The mean of the inner products of gradient and parameters.
        lb: The lower bound of the objective.
        count: The step count.
    """

    exp_avg: Any
    barf: Any
    gamma: Any
    lb: Any
    count: Any


@factory
def momo(
    learning_rate: Any = 1.0,
    beta: Any = 0.9,
    lower_bound: Any = 0.0,
    weight_decay: Any = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformationExtraArgs:
    r"""MoMo: momentum with a Polyak step size from the values of the loss.

    All moving averages have the same weights and are initialized in the first step: :math:`d_t` of the gradients,
    :math:`\bar f_t` of the values and :math:`\gamma_t` of :math:`\langle g, x \rangle`.  At :math:`x_t`, the average of
    the linear models of the loss has the value :math:`h_t = \bar f_t - \gamma_t + \langle d_t, x_t \rangle`.  The step
    size :math:`\tau_t` is the one at which this model reaches the lower bound :math:`f_*`, but at most :math:`\eta`:

    .. math::
        \tau_t = \min\Bigl( \eta,\
        \frac{\max((1 + \eta\lambda)(\bar f_t - f_* - \gamma_t) + \langle d_t, x_t \rangle, 0)}{\lVert d_t \rVert^2}
        \Bigr), \qquad
        x_{t+1} = \frac{x_t}{1 + \eta\lambda} - \tau_t d_t.

    Args:
        learning_rate: The largest step size :math:`\eta`, or a schedule of it.
        beta: Decay rate :math:`\beta` of all means, in [0, 1).
        lower_bound: :math:`f_*`, a lower bound of the objective.
        weight_decay: :math:`\lambda \ge 0`.
        adapt_lower_bound: Whether to adapt the bound: increase it according to the models, and decrease it if the step
            would be zero, but never below ``lower_bound``.

    Returns:
        A transformation with state :class:`MomoState`, whose ``update`` requires ``params`` and the extra argument
        ``value``, the objective at them.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.
        TypeError: In ``update``, if ``value`` is not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.momo()
        >>> p = torch.tensor(3.0)
        >>> optimizer.update([2 * p], optimizer.init([p]), [p], value=p**2)[0]
        [tensor(-1.5000)]

    References:
        Schaipp et al., `MoMo: momentum models for adaptive learning rates <https://arxiv.org/abs/2305.07583>`_,
        ICML 2024.
    """
    check_rate(learning_rate)
    checks.unit_interval('beta value', beta)
    checks.number('lower_bound value', lower_bound)
    checks.at_least('weight_decay value', weight_decay)

    def init(params: Any) -> MomoState:
        start = scalar_beside(params, 0.0)
        return MomoState(
            elementwise.zero_moment(params), start, start.clone(), scalar_beside(params, lower_bound), zero_count()
        )

    schedule = at_count(learning_rate)

    def update(
        updates: Any, state: MomoState, params: Any = None, *, value: Any = None, inplace: bool = False, **extra: Any
    ) -> tuple[Any, MomoState]:
        g, x = without_graphs(updates, params, inplace=inplace)
        loss = objective_value(value, state.barf, updates, params, inplace=inplace)
        keep = pick(state.count == 0, 0.0, beta)

        barf = moving_average(keep, state.barf, loss)
        gamma = moving_average(keep, state.gamma, inner(g, x, state.gamma))
        _, d = elementwise.apply_rule(lambda g, d: (g, moving_average(keep, d, g)), g, state.exp_avg, inplace=inplace)
        shown = tree.map(lambda g, d: d, g, d)
        square = real_part(tree.wide_norm(shown, squared=True), barf)
        updates, lb = polyak_step(
            shown,
            x,
            barf - gamma,
            inner(shown, x, barf),
            square,
            rate=schedule(state),
            weight_decay=weight_decay,
            lb=state.lb,
            lower_bound=lower_bound if adapt_lower_bound else None,
        )
        return updates, MomoState(d, barf, gamma, lb, increment(state.count))

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(MomoState), params_for('the step size of momo'), Precondition(schedule)
    )


def polyak_step(
    direction: Any,
    x: Any,
    gap: Tensor,
    product: Tensor,
    square: Tensor,
    *,
    rate: Any,
    weight_decay: Any,
    lb: Tensor,
    correction: Any = 1.0,
    lower_bound: Any = None,
) -> tuple[Any, Tensor]:
    r"""The updates of MoMo, and the next lower bound.

    Args:
        direction: :math:`D^{-1} d`, a tree, with the metric :math:`D` of the method.
        x: The parameters.
        gap: :math:`\bar f - \gamma`.
        product: :math:`\langle d, x \rangle`.
        square: :math:`\langle d, D^{-1} d \rangle`.
        rate: The largest step size :math:`\eta`.
        weight_decay: :math:`\lambda`.
        lb: The lower bound.
        correction: The bias correction of the means from zero initialization.
        lower_bound: The smallest allowed lower bound, if it is adapted.
    """
    shrink = 1 + rate * weight_decay
    decay = rate * weight_decay / shrink
    shrink, correction, rate = (as_scalar_like(x, gap) for x in (shrink, correction, rate))
    zero = torch.zeros_like(gap)
    bound = lb
    if lower_bound is not None:
        least = tensor_like(lower_bound, gap)
        cap = shrink * gap + product
        bound = torch.where(cap < shrink * correction * lb, torch.maximum(cap / (2 * correction * shrink), least), lb)
    tiny = square <= _SMALLEST
    reach = torch.maximum(shrink * (gap - correction * bound) + product, zero)
    reach = torch.where(tiny, zero, reach / torch.where(tiny, torch.ones_like(square), square))
    tau = torch.minimum(tensor_like(rate / correction, gap), reach)
    if lower_bound is not None:
        lb = torch.maximum((gap + product - 0.5 * tau * square) / correction, least)

    def move(u: Tensor, x: Tensor) -> Tensor:
        return -(times(decay, x) + u * as_scalar_like(tau, u))

    return tree.map(in_single(move), direction, x), lb
