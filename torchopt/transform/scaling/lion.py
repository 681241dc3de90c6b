# SPDX-License-Identifier: Apache-2.0
"""Lion: the sign of an average of momentum and gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, rules, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.numerics import increment, zero_count
from torchopt.preconditions import state_of


@tree.safe_to_load
class ScaleByLionState(NamedTuple):
    """State of :func:`scale_by_lion`: the step count, and the mean of the gradients."""

    count: Any
    mu: Any


@factory
def scale_by_lion(
    b1: Any = 0.9,
    b2: Any = 0.99,
    mu_dtype: DTypeLike | None = None,
    *,
    mode: Literal['hard', 'smooth', 'refined'] = 'hard',
    smooth_beta: Any = 1.0,
) -> GradientTransformation:
    r"""Rescale updates with the rule of Lion: every element gets the absolute value 1, or nearly 1 in the soft modes.

    .. math::
        u_t = s(\beta_1 m_{t-1} + (1 - \beta_1) g_t), \qquad m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t

    with :math:`s(x) = \operatorname{sign}(x)`, or :math:`x / |x|` for complex numbers.  The sign of a real number has
    the derivative zero: for meta-gradients through the directions of the steps, use one of the two soft modes.

    Args:
        b1: Weight :math:`\beta_1` of the mean in the update, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean, in [0, 1).
        mu_dtype: Real dtype of the mean; None means the dtype of each parameter.
        mode: ``'hard'`` is the sign.  The soft modes ``'smooth'``, :math:`\tanh(\gamma x)`, and ``'refined'``,
            :math:`x` if :math:`|x| < 1`, else the sign, have no native kernels and run in plain torch.
        smooth_beta: :math:`\gamma`, for ``mode='smooth'``.

    Returns:
        A transformation with state :class:`ScaleByLionState`.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or the mode is unknown.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_lion()
        >>> tx.update([torch.tensor([0.01, -7.0])], tx.init([torch.zeros(2)]))[0]
        [tensor([ 1., -1.])]

    References:
        Chen et al., `Symbolic discovery of optimization algorithms <https://arxiv.org/abs/2302.06675>`_, NeurIPS 2023.
    """
    ranges.decay_rates(b1, b2)
    dtype = ranges.moment_dtype(mu_dtype)
    checks.number('smooth_beta value', smooth_beta)
    if mode not in ('hard', 'smooth', 'refined'):
        raise ValueError(f"Invalid mode value: {mode!r}; expected 'hard', 'smooth' or 'refined'.")

    def init(params: Any) -> ScaleByLionState:
        return ScaleByLionState(zero_count(), elementwise.zero_moment(params, dtype=dtype))

    squash: Any = None
    if mode == 'smooth':
        squash = partial(_tanh, smooth_beta)
    elif mode == 'refined':
        squash = _refined
    hypers = elementwise.Hyperparams(_rule, b1=b1, b2=b2)
    rule = hypers.rule(squash)

    def prepare(state: ScaleByLionState) -> elementwise.ElementwiseStep:
        return elementwise.ElementwiseStep(rule, (state.mu,), lambda mu: ScaleByLionState(increment(state.count), mu))

    return ElementwiseTransformation(init, prepare, state_of(ScaleByLionState), hypers=hypers)


def _rule(squash: Any, *, b1: Any, b2: Any) -> partial[Any]:
    rule = partial(rules.lion, b1=b1, d1=1.0 - b1, b2=b2, d2=1.0 - b2)
    return rule if squash is None else partial(_soft, rule, squash, b1, 1.0 - b1)


def _tanh(slope: Any, x: Tensor) -> Tensor:
    return torch.tanh(rules.times(slope, x))


def _refined(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1.0, x, rules.sign(x))


def _soft(rule: Any, squash: Any, b1: Any, d1: Any, g: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    """The rule of Lion with another function in place of the sign."""
    return squash(rules.average(b1, m, d1, g)), rule(g, m)[1]
