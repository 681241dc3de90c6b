# SPDX-License-Identifier: Apache-2.0
r"""Map the rules of a chain to one kernel and the formula for its coefficients.

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

from torch import Tensor

from torchopt import rules

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
    is_affine = AFFINE.keys() >= set(functions)
    for i, function in enumerate(functions):
        names = rules.coefficients(function)
        taken = [f'k[{i}][{name!r}]' for name in names]
        if is_affine and function is rules.scale and i == len(functions) - 1:
            ends = after  # a last factor, such as a learning rate, is rounded together with the addition to parameters
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
