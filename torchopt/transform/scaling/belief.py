# SPDX-License-Identifier: Apache-2.0
"""AdaBelief: Adam with the mean square of the difference between gradients and their moving average."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from torchopt import elementwise, rules, tree
from torchopt.base import GradientTransformation, factory
from torchopt.elementwise import ranges
from torchopt.transform.scaling.counted import counted, two_moments


@tree.safe_to_load
class ScaleByBeliefState(NamedTuple):
    """State of :func:`scale_by_belief`: the step count, the mean, and the mean square of the difference from it."""

    count: Any
    mu: Any
    nu: Any


@factory
def scale_by_belief(
    b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-16, eps_root: Any = 1e-16, *, nesterov: bool = False
) -> GradientTransformation:
    r"""Rescale updates with the rule of AdaBelief.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t - m_t|^2 + \bar\epsilon, \qquad
        u_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Note that :math:`\bar\epsilon` is added at every step and stays in the state: gradients that are always zero lead to
    :math:`v_t = \bar\epsilon\,(1 - \beta_2^t) / (1 - \beta_2)`.

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, added to the mean square.
        nesterov: Use Nesterov momentum; see :func:`scale_by_adam`.  This rule runs in plain torch.

    Returns:
        A transformation with state :class:`ScaleByBeliefState`.  The second moment of a complex parameter is real.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_belief(b1=0.5)
        >>> tx.update([torch.tensor(-3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(-2.)]

    References:
        Zhuang et al., `AdaBelief optimizer: adapting stepsizes by the belief in observed gradients
        <https://arxiv.org/abs/2010.07468>`_, NeurIPS 2020.
    """
    ranges.adam(b1, b2, eps, eps_root)

    hypers = elementwise.Hyperparams(_rule, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return counted(ScaleByBeliefState, two_moments, hypers, nesterov)


def _rule(t: Any, nesterov: bool, *, b1: Any, b2: Any, eps: Any, eps_root: Any) -> partial[Any]:
    c1, c2 = 1.0 - b1**t, 1.0 - b2**t
    rule = partial(
        rules.belief,
        b1=b1,
        d1=1.0 - b1,
        b2=b2,
        # The kernel uses the difference from the old mean, and g - m_t = b1 (g - m_{t-1}).
        d2=(1.0 - b2) * b1 * b1,
        mean=1.0,
        slope=c1 / c2**0.5,
        offset=c1 * eps,
        shift=0.0,
        floor=eps_root,
    )
    if not nesterov:
        return rule
    ahead = c1 * b1 / (1.0 - b1 ** (t + 1))
    return partial(_look_ahead, rule, mean=ahead, gradient=1.0 - b1, slope=c1 / c2**0.5, offset=c1 * eps)


def _look_ahead(
    rule: Any, g: Tensor, m: Tensor, v: Tensor, *, mean: Any, gradient: Any, slope: Any, offset: Any
) -> tuple[Tensor, ...]:
    """The moments of a rule, and a weighted sum of new mean and gradient divided by the divisor of the rule."""
    _, m, v = rule(g, m, v)
    return rules.rescaled(g, m, v, mean, gradient, slope, offset, 0.0), m, v
