# SPDX-License-Identifier: Apache-2.0
"""Elementwise transformations whose state is a step count and moments, such as Adam and its relatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torchopt import elementwise
from torchopt.base import ElementwiseTransformation
from torchopt.numerics import advance, zero_count
from torchopt.preconditions import state_of


def counted(
    kind: Any, moments: Callable[[Any], Sequence[Any]], hypers: elementwise.Hyperparams, *common: Any
) -> ElementwiseTransformation:
    """An elementwise transformation whose state is ``kind(count, *moments)``, at first with ``moments(params)``.

    The rule of step :math:`t` is ``hypers.rule(t, *common)``.
    """

    def init(params: Any) -> Any:
        return kind(zero_count(), *moments(params))

    def prepare(state: Any) -> elementwise.ElementwiseStep:
        count, t = advance(state.count)
        return elementwise.ElementwiseStep(hypers.rule(t, *common), tuple(state[1:]), partial(kind, count))

    return ElementwiseTransformation(init, prepare, state_of(kind), hypers=hypers)


def two_moments(params: Any, *, requires_grad: bool = False) -> tuple[Any, Any]:
    """Zeros for the mean of the gradients, and for their mean square, which is real."""
    zeros = partial(elementwise.zero_moment, params, requires_grad=requires_grad)
    return zeros(), zeros(real=True)
