# SPDX-License-Identifier: Apache-2.0
"""AdEMAMix: Adam with an additional, much slower moving average of the gradients."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.combine import chain
from torchopt.contrib.scalars import check_number_or_schedule, rate_at
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.numerics import abs_sq, advance, as_scalar_like, increment, safe_sqrt, zero_count
from torchopt.preconditions import Precondition, state_of
from torchopt.rules import average, moving_average, plus, times
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_learning_rate


@tree.safe_to_load
class ScaleByAdemamixState(NamedTuple):
    """State of :func:`scale_by_ademamix`.

    Attributes:
        count: The step count for the fast mean and the mean square.
        count_m2: The step count for the schedules of the slow mean.
        m1: The fast mean of the gradients.
        m2: The slow mean of the gradients.
        nu: The mean square.
    """

    count: Any
    count_m2: Any
    m1: Any
    m2: Any
    nu: Any


@factory
def scale_by_ademamix(
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    alpha: Any = 6.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    r"""Rescale updates with the rule of AdEMAMix.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        n_t = \beta_3 n_{t-1} + (1 - \beta_3) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \quad
        u_t = \frac{m_t / (1 - \beta_1^t) + \alpha\, n_t}{\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}

    The slow mean :math:`n` averages gradients of many thousands of steps; it has no bias correction, so it grows
    slowly.  In the paper, :math:`\alpha` and :math:`\beta_3` also increase from small values.

    The arguments are those of :func:`ademamix`.

    Returns:
        A transformation with state :class:`ScaleByAdemamixState`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.scale_by_ademamix(b3=0.5, alpha=2.0)
        >>> tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(2.)]

    References:
        Pagliardini et al., `The AdEMAMix optimizer: better, faster, older <https://arxiv.org/abs/2409.03137>`_, 2024.
    """
    ranges.decay_rates(b1, b2)
    if not checks.is_schedule(b3):
        ranges.decay_rate('b3', b3)
    check_number_or_schedule('alpha', alpha)
    ranges.at_least_zero('epsilon value', eps)
    ranges.at_least_zero('eps_root value', eps_root)
    dtype = ranges.moment_dtype(mu_dtype)

    def init(params: Any) -> ScaleByAdemamixState:
        fast, slow = elementwise.zero_moment(params, dtype=dtype), elementwise.zero_moment(params, dtype=dtype)
        return ScaleByAdemamixState(
            zero_count(), zero_count(), fast, slow, elementwise.zero_moment(params, dtype=dtype, real=True)
        )

    def schedules(state: ScaleByAdemamixState, params: Any = None) -> tuple[Any, Any]:
        return rate_at(b3, state.count_m2), rate_at(alpha, state.count_m2)

    trees = {name: x for name, x in (('b3', b3), ('alpha', alpha)) if not checks.is_schedule(x)}
    hypers = elementwise.Hyperparams(_make, b1=b1, b2=b2, eps=eps, eps_root=eps_root, **trees)

    def prepare(state: ScaleByAdemamixState) -> elementwise.ElementwiseStep:
        count, t = advance(state.count)
        settle = partial(ScaleByAdemamixState, count, increment(state.count_m2))
        return elementwise.ElementwiseStep(hypers.rule(t, *schedules(state)), (state.m1, state.m2, state.nu), settle)

    return ElementwiseTransformation(
        init, prepare, state_of(ScaleByAdemamixState), Precondition(schedules), hypers=hypers
    )


def _make(
    t: Any, b3_now: Any, alpha_now: Any, *, b1: Any, b2: Any, eps: Any, eps_root: Any, b3: Any = None, alpha: Any = None
) -> partial[Any]:
    return partial(
        _rule,
        decays=(b1, b2, b3_now if b3 is None else b3),
        corrections=(1.0 - b1**t, 1.0 - b2**t),
        alpha=alpha_now if alpha is None else alpha,
        eps=eps,
        eps_root=eps_root,
    )


def _rule(
    g: Tensor, m: Tensor, n: Tensor, v: Tensor, *, decays: Any, corrections: Any, alpha: Any, eps: Any, eps_root: Any
) -> tuple[Tensor, ...]:
    b1, b2, b3 = decays
    m = average(b1, m, 1.0 - b1, g)
    n = moving_average(b3, n, g)
    v = average(b2, v, 1.0 - b2, abs_sq(g))
    m_hat, v_hat = (x / as_scalar_like(c, x) for x, c in zip((m, v), corrections))
    below = plus(safe_sqrt(plus(v_hat, as_scalar_like(eps_root, v))), as_scalar_like(eps, v))
    return plus(m_hat, times(alpha, n)) / below, m, n, v


@suggesting
def ademamix(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    b3: Any = 0.9999,
    alpha: Any = 5.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    r"""AdEMAMix: Adam with an additional, much slower moving average of the gradients.

    With :math:`u_t` as in :func:`scale_by_ademamix`, :math:`p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})`.

    Args:
        learning_rate: :math:`\eta`; see :func:`torchopt.transform.scale_by_learning_rate`.
        b1: Decay rate :math:`\beta_1` of the fast mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        b3: Decay rate :math:`\beta_3` of the slow mean, in [0, 1), or a schedule of it.
        alpha: The weight :math:`\alpha` of the slow mean, or a schedule of it.
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root.
        mu_dtype: Real dtype of all three means; None means the dtype of each parameter.
        weight_decay: :math:`\lambda \ge 0`; if nonzero, ``update`` requires ``params``.
        mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.ademamix(0.5, b3=0.5, alpha=2.0)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.)]

    References:
        Pagliardini et al., `The AdEMAMix optimizer: better, faster, older <https://arxiv.org/abs/2409.03137>`_, 2024.
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
