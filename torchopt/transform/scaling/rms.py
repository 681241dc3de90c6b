# SPDX-License-Identifier: Apache-2.0
"""Divide by statistics of past gradients: RMS, standard deviation, root of the sum of squares, AdaDelta."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from torchopt import checks, elementwise, rules, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.elementwise import ranges
from torchopt.numerics import abs_sq, as_scalar_like, safe_sqrt
from torchopt.preconditions import state_of
from torchopt.transform.scaling.counted import counted


@tree.safe_to_load
class ScaleByRmsState(NamedTuple):
    """State of :func:`scale_by_rms`: the mean square of the gradients."""

    nu: Any


@tree.safe_to_load
class ScaleByRmsWithCountState(NamedTuple):
    """State of :func:`scale_by_rms` with bias correction: the step count, and the mean square of the gradients."""

    count: Any
    nu: Any


@factory
def scale_by_rms(
    alpha: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: float = 0.0,
    *,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
) -> GradientTransformation:
    r"""Divide updates by their root mean square.

    .. math::
        v_t = \alpha v_{t-1} + (1 - \alpha) |g_t|^2, \qquad u_t = g_t / (\sqrt{v_t} + \epsilon)

    Args:
        alpha: Decay rate :math:`\alpha \ge 0` of the mean square.
        eps: :math:`\epsilon \ge 0`, outside the root.
        initial_scale: First value of :math:`v`.
        eps_in_sqrt: Add :math:`\epsilon` inside the root instead, as Optax does by default.
        bias_correction: Divide the mean square by :math:`1 - \alpha^t`, to correct the bias from zero initialization;
            this is :func:`scale_by_adam` without the mean.  This rule has no native kernel and runs in plain torch.

    Returns:
        A transformation with state :class:`ScaleByRmsState`, or :class:`ScaleByRmsWithCountState` with bias correction.

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
    ranges.at_least_zero('alpha value', alpha)
    ranges.at_least_zero('epsilon value', eps)
    checks.at_least('initial_scale value', initial_scale)

    def moments(params: Any) -> list[Any]:
        return [elementwise.full_moment(params, initial_scale, real=True)]

    kinds = ScaleByRmsState, ScaleByRmsWithCountState
    return _divide(rules.rms, moments, kinds, bias_correction, eps_in_sqrt, alpha, eps)


def _divide(
    function: Any, moments: Any, kinds: tuple[Any, Any], corrected: bool, eps_in_sqrt: bool, alpha: Any, eps: Any
) -> GradientTransformation:
    """The transformation that divides by the root of a mean square or of a variance.

    ``function`` is the rule in :mod:`torchopt.rules`, ``kinds`` are the classes of states without and with a count, and
    ``corrected`` says whether there is a bias correction.
    """
    plain, with_count = kinds
    hypers = elementwise.Hyperparams(partial(_rule, function, eps_in_sqrt), alpha=alpha, eps=eps)
    if not corrected:
        rule = hypers.rule()
        return ElementwiseTransformation(
            lambda params: plain(*moments(params)),
            lambda state: elementwise.ElementwiseStep(rule, tuple(state), plain),
            state_of(plain),
            hypers=hypers,
        )

    return counted(with_count, moments, hypers)


def _rule(function: Any, eps_in_sqrt: bool, t: Any = None, *, alpha: Any, eps: Any) -> partial[Any]:
    place = {'offset': 0.0, 'shift': eps} if eps_in_sqrt else {'offset': eps, 'shift': 0.0}
    rule = partial(function, keep=alpha, take=1.0 - alpha, **place)
    return rule if t is None else partial(_correct, rule, 1.0 - alpha**t, **place)


def _correct(rule: Any, correction: Any, g: Tensor, *moments: Tensor, offset: Any, shift: Any) -> tuple[Tensor, ...]:
    """The moments of a rule, and the gradient divided according to their bias-corrected values."""
    _, *moved = rule(g, *moments)
    *mean, square = [x / as_scalar_like(correction, x) for x in moved]
    if mean:
        square = (square - abs_sq(mean[0])).clamp(min=0.0)
    root = safe_sqrt(rules.plus(square, as_scalar_like(shift, square)))
    return g / rules.plus(root, as_scalar_like(offset, root)), *moved


@tree.safe_to_load
class ScaleByRStdDevState(NamedTuple):
    """State of :func:`scale_by_stddev`: mean and mean square of the gradients."""

    mu: Any
    nu: Any


@tree.safe_to_load
class ScaleByRStdDevWithCountState(NamedTuple):
    """State of :func:`scale_by_stddev` with bias correction: step count, mean and mean square of the gradients."""

    count: Any
    mu: Any
    nu: Any


