# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on scalars: Python floats if their values are known, else 0-d tensors.

Schedules, line searches and stopping rules compute with a few scalars, which is cheap on the host.  So a value that can
be read and needs no derivative is converted to a Python float once.  Under ``torch.func.vmap``, under compilation, and
if a graph is recorded, the same formulas run on 0-d tensors.  Solvers also use them with arrays that have a number for
each sample of a batch; see :mod:`torchopt.columns`.  ``+ - * / < abs & |`` work for all; here are the others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchopt import tree
from torchopt.columns import from_column
from torchopt.levels import has_tangent, is_readable, is_tracing, is_transformed, without_wrappers

__all__ = [
    'clip',
    'cosine',
    'floor',
    'is_symbolic',
    'larger',
    'negated',
    'numbers',
    'pick',
    'power',
    'root',
    'settled',
    'smaller',
    'violation',
    'where',
]


def numbers(*values: Any) -> list[Any]:
    """Scalars as Python floats if they can be read and have no graph, else as 0-d tensors.

    Example:
        >>> import torch
        >>> from torchopt.scalars import numbers
        >>> numbers(torch.tensor(0.5), 2)
        [0.5, 2.0]
    """
    found = list(values)
    waiting = []
    for i, x in enumerate(values):
        if type(x) is float:
            continue
        if not isinstance(x, Tensor):
            found[i] = x if isinstance(x, np.ndarray) else float(x)
        elif is_symbolic(x):
            found[i] = _widen(x.reshape(()))
        elif x.is_cpu:
            found[i] = float(x)
        else:
            waiting.append(i)
            found[i] = x.reshape(())
    if waiting:
        # Synchronize with the device only once.
        read = torch.stack([found[i].to(found[waiting[0]].device, torch.float64) for i in waiting]).tolist()
        for i, x in zip(waiting, read):
            found[i] = x
    return found


def is_symbolic(x: Tensor) -> bool:
    """Whether a transform, a graph or a compiler follows the tensor."""
    return x.requires_grad or is_transformed(x) or has_tangent(x)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) or not x.is_floating_point() else x


def where(test: Any, x: Any, y: Any) -> Any:
    """``x`` if the test holds, else ``y``; each is a number, a bool or a tensor.

    Example:
        >>> import torch
        >>> from torchopt.scalars import where
        >>> where(True, 1.0, 2.0), where(torch.tensor(False), 1.0, torch.tensor(2.0))
        (1.0, tensor(2.))
    """
    if test is True or test is False:
        return x if test else y
    if not isinstance(test, Tensor):
        return _where_of_batch(test, x, y) if isinstance(test, np.ndarray) else x if test else y
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        device = x.device if isinstance(x, Tensor) else y.device
        test, x, y = (z.to(device) if isinstance(z, Tensor) and z.device != device else z for z in (test, x, y))
        return torch.where(test, x, y)
    kind = {bool: torch.bool, int: torch.int64}.get(type(x), torch.float64) if type(x) is type(y) else torch.float64
    return torch.where(test, *(torch.full((), z, dtype=kind, device=test.device) for z in (x, y)))


def _where_of_batch(test: np.ndarray[Any, Any], x: Any, y: Any) -> Any:
    """:func:`where` with a test for each sample of a batch; ``x`` and ``y`` may have a row for each sample."""
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return torch.where(from_column(test), x, y)
    rows = max(getattr(x, 'ndim', 0), getattr(y, 'ndim', 0))
    return np.where(test if rows <= 1 else test.reshape(len(test), *(1,) * (rows - 1)), x, y)


def settled(test: Any) -> Any:
    """A test as a bool, if all samples of a batch agree on it and that can be read without synchronization.

    Example:
        >>> import torch
        >>> from torchopt.scalars import settled
        >>> torch.vmap(lambda x: x if settled(x > 0) is True else -x)(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if test is True or test is False:
        return test
    values: Any = test
    if not isinstance(test, np.ndarray):
        if not isinstance(test, Tensor) or is_tracing() or not test.is_cpu:
            return test
        values = without_wrappers(test)
    if bool(values.all()):
        return True
    return test if bool(values.any()) else False


def pick(test: Any, x: Any, y: Any) -> Any:
    """Like :func:`where` for trees; if all samples agree, no leaves are copied.

    Example:
        >>> import torch
        >>> from torchopt.scalars import pick
        >>> pick(torch.tensor(True), {'w': 1.0}, {'w': 2.0})
        {'w': 1.0}
    """
    test = settled(test)
    if is_readable(test) and not isinstance(test, np.ndarray):
        return x if test else y
    return tree.map(lambda a, b: a if a is b else where(test, a, b), x, y)


def larger(x: Any, y: Any) -> Any:
    """The larger of two numbers; NaN if one of them is NaN.

    Example:
        >>> from torchopt.scalars import larger
        >>> larger(1.0, 2.0), larger(1.0, float('nan'))
        (2.0, nan)
    """
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.maximum(x, y)
    return where((x > y) | (x != x), x, y)


def smaller(x: Any, y: Any) -> Any:
    """The smaller of two numbers; NaN if one of them is NaN."""
    if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
        return np.minimum(x, y)
    return where((x < y) | (x != x), x, y)


def negated(test: Any) -> Any:
    """The opposite of a bool, on the host or in a tensor."""
    return not test if test is True or test is False or not isinstance(test, (Tensor, np.ndarray)) else ~test


def root(x: Any) -> Any:
    """The square root of a positive number."""
    return x.sqrt() if isinstance(x, Tensor) else np.sqrt(x) if isinstance(x, np.ndarray) else math.sqrt(x)


def clip(x: Any, low: float, high: Any) -> Any:
    """``x``, brought into the interval from ``low`` to ``high``."""
    if isinstance(x, Tensor):
        return torch.minimum(torch.clamp(x, min=low), torch.as_tensor(high))
    return min(max(x, low), high)


def floor(x: Any) -> Any:
    """The largest whole number that is at most ``x``."""
    return torch.floor(x) if isinstance(x, Tensor) else float(math.floor(x))


def cosine(x: Any) -> Any:
    """The cosine."""
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def power(base: Any, exponent: Any) -> Any:
    """``base**exponent`` in floating-point arithmetic: overflow gives infinity, a root of a negative number NaN.

    Example:
        >>> from torchopt.scalars import power
        >>> power(2.0, 0.5 + 0.5), power(0.0, -1.0)
        (2.0, inf)
    """
    if isinstance(base, Tensor):
        return torch.pow(base, exponent)
    try:
        result = base**exponent
    except (OverflowError, ZeroDivisionError):
        return math.inf
    return math.nan if isinstance(result, complex) else result


def violation(error: Any) -> Any:
    """By how much a condition ``error <= 0`` is violated: 0 if it holds, infinity if it is NaN.

    Example:
        >>> from torchopt.scalars import violation
        >>> violation(-1.0), violation(0.5), violation(float('nan'))
        (0.0, 0.5, inf)
    """
    return where(error != error, math.inf, where(error > 0.0, error, 0.0))
