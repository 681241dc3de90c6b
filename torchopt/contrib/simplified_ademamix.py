# SPDX-License-Identifier: Apache-2.0
"""Simplified AdEMAMix: the sum of an accumulated momentum and the current gradient."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.combine import chain
from torchopt.contrib.scalars import check_number_or_schedule, rate_at
from torchopt.elementwise import ranges
from torchopt.numerics import abs_sq, advance, as_scalar_like, safe_sqrt, zero_count
from torchopt.preconditions import Precondition, state_of
from torchopt.rules import average, plus, times
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_learning_rate


@tree.safe_to_load
class ScaleBySimplifiedAdEMAMixState(NamedTuple):
    """State of :func:`scale_by_simplified_ademamix`: the step count, the decaying sum, and the mean square."""

    t: Any
    m: Any
    n: Any


@factory
def scale_by_simplified_ademamix(
    b1: Any = 0.99, b2: Any = 0.95, alpha: Any = 0.0, eps: Any = 1e-8, eps_root: Any = 0.0
) -> GradientTransformation:
    r"""Rescale updates with the rule of Simplified AdEMAMix.

    .. math::
        m_t = \beta_1 m_{t-1} + g_t, \qquad
        n_t = \beta_2 n_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        u_t = \frac{m_t + \alpha g_t}{\sqrt{n_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}

    :math:`m` is a sum instead of a mean, so steps are up to :math:`1 / (1 - \beta_1)` times as long as those of Adam.

    The arguments are those of :func:`simplified_ademamix`.

    Returns:
        A transformation with state :class:`ScaleBySimplifiedAdEMAMixState`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.scale_by_simplified_ademamix(alpha=3.0)
        >>> tx.update([torch.tensor(2.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(4.)]

    References:
        Morwani et al., `Connections between schedule-free optimizers, AdEMAMix, and accelerated SGD variants
        <https://arxiv.org/abs/2502.02431>`_, 2025.
    """
    ranges.decay_rates(b1, b2)
    check_number_or_schedule('alpha', alpha)
    ranges.at_least_zero('epsilon value', eps)
    ranges.at_least_zero('eps_root value', eps_root)

    def init(params: Any) -> ScaleBySimplifiedAdEMAMixState:
        return ScaleBySimplifiedAdEMAMixState(
            zero_count(), elementwise.zero_moment(params), elementwise.zero_moment(params, real=True)
        )

    def schedule(state: ScaleBySimplifiedAdEMAMixState, params: Any = None) -> Any:
        return rate_at(alpha, state.t)

    trees = {} if checks.is_schedule(alpha) else {'alpha': alpha}
    hypers = elementwise.Hyperparams(_make, b1=b1, b2=b2, eps=eps, eps_root=eps_root, **trees)

    def prepare(state: ScaleBySimplifiedAdEMAMixState) -> elementwise.ElementwiseStep:
        count, t = advance(state.t)
        return elementwise.ElementwiseStep(
            hypers.rule(t, schedule(state)), (state.m, state.n), partial(ScaleBySimplifiedAdEMAMixState, count)
        )

    return ElementwiseTransformation(
        init, prepare, state_of(ScaleBySimplifiedAdEMAMixState), Precondition(schedule), hypers=hypers
    )


def _make(t: Any, alpha_now: Any, *, b1: Any, b2: Any, eps: Any, eps_root: Any, alpha: Any = None) -> partial[Any]:
    alpha = alpha_now if alpha is None else alpha
    return partial(_rule, b1=b1, b2=b2, correction=1.0 - b2**t, alpha=alpha, eps=eps, eps_root=eps_root)


def _rule(
    g: Tensor, m: Tensor, n: Tensor, *, b1: Any, b2: Any, correction: Any, alpha: Any, eps: Any, eps_root: Any
) -> tuple[Tensor, ...]:
    m = plus(g, times(b1, m))
    n = average(b2, n, 1.0 - b2, abs_sq(g))
    n_hat = n / as_scalar_like(correction, n)
    below = plus(safe_sqrt(plus(n_hat, as_scalar_like(eps_root, n))), as_scalar_like(eps, n))
    return plus(m, times(alpha, g)) / below, m, n


@suggesting
def simplified_ademamix(
    learning_rate: Any,
    b1: Any = 0.99,
    b2: Any = 0.95,
    alpha: Any = 0.0,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    r"""Simplified AdEMAMix: the sum of an accumulated momentum and the current gradient.

    With :math:`u_t` as in :func:`scale_by_simplified_ademamix`, :math:`p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})`.

    Args:
        learning_rate: :math:`\eta`; see :func:`torchopt.transform.scale_by_learning_rate`; smaller than Adam's by a
            factor of about :math:`1 - \beta_1`.
        b1: Decay rate :math:`\beta_1` of the sum, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        alpha: The weight :math:`\alpha` of the current gradient, or a schedule of it.
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root.
        weight_decay: :math:`\lambda \ge 0`; if nonzero, ``update`` requires ``params``.
        mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.simplified_ademamix(0.5, alpha=3.0)
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-2.)]

    References:
        Morwani et al., `Connections between schedule-free optimizers, AdEMAMix, and accelerated SGD variants
        <https://arxiv.org/abs/2502.02431>`_, 2025.
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
