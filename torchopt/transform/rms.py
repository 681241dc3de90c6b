# SPDX-License-Identifier: Apache-2.0
"""Divide by what the gradients used to be: RMS, standard deviation, root of the sum of squares, AdaDelta."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torchopt import checks, tree
from torchopt._C import reference
from torchopt.base import GradientTransformation, elementwise, factory
from torchopt.numerics import complement

__all__ = [
    'ScaleByAdaDeltaState',
    'ScaleByRStdDevState',
    'ScaleByRmsState',
    'ScaleByRssState',
    'scale_by_adadelta',
    'scale_by_rms',
    'scale_by_rss',
    'scale_by_stddev',
]


@tree.safe_to_load
class ScaleByRmsState(NamedTuple):
    """State of :func:`scale_by_rms`: the mean square of the gradients."""

    nu: Any


@factory
def scale_by_rms(
    alpha: Any = 0.9, eps: Any = 1e-8, initial_scale: float = 0.0, *, eps_in_sqrt: bool = False
) -> GradientTransformation:
    r"""Divide updates by their root mean square.

    .. math::
        v_t = \alpha v_{t-1} + (1 - \alpha) |g_t|^2, \qquad u_t = g_t / (\sqrt{v_t} + \epsilon)

    Args:
        alpha: Decay rate :math:`\alpha \ge 0` of the mean square.
        eps: :math:`\epsilon \ge 0`, outside the root.
        initial_scale: First value of :math:`v`.
        eps_in_sqrt: Add :math:`\epsilon` inside the root instead, as Optax does by default.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_rms(alpha=0.75)
        >>> tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(2.)]

    References:
        Tieleman and Hinton, Lecture 6.5: RMSProp, Coursera, 2012.
    """
    checks.at_least('alpha value', alpha)
    checks.at_least('epsilon value', eps)
    checks.at_least('initial_scale value', initial_scale)

    def init(params: Any) -> ScaleByRmsState:
        return ScaleByRmsState(tree.full_moment(params, initial_scale, real=True))

    rule = partial(reference.rms, keep=alpha, take=complement(alpha), **_place(eps, eps_in_sqrt))

    def begin(state: ScaleByRmsState) -> tree.Pass:
        return tree.Pass(rule, (state.nu,), ScaleByRmsState)

    return elementwise(init, begin, ScaleByRmsState)


def _place(eps: Any, in_root: bool) -> dict[str, Any]:
    """The coefficients that put an epsilon inside or outside of the root."""
    return {'offset': 0.0, 'shift': eps} if in_root else {'offset': eps, 'shift': 0.0}


@tree.safe_to_load
class ScaleByRStdDevState(NamedTuple):
    """State of :func:`scale_by_stddev`: mean and mean square of the gradients."""

    mu: Any
    nu: Any


@factory
def scale_by_stddev(
    alpha: Any = 0.9, eps: Any = 1e-8, initial_scale: float = 0.0, *, eps_in_sqrt: bool = False
) -> GradientTransformation:
    r"""Divide updates by their standard deviation: RMSProp, centered.

    .. math::
        m_t = \alpha m_{t-1} + (1 - \alpha) g_t, \qquad v_t = \alpha v_{t-1} + (1 - \alpha) |g_t|^2, \qquad
        u_t = g_t / (\sqrt{v_t - |m_t|^2} + \epsilon)

    The variance is never negative; where rounding would make it so, it is zero.

    Args:
        alpha: Decay rate :math:`\alpha \ge 0` of both means.
        eps: :math:`\epsilon \ge 0`, outside the root.
        initial_scale: First value of :math:`v`.
        eps_in_sqrt: Add :math:`\epsilon` inside the root instead, as Optax does by default.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_stddev(alpha=0.5)
        >>> tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(2.)]

    References:
        Graves, `Generating sequences with recurrent neural networks <https://arxiv.org/abs/1308.0850>`_, 2013.
    """
    checks.at_least('alpha value', alpha)
    checks.at_least('epsilon value', eps)
    checks.at_least('initial_scale value', initial_scale)

    def init(params: Any) -> ScaleByRStdDevState:
        return ScaleByRStdDevState(tree.zero_moment(params), tree.full_moment(params, initial_scale, real=True))

    rule = partial(reference.stddev, keep=alpha, take=complement(alpha), **_place(eps, eps_in_sqrt))

    def begin(state: ScaleByRStdDevState) -> tree.Pass:
        return tree.Pass(rule, (state.mu, state.nu), ScaleByRStdDevState)

    return elementwise(init, begin, ScaleByRStdDevState)


@tree.safe_to_load
class ScaleByRssState(NamedTuple):
    """State of :func:`scale_by_rss`: the sum of the squares of all gradients so far."""

    sum_of_squares: Any


@factory
def scale_by_rss(initial_accumulator_value: float = 0.0, eps: Any = 1e-10) -> GradientTransformation:
    r"""Divide updates by the root of the sum of all squares so far.

    .. math::
        s_t = s_{t-1} + |g_t|^2, \qquad u_t = g_t / (\sqrt{s_t} + \epsilon) \text{ where } s_t > 0, \text{ else } 0

    Args:
        initial_accumulator_value: First value of :math:`s`, at least 0.
        eps: :math:`\epsilon \ge 0`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_rss(initial_accumulator_value=16.0)
        >>> tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(0.6000)]

    References:
        Duchi et al., `Adaptive subgradient methods <https://jmlr.org/papers/v12/duchi11a.html>`_, JMLR 2011.
    """
    checks.at_least('initial_accumulator_value value', initial_accumulator_value)
    checks.at_least('epsilon value', eps)

    def init(params: Any) -> ScaleByRssState:
        return ScaleByRssState(tree.full_moment(params, initial_accumulator_value, real=True))

    rule = partial(reference.rss, offset=eps)

    def begin(state: ScaleByRssState) -> tree.Pass:
        return tree.Pass(rule, (state.sum_of_squares,), ScaleByRssState)

    return elementwise(init, begin, ScaleByRssState)


@tree.safe_to_load
class ScaleByAdaDeltaState(NamedTuple):
    """State of :func:`scale_by_adadelta`: mean squares of gradients and of updates."""

    e_g: Any
    e_x: Any


@factory
def scale_by_adadelta(rho: Any = 0.9, eps: Any = 1e-6, moment_requires_grad: bool = False) -> GradientTransformation:
    r"""Rescale updates by AdaDelta.

    .. math::
        v_t = \rho v_{t-1} + (1 - \rho) |g_t|^2, \qquad
        u_t = \sqrt{\frac{x_{t-1} + \epsilon}{v_t + \epsilon}}\; g_t, \qquad
        x_t = \rho x_{t-1} + (1 - \rho) |u_t|^2

    Args:
        rho: Decay rate :math:`\rho` of both means, in [0, 1).
        eps: :math:`\epsilon \ge 0`, inside the root.
        moment_requires_grad: Make the first moments leaves that require grad.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_adadelta(rho=0.0, eps=1.0)
        >>> tx.update([torch.tensor(0.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(0.)]

    References:
        Zeiler, `ADADELTA: an adaptive learning rate method <https://arxiv.org/abs/1212.5701>`_, 2012.
    """
    checks.unit_interval('rho parameter at index 0', rho)
    checks.at_least('epsilon value', eps)

    def init(params: Any) -> ScaleByAdaDeltaState:
        zeros = [tree.zero_moment(params, real=True, requires_grad=moment_requires_grad) for _ in range(2)]
        return ScaleByAdaDeltaState(*zeros)

    rule = partial(reference.adadelta, keep=rho, take=complement(rho), eps=eps)

    def begin(state: ScaleByAdaDeltaState) -> tree.Pass:
        return tree.Pass(rule, (state.e_g, state.e_x), ScaleByAdaDeltaState)

    return elementwise(init, begin, ScaleByAdaDeltaState)
