# SPDX-License-Identifier: Apache-2.0
"""ACProp: gradients divided by the centered mean square of the previous steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchopt import elementwise
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.combine import chain
from torchopt.elementwise import ranges
from torchopt.numerics import abs_sq, advance, as_python_scalar, as_scalar_like, bias_correction, safe_sqrt, zero_count
from torchopt.preconditions import state_of
from torchopt.rules import moving_average, plus
from torchopt.spelling import suggesting
from torchopt.transform import ScaleByBeliefState, add_decayed_weights, scale_by_learning_rate


@factory
def scale_by_acprop(b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-16, eps_root: Any = 1e-16) -> GradientTransformation:
    r"""Rescale updates with the rule of ACProp.

    .. math::
        u_t = \frac{g_t}{\sqrt{s_{t-1} / (1 - \beta_2^{t-1})} + \epsilon}, \qquad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2) |g_t - m_{t-1}|^2 + \bar\epsilon

    The divisor does not depend on :math:`g_t` (the update is *asynchronous*), so it does not bias the step.  In the
    first step the divisor is 1.  The mean is only used to center the squares; there is no momentum.

    The arguments are those of :func:`acprop`.

    Returns:
        A transformation with state :class:`torchopt.transform.ScaleByBeliefState`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.scale_by_acprop()
        >>> state = tx.init([torch.tensor(0.0)])
        >>> for g in (4.0, 2.0):
        ...     u, state = tx.update([torch.tensor(g)], state)
        ...     print(u)
        [tensor(4.)]
        [tensor(0.5000)]

    References:
        Zhuang et al., `Momentum centering and asynchronous update for adaptive gradient methods
        <https://arxiv.org/abs/2110.05454>`_, NeurIPS 2021.
    """
    ranges.adam(b1, b2, eps, eps_root)

    def init(params: Any) -> ScaleByBeliefState:
        return ScaleByBeliefState(
            zero_count(), elementwise.zero_moment(params), elementwise.zero_moment(params, real=True)
        )

    hypers = elementwise.Hyperparams(_make, b1=b1, b2=b2, eps=eps, eps_root=eps_root)

    def prepare(state: ScaleByBeliefState) -> elementwise.ElementwiseStep:
        known = as_python_scalar(state.count)
        count, _ = advance(state.count)
        rule = hypers.rule(state.count == 0 if known is None else known == 0, state.count if known is None else known)
        return elementwise.ElementwiseStep(rule, (state.mu, state.nu), partial(ScaleByBeliefState, count))

    return ElementwiseTransformation(init, prepare, state_of(ScaleByBeliefState), hypers=hypers)


def _make(first: Any, before: Any, *, b1: Any, b2: Any, eps: Any, eps_root: Any) -> partial[Any]:
    seen = before.clamp(min=1) if isinstance(before, Tensor) else max(before, 1)
    return partial(_rule, first=first, b1=b1, b2=b2, correction=bias_correction(b2, seen), eps=eps, eps_root=eps_root)


def _rule(
    g: Tensor, m: Tensor, s: Tensor, *, first: Any, b1: Any, b2: Any, correction: Any, eps: Any, eps_root: Any
) -> tuple[Tensor, ...]:
    square = s / as_scalar_like(correction, s)
    if isinstance(first, Tensor):
        square = torch.where(first.to(s.device), torch.ones_like(s), square)
    elif first:
        square = torch.ones_like(s)
    surprise = abs_sq(g - m)
    m = moving_average(b1, m, g)
    u = g / plus(safe_sqrt(square), as_scalar_like(eps, s))
    return u, m, plus(moving_average(b2, s, surprise), as_scalar_like(eps_root, s))


@suggesting
def acprop(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    r"""ACProp: gradients divided by the centered mean square of the previous steps.

    With :math:`u_t` as in :func:`scale_by_acprop`, :math:`p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})`.

    Args:
        learning_rate: :math:`\eta`; see :func:`torchopt.transform.scale_by_learning_rate`.
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the centered mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, added to the mean square at every step.
        weight_decay: :math:`\lambda \ge 0`; if nonzero, ``update`` requires ``params``.
        mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.acprop(0.5)
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.)]

    References:
        Zhuang et al., `Momentum centering and asynchronous update for adaptive gradient methods
        <https://arxiv.org/abs/2110.05454>`_, NeurIPS 2021.
    """
    return chain(
        scale_by_acprop(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
