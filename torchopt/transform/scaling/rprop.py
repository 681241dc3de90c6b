# SPDX-License-Identifier: Apache-2.0
"""Rprop: a step size per element, which grows while the gradient keeps its sign."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import elementwise, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.elementwise import ranges, require_real
from torchopt.numerics import as_scalar_like
from torchopt.preconditions import state_of


@tree.safe_to_load
class ScaleByRpropState(NamedTuple):
    """State of :func:`scale_by_rprop`: the step sizes, and the last steps."""

    step_sizes: Any
    prev_updates: Any


@factory
def scale_by_rprop(
    learning_rate: Any, eta_minus: Any = 0.5, eta_plus: Any = 1.2, min_step_size: Any = 1e-6, max_step_size: Any = 50.0
) -> GradientTransformation:
    r"""Rescale updates with the rule of resilient backpropagation.

    With :math:`s = g_t\, d_{t-1}`,

    .. math::
        \Delta_t = \begin{cases}
            \min(\eta_+ \Delta_{t-1}, \Delta_{\max}) & s > 0 \\
            \max(\eta_- \Delta_{t-1}, \Delta_{\min}) & s < 0 \\
            \Delta_{t-1} & s = 0 \end{cases} \qquad
        d_t = \begin{cases} 0 & s < 0 \\ \Delta_t \operatorname{sign}(g_t) & \text{otherwise} \end{cases} \qquad
        u_t = \begin{cases} 0 & s < 0 \\ d_{t-1} & \text{otherwise} \end{cases}

    As in Optax, the update is the step of the previous gradient: the first update is zero.

    Args:
        learning_rate: The first step size :math:`\Delta_0`, a number or a 0-d tensor.
        eta_minus: The factor :math:`\eta_-` if the sign has changed.
        eta_plus: The factor :math:`\eta_+` if it has not.
        min_step_size: The smallest step size.
        max_step_size: The largest step size.

    Raises:
        TypeError: In ``init``, if a parameter is complex.
        ValueError: If a hyper-parameter is negative.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_rprop(0.1)
        >>> state = tx.init([torch.zeros(())])
        >>> for g in (3.0, 2.0, 2.0):
        ...     updates, state = tx.update([torch.tensor(g)], state)
        >>> updates, state.step_sizes
        ([tensor(0.1200)], [tensor(0.1440)])

    References:
        Riedmiller and Braun, `A direct adaptive method for faster backpropagation learning: the RPROP algorithm
        <https://doi.org/10.1109/ICNN.1993.298623>`_, 1993.
    """
    named = {'eta_minus': eta_minus, 'eta_plus': eta_plus}
    named |= {'min_step_size': min_step_size, 'max_step_size': max_step_size}
    for name, value in {'learning_rate': learning_rate, **named}.items():
        ranges.at_least_zero(f'{name} value', value)

    def init(params: Any) -> ScaleByRpropState:
        require_real(params, 'Rprop')
        zeros = elementwise.zero_moment(params)
        return ScaleByRpropState(tree.full_like(zeros, learning_rate), zeros)

    hypers = elementwise.Hyperparams(partial(partial, _rule), **named)

    def prepare(state: ScaleByRpropState) -> elementwise.ElementwiseStep:
        return elementwise.ElementwiseStep(hypers.rule(), (state.step_sizes, state.prev_updates), ScaleByRpropState)

    return ElementwiseTransformation(init, prepare, state_of(ScaleByRpropState), hypers=hypers)


def _rule(
    g: Tensor, size: Tensor, last: Tensor, *, eta_minus: Any, eta_plus: Any, min_step_size: Any, max_step_size: Any
) -> tuple[Tensor, Tensor, Tensor]:
    s = g * last
    minus, plus, low, high = (as_scalar_like(x, size) for x in (eta_minus, eta_plus, min_step_size, max_step_size))
    changed = _bounded(torch.where(s > 0, size * plus, size * minus), low, high)
    size = torch.where(s == 0, size, changed)
    zero = torch.zeros_like(last)
    return torch.where(s < 0, zero, last), size, torch.where(s < 0, zero, size * torch.sign(g))


def _bounded(x: Tensor, low: Any, high: Any) -> Tensor:
    """``x`` clipped to two bounds, each a number or a 0-d tensor."""
    x = torch.where(x < low, torch.as_tensor(low, dtype=x.dtype, device=x.device), x)
    return torch.where(x > high, torch.as_tensor(high, dtype=x.dtype, device=x.device), x)
