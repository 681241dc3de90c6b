# SPDX-License-Identifier: Apache-2.0
"""What the engine computes: a step, or one of its derivatives, without the tensors."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from torchopt._C.plans import Plan

Column = Sequence[Any]
"""One tensor, or None, for each leaf."""


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """The result if the engine cannot run a step.  Nothing was changed.

    Attributes:
        reason: The reason, for an error message.
    """

    reason: str


class UnsupportedError(Exception):
    """The step itself, and not a derivative of it, cannot run natively."""

    def __init__(self, reason: Unsupported) -> None:
        super().__init__(reason.reason)
        self.reason = reason


class Order(enum.IntEnum):
    """Which derivative of a step; the numbers are those of ``include/torchopt/catalogue.hpp``."""

    FORWARD = 0
    VJP = 1
    VJP_WITH_COEFS = 2
    VJP_OF_VJP = 3
    JVP = 4


@dataclasses.dataclass(eq=False)
class Call:
    """A computation on tensors, which are passed separately.

    Attributes:
        plan: The rules of the step.
        order: The derivative of the step to compute.
        leaves: The number of leaves of the tree.
        outputs: For each output column, the index of the input with the same dtype, -1 for the widest dtype; None if
            it is not wanted.
        coefs: The coefficients, row after row; None if they are a tensor, which is then passed separately.
        rows: The row of coefficients of each leaf; None if there is one row.
        reads_params: Whether the rule depends on the values of the parameters, for example by weight decay before it.
    """

    plan: Plan
    order: Order
    leaves: int
    outputs: tuple[int | None, ...]
    coefs: tuple[float, ...] | None
    rows: tuple[int, ...] | None
    reads_params: bool

    @property
    def wanted(self) -> tuple[bool, ...]:
        """Whether to compute each output column."""
        return tuple(like is not None for like in self.outputs)

    @property
    def onto_params(self) -> bool:
        """Whether the first result is added to the parameters and has their dtype."""
        return self.plan.onto_params

    @property
    def inputs(self) -> int:
        """The number of input columns."""
        step, results = self.plan.moments + 2, self.plan.moments + 1
        if self.order == Order.FORWARD:
            return step
        if self.order == Order.JVP:
            return 2 * step
        return step + results + (step if self.order == Order.VJP_OF_VJP else 0)

    def derived(self, order: Order, wanted: Iterable[bool]) -> Call:
        """A derivative of this computation."""
        likes = self.plan.like if order in (Order.FORWARD, Order.JVP) else itertools.count()
        outputs = tuple(like if w else None for w, like in zip(wanted, likes))
        return Call(self.plan, order, self.leaves, outputs, self.coefs, self.rows, self.reads_params)

    def integrated(self) -> Call:
        """The computation of which this one is a derivative."""
        if self.order == Order.VJP_OF_VJP:
            return self.derived(Order.VJP, [True] * (self.plan.moments + 2))
        return self.derived(Order.FORWARD, [True] * (self.plan.moments + 1))

    def passes_params_through(self) -> bool:
        """Whether the step is ``p + u`` with an update that does not depend on ``p``."""
        if self.coefs is None or not self.onto_params or self.reads_params:
            return False
        return all(weight == 1.0 for weight in self.coefs[3 :: self.row_size])

    @property
    def row_size(self) -> int:
        """The number of coefficients of a row."""
        return self.plan.coefs

    def column(self, tensors: Column, i: int) -> Column:
        """Column ``i`` of the concatenated columns ``tensors``."""
        return tensors[i * self.leaves : (i + 1) * self.leaves]
