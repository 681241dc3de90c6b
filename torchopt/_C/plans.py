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
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import rules
from torchopt.numerics import as_python_list, as_python_scalar, common_device, in_double

__all__ = [
    'AFFINE',
    'KNOWN',
    'Plan',
    'coefficients',
    'find_plan',
    'plan_of',
    'resolve',
    'resolve_vectors',
    'set_kernels',
]

Rule = Callable[..., tuple[Any, ...]]


class Plan(NamedTuple):
    """All that is known about a step before its tensors and coefficients are.

    Attributes:
        rules: Functions of :mod:`torchopt.rules`, one after another.
        kernel: The number of the kernel that computes them.
        moments: The total number of moments of the rules.
        coefs: The number of coefficients of a row.
        onto_params: Whether the update is added to the parameters.
        row: ``row(keywords)`` returns the coefficients in the order of the kernel, given those of each rule.
        like: For each result, the index of the input with the same dtype; -1 for the widest dtype.
    """

    rules: tuple[Rule, ...]
    kernel: int
    moments: int
    coefs: int
    onto_params: bool
    row: Callable[[Sequence[dict[str, Any]]], tuple[Any, ...]]
    like: tuple[int, ...]

    def constants(self, partials: Sequence[functools.partial[Any]]) -> tuple[float, ...] | None:
        """The coefficients of a step with one row, if those of all rules are floats; else None."""
        found = self.row(list(map(_keywords, partials)))
        return found if _FLOAT.issuperset(map(type, found)) else None


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

_PARTIAL = frozenset({functools.partial})
_FLOAT = frozenset({float})
_function, _arguments, _keywords = map(operator.attrgetter, ('func', 'args', 'keywords'))


def plan_of(partials: Sequence[Any], onto_params: bool) -> Plan | None:
    """The plan for rules with their coefficients, or None if no kernel computes them."""
    if not _PARTIAL.issuperset(map(type, partials)) or any(map(_arguments, partials)):
        return None
    functions = tuple(map(_function, partials))
    try:  # only known rules enter the cache of plans, since it would keep user-defined rules alive
        known = KNOWN.issuperset(functions)
    except TypeError:  # a function that has no hash
        return None
    return find_plan(functions, onto_params) if known else None


@functools.lru_cache(maxsize=256)
def find_plan(functions: tuple[Rule, ...], onto_params: bool = False) -> Plan | None:
    """The plan for rules that follow one another, or None if no kernel computes them."""
    proper = [i for i, rule in enumerate(functions) if rule not in AFFINE]
    for i, j in itertools.pairwise(proper):
        between = functions[i + 1 : j]
        if between and not (functions[j] is rules.trace and set(between) == {rules.scale}):
            return None  # an affine operation that the second rule cannot absorb
    chosen = tuple(functions[i] for i in proper) or (rules.identity,)
    kernel = _numbers.get('+'.join(rules.RULES[rule] for rule in chosen))
    if kernel is None:
        return None
    moments = sum(rules.count_moments(rule) for rule in chosen)
    formula = _formula(functions, onto_params)
    # Compiled, since it is computed in every step.
    row = eval(f'lambda k: ({", ".join(formula)})', {'scaled': _scaled})
    like = (moments + 1 if onto_params else -1, *range(1, moments + 1))
    return Plan(chosen, kernel, moments, len(formula), onto_params, row, like)


def _formula(functions: Sequence[Rule], onto_params: bool) -> list[str]:
    """The coefficients of the kernel as Python expressions of those of the rules, ``k[0]``, ``k[1]``, ..."""
    before, after = ['1.0', '0.0'], ['1.0', '0.0']
    own: list[str] = []
    ends = before
    for i, function in enumerate(functions):
        names = rules.coefficients(function)
        taken = [f'k[{i}][{name!r}]' for name in names]
        if function is rules.scale:
            ends[0] = _times(ends[0], taken[0])
            ends[1] = '0.0' if ends[1] == '0.0' else f'scaled({ends[1]}, {taken[0]})'
        elif function is rules.add_params:
            ends[1] = taken[0] if ends[1] == '0.0' else f'{ends[1]} + {taken[0]}'
        else:
            if ends is after:  # a factor between two rules: momentum multiplies its gradient coefficients by it
                factors = [after[0] if name in ('take', 'gradient') else '1.0' for name in names]
                taken = list(map(_times, taken, factors))
                after = ['1.0', '0.0']
            ends = after
            own += taken
    if onto_params:
        after[1] = f'{after[1]} + 1.0'
    return [*before, *after, *own]


def _times(x: str, y: str) -> str:
    return y if x == '1.0' else x if y == '1.0' else f'{x} * {y}'


def _scaled(weight: Any, factor: Any) -> Any:
    """``weight * factor``; the number zero stays zero."""
    return weight * factor if isinstance(weight, Tensor) or weight else weight


def coefficients(plan: Plan, partials: Sequence[functools.partial[Any]], active: Sequence[bool]) -> tuple[Any, ...]:
    """The coefficients of one row: numbers and 0-d tensors, in the order of the kernel.

    They are multiplied in double precision, so that leaves in double precision get exact products.  For several rows,
    coefficients are vectors if those of the rules are.

    Args:
        plan: The plan for these rules.
        partials: The rules with their own coefficients.
        active: For each rule whether it applies; only affine rules may be skipped.
    """
    return plan.row(
        [
            {name: in_double(value) if applies else AFFINE[rule.func] for name, value in rule.keywords.items()}
            for rule, applies in zip(partials, active)
        ]
    )


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
