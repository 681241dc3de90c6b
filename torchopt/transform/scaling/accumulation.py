# SPDX-License-Identifier: Apache-2.0
"""Accumulation of gradients over steps: moving averages, and sums over several steps."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, rules, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.graphs import zeros_of
from torchopt.numerics import as_python_scalar, safe_increment, zero_count
from torchopt.preconditions import state_of
from torchopt.transform.scaling.counted import counted


@tree.safe_to_load
class EmaState(NamedTuple):
    """State of :func:`ema`: the step count and the average."""

    count: Any
    ema: Any


@factory
def ema(decay: Any, debias: bool = True, accumulator_dtype: DTypeLike | None = None) -> GradientTransformation:
    r"""Replace gradients by their exponential moving average.

    .. math::
        m_t = \beta m_{t-1} + (1 - \beta) g_t, \qquad u_t = m_t / (1 - \beta^t)

    Without ``debias``, the result of :func:`trace` differs only by a factor.

    Args:
        decay: :math:`\beta`, in [0, 1).
        debias: Divide by :math:`1 - \beta^t`, to correct the bias from zero initialization.
        accumulator_dtype: Real dtype of the average; None means the dtype of each parameter.

    Raises:
        ValueError: If the decay rate is out of its range.
        TypeError: If ``accumulator_dtype`` is not a real floating dtype.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.ema(0.5)
        >>> state = tx.init([torch.zeros(())])
        >>> for g in (1.0, 4.0):
        ...     updates, state = tx.update([torch.tensor(g)], state)
        >>> updates, state.ema
        ([tensor(3.)], [tensor(2.2500)])
    """
    ranges.decay_rate('decay', decay)
    dtype = ranges.moment_dtype(accumulator_dtype, 'accumulator_dtype')

    hypers = elementwise.Hyperparams(_average, decay=decay)
    return counted(EmaState, lambda params: [elementwise.zero_moment(params, dtype=dtype)], hypers, debias)


def _average(t: Any, debias: bool, *, decay: Any) -> partial[Any]:
    share = 1.0 / (1.0 - decay**t) if debias else 1.0
    return partial(rules.trace, keep=decay, take=1.0 - decay, gradient=0.0, buffer=share)


@tree.safe_to_load
class ApplyEvery(NamedTuple):
    """State of :func:`apply_every`: the steps since the last nonzero update, and the sum of the updates since then."""

    count: Any
    grad_acc: Any


@factory
def apply_every(k: Any = 1) -> GradientTransformation:
    """Accumulate updates, and return their sum every ``k`` steps; in all other steps updates are zero.

    Put it at the end of a chain.  Transformations before it receive every gradient.  To average gradients before the
    optimizer, use :class:`MultiSteps`.

    Args:
        k: The number of steps, at least 1.

    Raises:
        ValueError: If ``k`` is less than 1.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.chain(torchopt.sgd(0.5), torchopt.transform.apply_every(2))
        >>> state = tx.init([torch.zeros(())])
        >>> for g in (1.0, 3.0):
        ...     updates, state = tx.update([torch.tensor(g)], state)
        ...     print(updates)
        [tensor(0.)]
        [tensor(-2.)]
    """
    checks.at_least('k value', k, 1)

    def init(params: Any) -> ApplyEvery:
        return ApplyEvery(zero_count(), elementwise.zero_moment(params))

    def prepare(state: ApplyEvery) -> elementwise.ElementwiseStep:
        place = state.count % k
        first, last = place == 0, place == k - 1
        if as_python_scalar(first) is not None and as_python_scalar(last) is not None:
            first, last = bool(first), bool(last)
        count = safe_increment(state.count) % k
        return elementwise.ElementwiseStep(
            partial(_gather, first=first, last=last), (state.grad_acc,), partial(ApplyEvery, count)
        )

    return ElementwiseTransformation(init, prepare, state_of(ApplyEvery))


def _gather(g: Tensor, total: Tensor, *, first: Any, last: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(first, Tensor):
        total = g.clone() if first else total + g  # a copy, since the caller may change the gradient in place
        return total.clone() if last else zeros_of(total), total
    total = torch.where(first.to(g.device), g, total + g)
    return torch.where(last.to(g.device), total, torch.zeros_like(total)), total
