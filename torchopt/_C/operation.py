# SPDX-License-Identifier: Apache-2.0
"""A computation of the engine as the arguments of an operation that a tracer records, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt import rules
from torchopt._C.call import Call, Column, Order
from torchopt._C.plans import find_plan

_NOT_WANTED = -2


def record(call: Call, coefs: Tensor | None, tensors: Column) -> tuple[Any, ...]:
    """The outputs of a call, column after column, None for unwanted ones; a tracer sees one operation."""
    outputs = [_NOT_WANTED if like is None else like for like in call.outputs]
    rows = None if call.rows is None else list(call.rows)
    values = None if call.coefs is None else list(call.coefs)
    names = ','.join(rule.__name__ for rule in call.plan.rules)
    found = iter(
        torch.ops.torchopt.kernel(
            names, call.plan.onto_params, int(call.order), call.leaves, outputs, values, rows, coefs, list(tensors)
        )
    )
    results = [next(found) if is_made else None for is_made in made(call, tensors)]
    return (*results, *found)  # at last the derivative with respect to the coefficients


def made(call: Call, tensors: Column) -> list[bool]:
    """For each output whether it is computed: a wanted one of a leaf that has any tensor."""
    present = [any(x is not None for x in tensors[i :: call.leaves]) for i in range(call.leaves)]
    return [wanted and some for wanted in call.wanted for some in present]


def call_of(
    names: str,
    onto_params: bool,
    order: int,
    leaves: int,
    outputs: Sequence[int],
    values: Sequence[float] | None,
    rows: Sequence[int] | None,
) -> Call:
    """The computation, from the arguments of the operation."""
    plan = find_plan(tuple(getattr(rules, name) for name in names.split(',')), onto_params)
    assert plan is not None
    likes = tuple(None if like == _NOT_WANTED else like for like in outputs)
    return Call(
        plan,
        Order(order),
        leaves,
        likes,
        None if values is None else tuple(values),
        None if rows is None else tuple(rows),
        reads_params=True,
    )
