# SPDX-License-Identifier: Apache-2.0
"""Adam: the moving average of gradients divided by the root of the moving average of their squares."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from torchopt import elementwise, rules, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.numerics import advance, zero_count
from torchopt.preconditions import state_of
from torchopt.spelling import suggesting
from torchopt.transform.wrappers.native import with_native


@tree.safe_to_load
class ScaleByAdamState(NamedTuple):
    """State of :func:`scale_by_adam`: the step count, the first and the second moment."""

    count: Any
    mu: Any
    nu: Any


_OWN_STATE = state_of(ScaleByAdamState)


@factory
def scale_by_adam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    moment_requires_grad: bool = False,
    *,
    nesterov: bool = False,
    mu_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    r"""Rescale updates with the rule of Adam or NAdam.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        u_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}

    With Nesterov momentum (NAdam) the numerator is
    :math:`\beta_1 m_t / (1 - \beta_1^{t+1}) + (1 - \beta_1)\, g_t / (1 - \beta_1^t)`.

    If :math:`v_t = 0` and :math:`\bar\epsilon = 0`, the root is not differentiable, but the update is, and
    meta-gradients are finite.

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root; if positive, it bounds meta-gradients of tiny gradients.
        moment_requires_grad: Make the first moments leaves that require grad, so that they can be learned.
        nesterov: Use Nesterov momentum.
        mu_dtype: Real dtype of the mean; None means the dtype of each parameter.

    Returns:
        A transformation with state :class:`ScaleByAdamState`.  The second moment of a complex parameter is real.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_adam()
        >>> params = {'w': torch.tensor([1.0, 2.0])}
        >>> updates, state = tx.update({'w': torch.tensor([0.5, -4.0])}, tx.init(params))
        >>> updates['w'], int(state.count)
        (tensor([ 1.0000, -1.0000]), 1)

    References:
        Kingma and Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.
        Dozat, `Incorporating Nesterov momentum into Adam
        <https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ>`_, 2016.
    """
    ranges.flag('moment_requires_grad', moment_requires_grad)
    ranges.adam(b1, b2, eps, eps_root)
    dtype = ranges.moment_dtype(mu_dtype)

    def init(params: Any) -> ScaleByAdamState:
        return ScaleByAdamState(
            zero_count(),
            elementwise.zero_moment(params, dtype=dtype, requires_grad=moment_requires_grad),
            elementwise.zero_moment(params, real=True, requires_grad=moment_requires_grad),
        )

    hypers = elementwise.Hyperparams(_rule, b1=b1, b2=b2, eps=eps, eps_root=eps_root)

    def prepare(state: ScaleByAdamState) -> elementwise.ElementwiseStep:
        count, t = advance(state.count)
        return elementwise.ElementwiseStep(
            hypers.rule(t, nesterov), (state.mu, state.nu), partial(ScaleByAdamState, count)
        )

    return ElementwiseTransformation(init, prepare, _OWN_STATE, hypers=hypers)


def _rule(t: Any, nesterov: bool, *, b1: Any, b2: Any, eps: Any, eps_root: Any) -> partial[Any]:
    c1, c2 = 1.0 - b1**t, 1.0 - b2**t
    # With both bias corrections applied to scalars: m / (sqrt(v + c2 eps_root) c1 / sqrt(c2) + c1 eps).
    return partial(
        rules.adam,
        b1=b1,
        d1=1.0 - b1,
        b2=b2,
        d2=1.0 - b2,
        mean=c1 * b1 / (1.0 - b1 ** (t + 1)) if nesterov else 1.0,
        gradient=1.0 - b1 if nesterov else 0.0,
        slope=c1 / c2**0.5,
        offset=c1 * eps,
        shift=c2 * eps_root if isinstance(eps_root, Tensor) or eps_root else 0.0,
    )


@suggesting
def scale_by_accelerated_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, eps_root: float = 0.0, moment_requires_grad: bool = False
) -> GradientTransformation:
    """:func:`scale_by_adam`, which raises if the native engine cannot run.

    The arguments are those of :func:`scale_by_adam`.

    Raises:
        RuntimeError: If the native engine cannot run; use :func:`scale_by_adam` instead.
    """
    return with_native(scale_by_adam(b1, b2, eps, eps_root, moment_requires_grad), True)
