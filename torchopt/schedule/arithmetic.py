# SPDX-License-Identifier: Apache-2.0
"""Arithmetic of schedules: every formula is written once, for Python floats and for tensors.

If the step count and all hyper-parameters are available on the host, a formula runs on Python floats
in double precision.  Otherwise (``torch.func.vmap``, compilation, a count on another device, a
learned hyper-parameter) it runs on float64 tensors, without a branch on their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from torchopt.numerics import as_python_scalar

__all__ = ['Number', 'Schedule', 'clip', 'cosine', 'floor', 'largest', 'lift', 'power']
__all__ += ['require_count', 'require_number', 'select', 'smallest']

Number: TypeAlias = float | torch.Tensor
"""The type of a hyper-parameter: a number or a 0-d tensor."""

Schedule: TypeAlias = Callable[[Any], Any]
"""The type of a schedule: a function from the step count to a value."""


def lift(*values: Any) -> list[Any]:
    """Convert numbers to Python floats if all are available on the host, else to float64 tensors.

    Args:
        *values: Numbers, tensors, and NumPy numbers or arrays.

    Returns:
        The values in the same order.  Tensors are on the first of their devices that is not the CPU, and
        float32 if that device does not support float64.

    Raises:
        TypeError: If a value is neither a real number nor a real tensor.
    """
    numbers = [as_python_scalar(x) for x in values]
    if None not in numbers:
        return [float(x) for x in numbers if x is not None]
    for x in values:
        if isinstance(x, (str, bytes)) or not isinstance(x, _NUMERIC) or _is_complex(x):
            raise TypeError(
                f'A schedule was called with {x!r}, a {type(x).__name__}; '
                f'expected a step count: an int, or a tensor of a real dtype.'
            )
    devices = [x.device for x in values if isinstance(x, torch.Tensor) and x.device.type != 'cpu']
    device = devices[0] if devices else torch.device('cpu')
    dtype = torch.float32 if device.type == 'mps' else torch.float64
    lifted: list[Any] = []
    for x, number in zip(values, numbers):
        if number is not None:
            # torch.full runs on the device; copying from the host would synchronize.
            lifted.append(torch.full((), number, dtype=dtype, device=device))
        else:
            lifted.append(torch.as_tensor(x).to(device=device, dtype=dtype))
    return lifted


_NUMERIC = (int, float, np.generic, np.ndarray, torch.Tensor)


def _is_complex(x: Any) -> bool:
    if isinstance(x, torch.Tensor):
        return x.is_complex()
    return isinstance(x, complex) or (isinstance(x, (np.generic, np.ndarray)) and x.dtype.kind == 'c')


def clip(x: Any, low: float, high: Any) -> Any:
    """``x`` clipped to the interval from ``low`` to ``high``."""
    if isinstance(x, torch.Tensor):
        return torch.minimum(torch.clamp(x, min=low), torch.as_tensor(high))
    return min(max(x, low), high)


def smallest(x: Any, y: Any) -> Any:
    """The smaller of two values."""
    return torch.minimum(x, y) if isinstance(x, torch.Tensor) else min(x, y)


def largest(x: Any, y: Any) -> Any:
    """The larger of two values."""
    return torch.maximum(x, y) if isinstance(x, torch.Tensor) else max(x, y)


def floor(x: Any) -> Any:
    """The largest integer that is at most ``x``."""
    return torch.floor(x) if isinstance(x, torch.Tensor) else float(math.floor(x))


def cosine(x: Any) -> Any:
    """The cosine."""
    return torch.cos(x) if isinstance(x, torch.Tensor) else math.cos(x)


def power(base: Any, exponent: Any) -> Any:
    """``base**exponent`` as in torch: overflow gives infinity, and a root that is not real gives NaN."""
    if isinstance(base, torch.Tensor):
        return torch.pow(base, exponent)
    try:
        result = base**exponent
    except (OverflowError, ZeroDivisionError):
        return math.inf
    return math.nan if isinstance(result, complex) else result


def select(condition: Any, x: Any, y: Any) -> Any:
    """``x`` if the condition holds, else ``y``."""
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, x, y)
    return x if condition else y


def require_number(name: str, value: Any) -> None:
    """Require a real number or a 0-d tensor; NaN raises if the value is available on the host.

    Raises:
        TypeError: If the value is not a number.
        ValueError: If it is NaN, or a tensor of several elements.
    """
    if isinstance(value, torch.Tensor) and value.dim() > 0:
        raise ValueError(f'Invalid {name}: a tensor of shape {tuple(value.shape)}; expected a number or a 0-d tensor.')
    known = isinstance(value, (int, float, np.integer, np.floating, torch.Tensor))
    if not known or isinstance(value, bool) or _is_complex(value):
        raise TypeError(
            f'Invalid {name}: {value!r} is a {type(value).__name__}; expected a real number or a 0-d tensor.'
        )
    number = as_python_scalar(value.detach() if _is_readable(value) else value)
    if number is not None and math.isnan(number):
        raise ValueError(f'Invalid {name}: {value}; expected a number that is not NaN.')


def require_count(name: str, value: Any) -> None:
    """Require a finite number of steps, not necessarily an integer.

    Raises:
        TypeError: If the value is not a number.
        ValueError: If it is NaN or infinite.
    """
    require_number(name, value)
    number = as_python_scalar(value)
    if number is not None and math.isinf(number):
        raise ValueError(f'Invalid {name}: {value}; expected a finite number of steps.')


def _is_readable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_leaf and not torch.compiler.is_compiling()
