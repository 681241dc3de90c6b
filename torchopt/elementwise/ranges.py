# SPDX-License-Identifier: Apache-2.0
"""The ranges of hyper-parameters, each one value for all parameters or a tree of values."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from torchopt import checks, elementwise
from torchopt.dtypes import DTypeLike, as_dtype


def flag(name: str, value: Any) -> None:
    """Require True or False, so that a number or a dtype that is meant for another argument raises."""
    if not isinstance(value, bool):
        raise TypeError(
            f'Invalid {name}: {value!r}; expected True or False. The order of arguments differs from that of Optax: '
            f'pass keywords.'
        )


def at_least_zero(name: str, value: Any) -> None:
    """Require ``value >= 0``.

    Raises:
        ValueError: If a value is out of its range; the message names its path.
        TypeError: If it is not a number.
    """
    if type(value) is not float or not value >= 0.0:  # skip the checks below in the most frequent case
        elementwise.check_each(checks.at_least, name, value)


def number(name: str, value: Any) -> None:
    """Require a number that is not NaN; the values of a tree may have the shapes of their parameters."""
    _check_elements(checks.number, name, value)


def decay_rate(name: str, value: Any) -> None:
    """Require ``0 <= value < 1``."""
    elementwise.check_each(checks.unit_interval, name, value)


def decay_rates(b1: Any, b2: Any) -> None:
    """Require two decay rates in [0, 1)."""
    for i, rate in enumerate((b1, b2)):
        if type(rate) is not float or not 0.0 <= rate < 1.0:
            decay_rate(f'beta parameter at index {i}', rate)


def adam(b1: Any, b2: Any, eps: Any, eps_root: Any = 0.0) -> None:
    """Require the hyper-parameters of Adam and its relatives: decay rates in [0, 1), and numbers >= 0."""
    decay_rates(b1, b2)
    at_least_zero('epsilon value', eps)
    at_least_zero('eps_root value', eps_root)


def learning_rate(lr: Any) -> None:
    """Require a schedule, or finite numbers >= 0; the values of a tree may have the shapes of their parameters."""
    if type(lr) is float and 0.0 <= lr < math.inf:
        return
    if not checks.is_schedule(lr):
        _check_elements(checks.learning_rate, 'learning rate', lr)


def moment_dtype(dtype: DTypeLike | None, name: str = 'mu_dtype') -> torch.dtype | None:
    """Convert to a real floating dtype of torch, that of the real part for a complex dtype; None stays None.

    Moments of complex parameters stay complex: the dtype chooses their precision.

    Raises:
        TypeError: If ``dtype`` is anything else.
    """
    if dtype is None:
        return None
    with contextlib.suppress(TypeError):
        found = as_dtype(dtype)
        if found.is_floating_point or found.is_complex:
            return found.to_real()
    raise TypeError(
        f'Invalid {name} value: {dtype!r}; expected a floating dtype such as torch.bfloat16, or None for '
        f'that of the parameters.'
    )


def _check_elements(check: Any, name: str, value: Any) -> None:
    """Like :func:`torchopt.elementwise.check_each`; of a tensor, only the extreme elements are checked."""

    def check_extremes(path: str, x: Any) -> None:
        if path != name and elementwise.has_shape(x):
            for extreme in x.detach().aminmax() if x.numel() else ():
                check(path, extreme)
        else:
            check(path, x)

    elementwise.check_each(check_extremes, name, value)
