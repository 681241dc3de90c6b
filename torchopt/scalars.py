# SPDX-License-Identifier: Apache-2.0
"""The numbers of a line search: Python floats where that is all they are, 0-d tensors where more depends on them.

A search is a few comparisons between evaluations of the objective.  On the host they cost nothing, so a value that can
be read, and that needs no derivative, is read once.  Under ``torch.func.vmap``, under compilation, and where a
graph is recorded, the same formulas run on 0-d tensors.  ``+ - * / < abs & |`` serve both; the rest is here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.numerics import has_tangent, is_readable, is_transformed

__all__ = ['larger', 'negated', 'numbers', 'pick', 'root', 'smaller', 'violation', 'where']


def numbers(*values: Any) -> list[Any]:
    """Scalars as Python floats where they can be read and carry no graph, as 0-d tensors otherwise.

    Example:
        >>> import torch
        >>> from torchopt.scalars import numbers
        >>> numbers(torch.tensor(0.5), 2)
        [0.5, 2.0]
    """
    found: list[Any] = []
    waiting = []
    for x in values:
        if not isinstance(x, Tensor):
            found.append(float(x))
        elif not _is_plain(x):
            found.append(_widen(x.reshape(())))
        elif x.is_cpu:
            found.append(float(x))
        else:
            waiting.append(len(found))
            found.append(x.reshape(()))
    if waiting:
        # One wait for the device, not one for each.
        read = torch.stack([found[i].to(found[waiting[0]].device, torch.float64) for i in waiting]).tolist()
        for i, x in zip(waiting, read):
            found[i] = x
    return found


def _is_plain(x: Tensor) -> bool:
    return not (is_transformed(x) or x.requires_grad or has_tangent(x))


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) or not x.is_floating_point() else x


def where(test: Any, x: Any, y: Any) -> Any:
    """``x`` where the test holds, else ``y``; each a number, a bool or a tensor.

    Example:
        >>> import torch
        >>> from torchopt.scalars import where
        >>> where(True, 1.0, 2.0), where(torch.tensor(False), 1.0, torch.tensor(2.0))
        (1.0, tensor(2.))
    """
    if not isinstance(test, Tensor):
        return x if test else y
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        like = x if isinstance(x, Tensor) else y
        test = test.to(like.device)
        x, y = (z.to(like.device) if isinstance(z, Tensor) else z for z in (x, y))
        return torch.where(test, x, y)
    kind = torch.bool if isinstance(x, bool) else torch.int64 if isinstance(x, int) else torch.float64
    return torch.where(test, *(torch.full((), z, dtype=kind, device=test.device) for z in (x, y)))


def pick(test: Any, x: Any, y: Any) -> Any:
    """As :func:`where`, for trees; a test that can be read is, so that large leaves need not be copied.

    Example:
        >>> import torch
        >>> from torchopt.scalars import pick
        >>> pick(torch.tensor(True), {'w': 1.0}, {'w': 2.0})
        {'w': 1.0}
    """
    if is_readable(test):
        return x if test else y
    return tree.map(lambda a, b: a if a is b else where(test, a, b), x, y)


def larger(x: Any, y: Any) -> Any:
    """The larger of two numbers; NaN if one of them is.

    Example:
        >>> from torchopt.scalars import larger
        >>> larger(1.0, 2.0), larger(1.0, float('nan'))
        (2.0, nan)
    """
    return where((x > y) | (x != x), x, y)


def smaller(x: Any, y: Any) -> Any:
    """The smaller of two numbers; NaN if one of them is.

    Example:
        >>> from torchopt.scalars import smaller
        >>> smaller(1.0, 2.0)
        1.0
    """
    return where((x < y) | (x != x), x, y)


def negated(test: Any) -> Any:
    """The opposite of a bool, on the host or in a tensor.

    Example:
        >>> import torch
        >>> from torchopt.scalars import negated
        >>> negated(True), negated(torch.tensor(False))
        (False, tensor(True))
    """
    return ~test if isinstance(test, Tensor) else not test


def root(x: Any) -> Any:
    """The square root of a number that is positive.

    Example:
        >>> from torchopt.scalars import root
        >>> root(9.0)
        3.0
    """
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def violation(error: Any) -> Any:
    """By how much a condition ``error <= 0`` is violated: 0 if it holds, infinity if it is NaN.

    Example:
        >>> from torchopt.scalars import violation
        >>> violation(-1.0), violation(0.5), violation(float('nan'))
        (0.0, 0.5, inf)
    """
    return where(error != error, math.inf, where(error > 0.0, error, 0.0))