@factory
def scale_by_stddev(
    alpha: Any = 0.9,
    eps: Any = 1e-8,
    initial_scale: float = 0.0,
    *,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
) -> GradientTransformation:
    r"""Divide updates by their standard deviation: RMSProp, centered.

    .. math::
        m_t = \alpha m_{t-1} + (1 - \alpha) g_t, \qquad v_t = \alpha v_{t-1} + (1 - \alpha) |g_t|^2, \qquad
        u_t = g_t / (\sqrt{v_t - |m_t|^2} + \epsilon)

    A variance that is negative due to rounding is replaced by zero.

    The arguments and errors are those of :func:`scale_by_rms`; the bias correction divides both means.

    Returns:
        A transformation with state :class:`ScaleByRStdDevState`, or :class:`ScaleByRStdDevWithCountState`.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_stddev(alpha=0.5)
        >>> tx.update([torch.tensor(3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(2.)]

    References:
        Graves, `Generating sequences with recurrent neural networks <https://arxiv.org/abs/1308.0850>`_, 2013.
    """
    ranges.at_least_zero('alpha value', alpha)
    ranges.at_least_zero('epsilon value', eps)
    checks.at_least('initial_scale value', initial_scale)

    def moments(params: Any) -> list[Any]:
        return [elementwise.zero_moment(params), elementwise.full_moment(params, initial_scale, real=True)]

    kinds = ScaleByRStdDevState, ScaleByRStdDevWithCountState
    return _divide(rules.stddev, moments, kinds, bias_correction, eps_in_sqrt, alpha, eps)


@tree.safe_to_load
class ScaleByRssState(NamedTuple):
    """State of :func:`scale_by_rss`: the sum of the squares of all gradients so far."""

    sum_of_squares: Any


@factory
def scale_by_rss(
    initial_accumulator_value: float = 0.0, eps: Any = 1e-10, *, eps_in_sqrt: bool = False
) -> GradientTransformation:
    r"""Divide updates by the root of the sum of all squared gradients so far.

    .. math::
        s_t = s_{t-1} + |g_t|^2, \qquad u_t = g_t / (\sqrt{s_t} + \epsilon) \text{ if } s_t > 0, \text{ else } 0

    Args:
        initial_accumulator_value: First value of :math:`s`, at least 0.
        eps: :math:`\epsilon \ge 0`.
        eps_in_sqrt: Add :math:`\epsilon` inside the root instead, as Optax does.

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
    ranges.at_least_zero('epsilon value', eps)

    def init(params: Any) -> ScaleByRssState:
        return ScaleByRssState(elementwise.full_moment(params, initial_accumulator_value, real=True))

    hypers = elementwise.Hyperparams(partial(_rss, eps_in_sqrt), eps=eps)
    rule = hypers.rule()

    def prepare(state: ScaleByRssState) -> elementwise.ElementwiseStep:
        return elementwise.ElementwiseStep(rule, (state.sum_of_squares,), ScaleByRssState)

    return ElementwiseTransformation(init, prepare, state_of(ScaleByRssState), hypers=hypers)


def _rss(eps_in_sqrt: bool, *, eps: Any) -> partial[Any]:
    if eps_in_sqrt and checks.nonzero(eps):
        # A sum is an average with both weights 1.  It may be zero, since the radicand includes epsilon.
        return partial(rules.rms, keep=1.0, take=1.0, offset=0.0, shift=eps)
    return partial(rules.rss, offset=eps)


@tree.safe_to_load
class ScaleByAdaDeltaState(NamedTuple):
    """State of :func:`scale_by_adadelta`: mean squares of gradients and of updates."""

    e_g: Any
    e_x: Any


@factory
def scale_by_adadelta(rho: Any = 0.9, eps: Any = 1e-6, moment_requires_grad: bool = False) -> GradientTransformation:
    r"""Rescale updates with the rule of AdaDelta.

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
    ranges.flag('moment_requires_grad', moment_requires_grad)
    ranges.decay_rate('rho parameter at index 0', rho)
    ranges.at_least_zero('epsilon value', eps)

    def init(params: Any) -> ScaleByAdaDeltaState:
        zeros = [elementwise.zero_moment(params, real=True, requires_grad=moment_requires_grad) for _ in range(2)]
        return ScaleByAdaDeltaState(*zeros)

    hypers = elementwise.Hyperparams(
        lambda rho, eps: partial(rules.adadelta, keep=rho, take=1.0 - rho, eps=eps), rho=rho, eps=eps
    )
    rule = hypers.rule()

    def prepare(state: ScaleByAdaDeltaState) -> elementwise.ElementwiseStep:
        return elementwise.ElementwiseStep(rule, (state.e_g, state.e_x), ScaleByAdaDeltaState)

    return ElementwiseTransformation(init, prepare, state_of(ScaleByAdaDeltaState), hypers=hypers)
