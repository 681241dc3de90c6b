# SPDX-License-Identifier: Apache-2.0
"""Momentum: a decaying sum of all gradients."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, rules, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory, identity
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.numerics import as_python_scalar, increment, zero_count
from torchopt.preconditions import state_of
from torchopt.scalars import where


@tree.safe_to_load
class TraceState(NamedTuple):
    """State of :func:`trace`: the decaying sum."""

    trace: Any


@tree.safe_to_load
class DampedTraceState(NamedTuple):
    """State of :func:`trace` with dampening: the decaying sum, and the step count, since the first step is special."""

    trace: Any
    count: Any


@factory
def trace(
    momentum: Any = 0.9,
    dampening: Any = 0.0,
    nesterov: bool = False,
    moment_requires_grad: bool = False,
    *,
    accumulator_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    r"""Replace gradients by their decaying sum: the momentum of SGD.

    .. math::
        b_1 = g_1, \qquad b_t = \mu b_{t-1} + (1 - \tau) g_t, \qquad
        u_t = \begin{cases} g_t + \mu b_t & \text{Nesterov} \\ b_t & \text{otherwise} \end{cases}

    Args:
        momentum: :math:`\mu \ge 0`.  Zero gives the identity.
        dampening: :math:`\tau`; as in ``torch.optim.SGD``, it does not apply to the first step.
        nesterov: Use Nesterov momentum; requires a momentum and no dampening.
        moment_requires_grad: Make the initial trace a leaf that requires grad.
        accumulator_dtype: Real dtype of the trace; None means the dtype of each parameter.

    Returns:
        A transformation with state :class:`TraceState`, or :class:`DampedTraceState` with dampening.

    Raises:
        ValueError: If the momentum is negative, or ``nesterov`` is used without a momentum or with dampening.
        TypeError: If ``accumulator_dtype`` is not a real floating dtype.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.trace(momentum=0.5)
        >>> state = tx.init([torch.tensor(0.0)])
        >>> for g in (1.0, 1.0, 1.0):
        ...     u, state = tx.update([torch.tensor(g)], state)
        >>> u
        [tensor(1.7500)]

    References:
        Sutskever et al., `On the importance of initialization and momentum in deep learning
        <https://proceedings.mlr.press/v28/sutskever13.html>`_, ICML 2013.
    """
    ranges.at_least_zero('momentum value', momentum)
    elementwise.check_each(checks.number, 'dampening value', dampening)
    ranges.flag('moment_requires_grad', moment_requires_grad)
    dtype = ranges.moment_dtype(accumulator_dtype, 'accumulator_dtype')
    if nesterov and (not checks.nonzero(momentum) or checks.nonzero(dampening)):
        raise ValueError(
            f'Nesterov momentum requires a momentum and zero dampening: momentum={momentum}, dampening={dampening}. '
            f'Pass momentum > 0 and dampening=0, or nesterov=False.'
        )
    if not checks.nonzero(momentum):
        return identity()
    return decaying_sum(momentum, dampening, nesterov, moment_requires_grad, dtype)


def decaying_sum(
    momentum: Any, dampening: Any, nesterov: bool, requires_grad: bool, dtype: torch.dtype | None
) -> GradientTransformation:
    """:func:`trace` without its checks; a momentum of zero has a state, too."""
    hypers = elementwise.Hyperparams(_rule, momentum=momentum, dampening=dampening)

    def zeros(params: Any) -> Any:
        return elementwise.zero_moment(params, dtype=dtype, requires_grad=requires_grad)

    if not checks.nonzero(dampening):
        return ElementwiseTransformation(
            lambda params: TraceState(zeros(params)),
            lambda state: elementwise.ElementwiseStep(hypers.rule((), nesterov), (state.trace,), TraceState),
            state_of(TraceState),
            hypers=hypers,
        )

    def prepare(state: DampedTraceState) -> elementwise.ElementwiseStep:
        count = increment(state.count)
        return elementwise.ElementwiseStep(
            hypers.rule(state.count, nesterov), (state.trace,), lambda new: DampedTraceState(new, count)
        )

    return ElementwiseTransformation(
        lambda params: DampedTraceState(zeros(params), zero_count()), prepare, state_of(DampedTraceState), hypers=hypers
    )


def _rule(count: Any, nesterov: bool, *, momentum: Any, dampening: Any) -> partial[Any]:
    return partial(
        rules.trace,
        keep=momentum,
        take=_damping(dampening, count),
        gradient=1.0 if nesterov else 0.0,
        buffer=momentum if nesterov else 1.0,
    )


def _damping(dampening: Any, count: Any) -> Any:
    """The weight of the gradient: one at the first step of a state, then one minus the dampening."""
    if not isinstance(count, Tensor):
        return 1.0  # without dampening, the state has no count
    t = as_python_scalar(count)
    return where(count == 0 if t is None else t == 0, 1.0, 1.0 - dampening)
