# SPDX-License-Identifier: Apache-2.0
"""Scalars that a method estimates for all parameters together, and hyper-parameters that may be schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.dtypes import wide_dtype, widened
from torchopt.elementwise import ranges
from torchopt.numerics import as_scalar_like, tensor_like


def scalar_beside(params: Any, value: Any, which: str = 'lowest') -> Tensor:
    """A 0-d tensor for a state, in the lowest (or highest) dtype among the parameters, on the device of the first.

    The dtype is at least float32, since sums over many elements overflow in half precision.  On the device of the
    gradients, it needs no synchronization.
    """
    dtype = wide_dtype(tree.dtype(params, which))
    leaves = tree.leaves(params)
    device = leaves[0].device if leaves else torch.device('cpu')
    return tensor_like(value, torch.empty((), dtype=dtype, device=device))


def check_rate(rate: Any) -> None:
    """Require one learning rate for all parameters: a finite number >= 0, or a schedule."""
    if not checks.is_schedule(rate):
        checks.learning_rate('learning rate', rate)


def rate_at(rate: Any, count: Any) -> Any:
    """The value of a hyper-parameter that may be a schedule, at a step count.

    Raises:
        ValueError: If a schedule returns NaN or infinity.
    """
    return checks.schedule_value(rate(count), count) if checks.is_schedule(rate) else rate


def at_count(rate: Any) -> Callable[..., Any]:
    """The function of a state, and of parameters that it ignores, that returns :func:`rate_at` its count."""
    return lambda state, params=None: rate_at(rate, state.count)


def check_number_or_schedule(name: str, value: Any) -> None:
    """Require a number, a tree of numbers, or a schedule."""
    if not checks.is_schedule(value):
        ranges.number(name, value)


def real_part(x: Any, like: Tensor) -> Tensor:
    """The real part of an inner product as a scalar of the state."""
    x = torch.as_tensor(x)
    return as_scalar_like(x.real if x.is_complex() else x, like)


def inner(x: Any, y: Any, like: Tensor) -> Tensor:
    """The real part of the inner product of two trees, at least in float32, as a scalar of the state."""
    return real_part(tree.vdot(tree.map(widened, x), tree.map(widened, y)), like)
