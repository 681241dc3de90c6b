# SPDX-License-Identifier: Apache-2.0
"""Adan: Adam with Nesterov momentum, estimated from gradient differences."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import elementwise, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.elementwise import ranges
from torchopt.numerics import abs_sq, advance, as_python_scalar, as_scalar_like, safe_sqrt, zero_count
from torchopt.preconditions import state_of
from torchopt.rules import average, plus, times


@tree.safe_to_load
class ScaleByAdanState(NamedTuple):
    """State of :func:`scale_by_adan`.

    Attributes:
        m: The mean of the gradients.
        v: The mean of their differences.
        n: The mean square of the extrapolated gradients.
        g: The last gradient.
        t: The step count.
    """

    m: Any
    v: Any
    n: Any
    g: Any
    t: Any


@factory
def scale_by_adan(
    b1: Any = 0.98, b2: Any = 0.92, b3: Any = 0.99, eps: Any = 1e-8, eps_root: Any = 0.0
) -> GradientTransformation:
    r"""Rescale updates with the rule of Adan.

    With :math:`d_t = g_t - g_{t-1}`, and :math:`d_1 = 0`,

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) d_t, \qquad
        n_t = \beta_3 n_{t-1} + (1 - \beta_3) |g_t + (1 - \beta_2) d_t|^2, \qquad
        u_t = \frac{\hat m_t + (1 - \beta_2) \hat v_t}{\sqrt{\hat n_t + \bar\epsilon} + \epsilon},

    where a hat means division by :math:`1 - \beta^t`, to correct the bias from zero initialization.  The paper writes
    :math:`\beta` for :math:`1 - \beta`, and the factor :math:`(1 - \beta_2)` is :math:`\beta_2` here, as in Optax.

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean of differences, in [0, 1).
        b3: Decay rate :math:`\beta_3` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_adan()
        >>> updates, state = tx.update([torch.tensor([2.0, -0.5])], tx.init([torch.zeros(2)]))
        >>> updates
        [tensor([ 1., -1.])]

    References:
        Xie et al., `Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models
        <https://arxiv.org/abs/2208.06677>`_, 2022.
    """
    for name, value in (('b1', b1), ('b2', b2), ('b3', b3)):
        ranges.decay_rate(name, value)
    ranges.at_least_zero('epsilon value', eps)
    ranges.at_least_zero('eps_root value', eps_root)

    def init(params: Any) -> ScaleByAdanState:
        m, v, g = (elementwise.zero_moment(params) for _ in range(3))
        return ScaleByAdanState(m, v, elementwise.zero_moment(params, real=True), g, zero_count())

    hypers = elementwise.Hyperparams(_make, b1=b1, b2=b2, b3=b3, eps=eps, eps_root=eps_root)

    def prepare(state: ScaleByAdanState) -> elementwise.ElementwiseStep:
        known = as_python_scalar(state.t)
        count, t = advance(state.t)
        rule = hypers.rule(state.t == 0 if known is None else known == 0, t)
        return elementwise.ElementwiseStep(rule, tuple(state[:4]), partial(ScaleByAdanState, t=count))

    return ElementwiseTransformation(init, prepare, state_of(ScaleByAdanState), hypers=hypers)


def _make(first: Any, t: Any, *, b1: Any, b2: Any, b3: Any, eps: Any, eps_root: Any) -> partial[Any]:
    corrections = [1.0 - b**t for b in (b1, b2, b3)]
    return partial(_rule, first=first, decays=(b1, b2, b3), corrections=corrections, eps=eps, eps_root=eps_root)


def _rule(
    g: Tensor,
    m: Tensor,
    v: Tensor,
    n: Tensor,
    last: Tensor,
    *,
    first: Any,
    decays: Any,
    corrections: Any,
    eps: Any,
    eps_root: Any,
) -> tuple[Tensor, ...]:
    b1, b2, b3 = decays
    if isinstance(first, Tensor):
        d = torch.where(first.to(g.device), torch.zeros_like(g), g - last)
    else:
        d = torch.zeros_like(g) if first else g - last
    m = average(b1, m, 1.0 - b1, g)
    v = average(b2, v, 1.0 - b2, d)
    n = average(b3, n, 1.0 - b3, abs_sq(g + times(1.0 - b2, d)))
    m_hat, v_hat, n_hat = (x / as_scalar_like(c, x) for x, c in zip((m, v, n), corrections))
    below = plus(safe_sqrt(plus(n_hat, as_scalar_like(eps_root, n))), as_scalar_like(eps, n))
    # A copy of the gradient, since the caller may change it in place.
    return plus(m_hat, times(1.0 - b2, v_hat)) / below, m, v, n, g.clone()
