# SPDX-License-Identifier: Apache-2.0
"""The ranges of hyper-parameters, each one value for all parameters or a tree of values."""

from __future__ import annotations

from typing import Any

from torchopt import checks, elementwise

__all__ = ['at_least_zero', 'decay_rate', 'decay_rates', 'learning_rate', 'number']


def at_least_zero(name: str, value: Any) -> None:
    """Require ``value >= 0``.

    Raises:
        ValueError: If a value is out of its range; the message names its path.
        TypeError: If it is not a number.
    """
    elementwise.check_each(checks.at_least, name, value)


def number(name: str, value: Any) -> None:
    """Require a number that is not NaN; the values of a tree may have the shapes of their parameters."""
    _check_elements(checks.number, name, value)


def decay_rate(name: str, value: Any) -> None:
    """Require ``0 <= value < 1``."""
    elementwise.check_each(checks.unit_interval, name, value)


def decay_rates(b1: Any, b2: Any) -> None:
    """Require two decay rates in [0, 1)."""
    decay_rate('beta parameter at index 0', b1)
    decay_rate('beta parameter at index 1', b2)


def learning_rate(lr: Any) -> None:
    """Require a schedule, or finite numbers >= 0; the values of a tree may have the shapes of their parameters."""
    if not checks.is_schedule(lr):
        _check_elements(checks.learning_rate, 'learning rate', lr)


def _check_elements(check: Any, name: str, value: Any) -> None:
    """As :func:`torchopt.elementwise.check_each`, with the extremes of a tensor for its elements."""

    def check_extremes(path: str, x: Any) -> None:
        if path != name and elementwise.has_shape(x):
            for extreme in x.detach().aminmax() if x.numel() else ():
                check(path, extreme)
        else:
            check(path, x)

    elementwise.check_each(check_extremes, name, value)
