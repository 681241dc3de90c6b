# SPDX-License-Identifier: Apache-2.0
"""ADOPT: Adam that divides gradients by the previous second moment, before averaging."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchopt import checks, elementwise
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.combine import chain
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.numerics import abs_sq, as_python_scalar, as_scalar_like, increment, safe_sqrt, tensor_like, zero_count
from torchopt.preconditions import state_of
from torchopt.rules import moving_average
from torchopt.spelling import suggesting
from torchopt.transform import ScaleByAdamState, scale_by_learning_rate


def fourth_root(step: Any) -> Any:
    """The clipping bound :math:`t^{1/4}` of the ADOPT paper."""
    return step**0.25


@factory
def scale_by_adopt(
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Any], Any] = fourth_root,
) -> GradientTransformation:
    r"""Rescale updates with the rule of ADOPT.

    With :math:`v_0 = |g_0|^2`, :math:`m_0 = 0` and a zero update at :math:`t = 0`,

    .. math::
        d_t = \operatorname{clip}\Bigl(\frac{g_t}{\max(\sqrt{v_{t-1}}, \epsilon)},\ \pm c_t\Bigr), \qquad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) d_t, \qquad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad u_t = m_t.

    Since :math:`v_{t-1}` does not depend on :math:`g_t`, the method converges for every :math:`\beta_2`, unlike Adam.

    The arguments are those of :func:`adopt`.

    Returns:
        A transformation with state :class:`torchopt.transform.ScaleByAdamState`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If ``clip_value_fn`` is not callable.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.scale_by_adopt(b1=0.5)
        >>> state = tx.init([torch.tensor(0.0)])
        >>> for g in (2.0, 1.0):
        ...     u, state = tx.update([torch.tensor(g)], state)
        ...     print(u)
        [tensor(0.)]
        [tensor(0.2500)]

    References:
        Taniguchi et al., `ADOPT: modified Adam can converge with any β2 with the optimal rate
        <https://arxiv.org/abs/2411.02853>`_, NeurIPS 2024.
    """
    ranges.adam(b1, b2, eps)
    dtype = ranges.moment_dtype(mu_dtype)
    checks.schedule('clip_value_fn', clip_value_fn)

    def init(params: Any) -> ScaleByAdamState:
        return ScaleByAdamState(
            zero_count(), elementwise.zero_moment(params, dtype=dtype), elementwise.zero_moment(params, real=True)
        )

    def make(first: Any, bound: Any, **hypers: Any) -> partial[Any]:
        return partial(_rule, first=first, bound=bound, nesterov=nesterov, **hypers)

    hypers = elementwise.Hyperparams(make, b1=b1, b2=b2, eps=eps)

    def prepare(state: ScaleByAdamState) -> elementwise.ElementwiseStep:
        known = as_python_scalar(state.count)
        first = state.count == 0 if known is None else known == 0
        bound = clip_value_fn(state.count.to(torch.float64)) if use_clipping else None
        number = as_python_scalar(bound)
        rule = hypers.rule(first, bound if number is None else number)
        return elementwise.ElementwiseStep(
            rule, (state.mu, state.nu), partial(ScaleByAdamState, increment(state.count))
        )

    return ElementwiseTransformation(init, prepare, state_of(ScaleByAdamState), hypers=hypers)


def _rule(
    g: Tensor, m: Tensor, v: Tensor, *, first: Any, bound: Any, nesterov: bool, b1: Any, b2: Any, eps: Any
) -> tuple[Tensor, ...]:
    square = abs_sq(g)
    if first is True:
        return m.to(g.dtype, copy=True), m, square
    least = tensor_like(eps, v)
    d = g / torch.maximum(safe_sqrt(v), least)
    if bound is not None:
        d = _clip(d, as_scalar_like(bound, v))
    mean = moving_average(b1, m, d)
    u = moving_average(b1, mean, d) if nesterov else mean
    v_next = moving_average(b2, v, square)
    if isinstance(first, Tensor):
        first = first.to(g.device)
        mean, u = torch.where(first, m, mean), torch.where(first, m, u)
        v_next = torch.where(first, square, v_next)
    return u, mean, v_next


def _clip(x: Tensor, bound: Any) -> Tensor:
    if x.is_complex():
        return torch.complex(_clip(x.real, bound), _clip(x.imag, bound))
    return x.clamp(-bound, bound)


@suggesting
def adopt(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.9999,
    eps: Any = 1e-6,
    mu_dtype: DTypeLike | None = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Any], Any] = fourth_root,
) -> GradientTransformation:
    r"""ADOPT: Adam that divides gradients by the previous second moment, before averaging.

    With :math:`u_t` as in :func:`scale_by_adopt`, :math:`p_t = p_{t-1} - \eta\,u_t`.  The first step sets the moments.

    Args:
        learning_rate: :math:`\eta`; see :func:`torchopt.transform.scale_by_learning_rate`.
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, the lower bound of the divisor.
        mu_dtype: Real dtype of the mean; None means the dtype of each parameter.
        nesterov: Use Nesterov momentum: the update is :math:`\beta_1 m_t + (1 - \beta_1) d_t`.
        use_clipping: Whether to clip the rescaled gradients.
        clip_value_fn: The bound :math:`c_t` as a function of :math:`t`, a 0-d float64 tensor on the CPU.  Real and
            imaginary parts are clipped separately.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If ``clip_value_fn`` is not callable.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.adopt(0.5)
        >>> p = {'w': torch.tensor(1.0)}
        >>> int(optimizer.update(p, optimizer.init(p))[1][0].count)
        1

    References:
        Taniguchi et al., `ADOPT: modified Adam can converge with any β2 with the optimal rate
        <https://arxiv.org/abs/2411.02853>`_, NeurIPS 2024.
    """
    rule = scale_by_adopt(
        b1, b2, eps, mu_dtype, nesterov=nesterov, use_clipping=use_clipping, clip_value_fn=clip_value_fn
    )
    return chain(rule, scale_by_learning_rate(learning_rate))
