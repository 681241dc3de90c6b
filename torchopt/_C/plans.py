# SPDX-License-Identifier: Apache-2.0
r"""Map the rules of a chain to one kernel and its coefficients.

All operations before and after the main rule of an optimizer (sign flips, weight decay, the learning
rate, the addition to the parameters) are affine, so a whole step is
:math:`f \cdot \text{rule}(s\,g + \lambda\,p) + w\,p` with four additional numbers.  A factor between two rules is
possible if the second is momentum, which is linear in its input.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import rules
from torchopt.numerics import as_python_list, as_python_scalar, common_device, in_double

__all__ = ['AFFINE', 'KNOWN', 'Plan', 'coefficients', 'find_plan', 'set_kernels', 'resolve', 'resolve_vectors']

Rule = Callable[..., tuple[Any, ...]]


class Plan(NamedTuple):
    """The rules of a step, and the number of the kernel that computes them.

    Attributes:
        rules: Functions of :mod:`torchopt.rules`, one after another.
        kernel: The number of the kernel.
        moments: The total number of moments of the rules.
        coefs: The number of coefficients of a row.
    """

    rules: tuple[Rule, ...]
    kernel: int
    moments: int
    coefs: int


_numbers: dict[str, int] = {}


def set_kernels(names: Iterable[str]) -> None:
    """Set the names of the available kernels, in their order."""
    _numbers.clear()
    _numbers.update({name: i for i, name in enumerate(names)})
    find_plan.cache_clear()


AFFINE: dict[Callable[..., Any], float] = {rules.scale: 1.0, rules.add_params: 0.0}
"""The affine rules, and the coefficient with which each of them has no effect."""


KNOWN: frozenset[Callable[..., Any]] = frozenset({*rules.RULES, *AFFINE})
"""The functions of :mod:`torchopt.rules` with a native counterpart."""


@functools.lru_cache(maxsize=256)
def find_plan(partials: tuple[Rule, ...]) -> Plan | None:
    """The plan for rules that follow one another, or None if no kernel computes them."""
    proper = [i for i, rule in enumerate(partials) if rule not in AFFINE]
    for i, j in itertools.pairwise(proper):
        between = partials[i + 1 : j]
        if between and not (partials[j] is rules.trace and set(between) == {rules.scale}):
            return None  # an affine operation that the second rule cannot absorb
    chosen = tuple(partials[i] for i in proper) or (rules.identity,)
    kernel = _numbers.get('+'.join(rules.RULES[rule] for rule in chosen))
    if kernel is None:
        return None
    moments = sum(rules.count_moments(rule) for rule in chosen)
    return Plan(chosen, kernel, moments, 4 + sum(len(rules.coefficients(rule)) for rule in chosen))


def coefficients(partials: Sequence[functools.partial[Any]], active: Sequence[bool]) -> list[Any]:
    """The coefficients of one row: numbers and 0-d tensors, in the order of the kernel.

    For several rows, coefficients are vectors if those of the rules are.

    Args:
        partials: The rules with their own coefficients.
        active: For each rule whether it applies; only affine rules may be skipped.
    """
    before: list[Any] = [1.0, 0.0]
    after: list[Any] = [1.0, 0.0]
    own: list[Any] = []
    ends = before
    for rule, is_active in zip(partials, active):
        function = rule.func
        # Multiply coefficients in double precision, so that leaves in double precision get exact products.
        values = {name: value if type(value) is float else in_double(value) for name, value in rule.keywords.items()}
        if function is rules.scale:
            if is_active:
                _scale(ends, values['factor'])
        elif function is rules.add_params:
            if is_active:
                ends[1] = ends[1] + values['weight']
        elif function is rules.add_to_params:
            after[1] = after[1] + 1.0
        else:
            names = rules.coefficients(function)
            taken = {name: values[name] for name in names}
            if ends is after:  # a factor between two rules: momentum multiplies its gradient coefficients by it
                for name in ('take', 'gradient') if isinstance(after[0], Tensor) or after[0] != 1.0 else ():
                    taken[name] = taken[name] * after[0]
                after = ends = [1.0, 0.0]
            ends = after
            own += taken.values()
    return [*before, *after, *own]


def _scale(affine: list[Any], factor: Any) -> None:
    affine[0] = affine[0] * factor
    if isinstance(affine[1], Tensor) or affine[1]:
        affine[1] = affine[1] * factor


def resolve(rows: Sequence[Sequence[Any]], like: Any) -> tuple[tuple[float, ...] | None, Tensor | None]:
    """Rows of coefficients as floats if available on the host without synchronization, else as a differentiable tensor.

    Args:
        rows: The coefficients of each row.
        like: A leaf; the tensor is created on its device.
    """
    values = [c if type(c) is float else as_python_scalar(c) for row in rows for c in row]
    if None not in values:
        return tuple(map(float, values)), None  # type: ignore[arg-type]
    device = like.device if isinstance(like, Tensor) else None
    tensors = [
        c.reshape(()).to(device=device, dtype=torch.float64)
        if isinstance(c, Tensor)
        else torch.full((), c, dtype=torch.float64, device=device)  # unlike a copy, this does not synchronize
        for row in rows
        for c in row
    ]
    return None, torch.stack(tensors).reshape(len(rows), -1)


def resolve_vectors(entries: Sequence[Any], count: int, like: Any) -> tuple[tuple[float, ...] | None, Tensor | None]:
    """Like :func:`resolve`, for several rows at once: coefficients that differ between rows are vectors.

    Args:
        entries: The coefficients, numbers, 0-d tensors and vectors with an entry for each row.
        count: The number of rows.
        like: A leaf; the tensor is created on its device.
    """
    where: dict[str, Any] = {'device': common_device(entries), 'dtype': torch.float64}
    columns = [
        c.to(**where).expand(count) if isinstance(c, Tensor) else torch.full((count,), c, **where) for c in entries
    ]
    table = torch.stack(columns, 1)
    values = as_python_list(table.reshape(-1))
    return (None, table.to(device=getattr(like, 'device', None))) if values is None else (tuple(values), None)
