# SPDX-License-Identifier: Apache-2.0
"""The numbers that schedules compute with: their conversion and their checks.

Every formula is written once, with :mod:`torchopt.scalars`.  If the step count and all hyper-parameters are
available on the host, it runs on Python floats in double precision.  Otherwise (``torch.func.vmap``, compilation, a
count on another device, a learned hyper-parameter) it runs on float64 tensors, without a branch on their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from torchopt.kinds import described, kind_of
from torchopt.numerics import as_python_scalar
from torchopt.tree import as_text

Number: TypeAlias = float | torch.Tensor
"""The type of a hyper-parameter: a number or a 0-d tensor."""

Schedule: TypeAlias = Callable[[Any], Any]
"""The type of a schedule: a function from the step count to a value."""


class FunctionOfCount:
    """Base class of schedules; calculating with the schedule itself, as schedulers of ``torch.optim`` do, raises."""

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(
            f'{self!r} is a schedule, a function of the step count, not a number. A scheduler of torch.optim requires '
            f'a number as lr. To change a schedule, call it in a function: lambda count: 0.5 * schedule(count).'
        )

    __repr__ = as_text
    __float__ = __neg__ = __pow__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = _refuse
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse


def lift(*values: Any) -> list[Any]:
    """Convert numbers to Python floats if all are available on the host, else to float64 tensors.

    These are on the first of their devices that is not the CPU, and float32 if that device does not support float64.

    Raises:
        TypeError: If a value is neither a real number nor a real tensor.
    """
    numbers = [as_python_scalar(x) for x in values]
    if None not in numbers:
        return [float(x) for x in numbers if x is not None]
    for x in values:
        if isinstance(x, (str, bytes)) or not isinstance(x, _NUMERIC) or _is_complex(x):
            raise TypeError(
                f'A schedule was called with {x!r}; expected a step count: an int, or a tensor of a real dtype.'
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
        raise TypeError(f'Invalid {name}: {described(value)}; expected a real number or a 0-d tensor.')
    is_leaf = isinstance(value, torch.Tensor) and value.is_leaf
    number = as_python_scalar(value.detach() if is_leaf else value)
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


def scales_in_order(boundaries_and_scales: Any) -> list[tuple[Any, Any]]:
    """The boundaries of a piecewise schedule with their factors, a dict or None, in the order of the steps.

    Raises:
        TypeError: If it is not a dict, or an entry is not a number.
        ValueError: If a factor is negative.
    """
    if not isinstance(boundaries_and_scales, Mapping | None):
        raise TypeError(
            f'boundaries_and_scales is {kind_of(boundaries_and_scales)}; expected a dict from each boundary to '
            f'its factor, such as {{100: 0.5}}.'
        )
    pairs = sorted((boundaries_and_scales or {}).items())
    for boundary, factor in pairs:
        require_count('boundary', boundary)
        require_number(f'scale at boundary {boundary}', factor)
        if not isinstance(factor, torch.Tensor) and factor < 0:
            raise ValueError(f'Invalid scale at boundary {boundary}: {factor}; expected non-negative scale factors.')
    return pairs
