# SPDX-License-Identifier: Apache-2.0
"""Checks of hyper-parameters, whose errors name the argument, its value, and the allowed range.

Tensors are accepted wherever numbers are.  The value of a tensor with a graph, or on another device, is not checked.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from typing import Any

import torch

from torchopt.kinds import described, kind_of
from torchopt.levels import is_tracing, without_wrappers
from torchopt.numerics import as_python_scalar

__all__ = [
    'at_least',
    'deprecated',
    'function',
    'integer',
    'is_schedule',
    'learning_rate',
    'linear_solver',
    'nonzero',
    'number',
    'pair',
    'perturbation',
    'positive',
    'scalar',
    'schedule',
    'schedule_value',
    'unit_interval',
    'warn',
]


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn, with the location of the line of the user's program; not while compiling."""
    if is_tracing():
        return
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


_LIBRARIES = tuple(os.path.dirname(file) + os.sep for file in (torch.__file__, __file__))


def deprecated(message: str) -> None:
    """Warn of a deprecated name."""
    warn(message, DeprecationWarning)


def pair(name: str, value: Any) -> tuple[Any, Any]:
    """The two entries of an argument such as ``betas``."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f'Invalid {name}: {value!r}; expected a pair of numbers, such as (0.9, 0.999).') from None
    return first, second


def _number(name: str, value: Any) -> float | None:
    """The value as a number, or None if it cannot be read; raise a TypeError if it is not a scalar."""
    if isinstance(value, torch.Tensor):
        if value.dim() > 0 and value.numel() != 1:
            raise ValueError(
                f'Invalid {name}: a tensor of shape {tuple(value.shape)}; expected a number or a 0-d tensor.'
            )
        return as_python_scalar(value.detach()) if value.is_leaf else None
    try:
        if isinstance(value, (str, bytes, bool)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        hint = ''
        if is_schedule(value):
            hint = (
                ' A schedule is passed alone, as the learning rate. For groups with schedules of their own use '
                'torchopt.transform.partition, for other arguments torchopt.schedule.inject_hyperparams.'
            )
        raise TypeError(f'Invalid {name}: {described(value)}; expected a number or a 0-d tensor.{hint}') from None


def scalar(name: str, value: Any) -> None:
    """Require a scalar."""
    _number(name, value)


def number(name: str, value: Any) -> None:
    """Require a scalar that is not NaN."""
    known = _number(name, value)
    if known is not None and math.isnan(known):
        raise ValueError(f'Invalid {name}: {value}; expected a number.')


def nonzero(value: Any) -> bool:
    """Whether a hyper-parameter can be nonzero; a tensor always can, since it may change."""
    return isinstance(value, torch.Tensor) or value != 0


def is_schedule(value: Any) -> bool:
    """Whether a hyper-parameter is a function of the count."""
    # Modules and classes can be called, but not with a count.  Dynamo does not know whether dicts can be called.
    return not isinstance(value, (torch.Tensor, dict, list, tuple, torch.nn.Module, type)) and callable(value)


def at_least(name: str, value: Any, low: float = 0.0) -> None:
    """Require ``value >= low``, which excludes NaN."""
    number = _number(name, value)
    if number is not None and not number >= low:
        raise ValueError(f'Invalid {name}: {value}; expected a number >= {low:g}.')


def integer(name: str, value: Any, low: int, *, optional: bool = False) -> None:
    """Require an int ``>= low``, or None if ``optional``."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f'Invalid {name}: {value!r}; expected {"None or " if optional else ""}an int >= {low}.')


def positive(name: str, value: Any) -> None:
    """Require ``value > 0``."""
    number = _number(name, value)
    if number is not None and not number > 0:
        raise ValueError(f'Invalid {name}: {value}; expected a number > 0.')


def unit_interval(name: str, value: Any) -> None:
    """Require ``0 <= value < 1``, the range of decay rates."""
    number = _number(name, value)
    if number is not None and not 0.0 <= number < 1.0:
        raise ValueError(f'Invalid {name}: {value}; expected a number in [0, 1).')


def learning_rate(name: str, lr: Any) -> None:
    """Require a finite number >= 0."""
    at_least(name, lr)
    number = _number(name, lr)
    if number is not None and math.isinf(number):
        raise ValueError(f'Invalid {name}: {lr}; expected a finite number >= 0.')


def function(name: str, value: Any, remedy: str = '') -> None:
    """Require something that can be called."""
    if not callable(value):
        raise TypeError(f'Invalid {name}: {kind_of(value)}; expected a function. {remedy}'.rstrip())


def linear_solver(name: str, value: Any) -> None:
    """Require None, or a function that solves linear systems."""
    if value is not None:
        function(name, value, 'Pass None, or a function solve(matvec, b) such as torchopt.linear_solve.solve_cg.')


def perturbation(name: str, scale: float, x: torch.Tensor, *, synchronize: bool = False) -> None:
    """Warn if ``x + scale * z`` with :math:`z` of order one is ``x``, after rounding, for the largest element of ``x``.

    Args:
        name: The name of the scale.
        scale: The scale.
        x: The tensor that is perturbed, of a floating or complex dtype.
        synchronize: Whether to read values from a device other than the CPU.
    """
    if x.numel() == 0 or is_tracing():
        return
    largest = without_wrappers(torch.linalg.vector_norm(without_wrappers(x).detach(), math.inf))
    value = largest.item() if synchronize else as_python_scalar(largest)
    if value is not None and scale <= torch.finfo(x.dtype).eps * value:
        warn(
            f'{name}={scale:g} is lost to rounding: some elements of a perturbed tensor are so large that adding it '
            f'does not change them in {x.dtype}, and their derivative is wrong. Pass a larger {name}, scale the '
            f'tensor down, or use torch.float64.'
        )


def schedule(name: str, value: Any) -> None:
    """Require a schedule."""
    if not is_schedule(value):
        raise TypeError(
            f'Invalid {name}: {described(value)}; expected a function from the step count to a '
            f'number. For a constant use torchopt.transform.scale.'
        )


def schedule_value(value: Any, count: Any) -> Any:
    """Require that the value of a schedule is finite, and return it."""
    number = _number('value of a schedule', value)
    if number is not None and not math.isfinite(number):
        raise ValueError(
            f'The schedule returned {number} at step {int(count)}; expected a finite number. Nothing was updated.'
        )
    return value
