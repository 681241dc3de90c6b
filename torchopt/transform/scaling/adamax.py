# SPDX-License-Identifier: Apache-2.0
"""AdaMax: Adam with the decayed maximum of the gradients in place of the mean square."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torchopt import elementwise, rules, tree
from torchopt.base import GradientTransformation, factory
from torchopt.elementwise import ranges
from torchopt.transform.scaling.counted import counted, two_moments


@tree.safe_to_load
class ScaleByAdamaxState(NamedTuple):
    """State of :func:`scale_by_adamax`: the step count, the mean, and the decayed maximum of the gradients."""

    count: Any
    mu: Any
    nu: Any


@factory
def scale_by_adamax(
    b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-6, moment_requires_grad: bool = False
) -> GradientTransformation:
    r"""Rescale updates with the rule of AdaMax.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad n_t = \max(\beta_2 n_{t-1}, |g_t| + \epsilon), \qquad
        u_t = \frac{m_t}{(1 - \beta_1^t)\, n_t}

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the maximum, in [0, 1).
        eps: :math:`\epsilon \ge 0`, added to the absolute value of the gradient.
        moment_requires_grad: Make the first moments leaves that require grad.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_adamax()
        >>> tx.update([torch.tensor(-3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(-1.0000)]

    References:
        Kingma and Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, section 7, 2014.
    """
    ranges.flag('moment_requires_grad', moment_requires_grad)
    ranges.adam(b1, b2, eps)

    moments = partial(two_moments, requires_grad=moment_requires_grad)
    return counted(ScaleByAdamaxState, moments, elementwise.Hyperparams(_rule, b1=b1, b2=b2, eps=eps))


def _rule(t: Any, *, b1: Any, b2: Any, eps: Any) -> partial[Any]:
    return partial(rules.adamax, b1=b1, d1=1.0 - b1, b2=b2, eps=eps, correction=1.0 - b1**t)
