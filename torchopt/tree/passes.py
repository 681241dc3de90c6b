# SPDX-License-Identifier: Apache-2.0
"""Elementwise transformations in one pass: several rules composed, and run over the leaves once.

A transformation that treats every element by itself is a *rule* on leaves with some moments.  A run of such
transformations is a rule again: each leaf goes through all of them before the next leaf is looked at, and what lies
between two rules never exists for the whole tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torchopt.tree.moments import apply_rule

__all__ = ['Pass', 'run_passes']


class Pass(NamedTuple):
    """One step of an elementwise transformation, ready to go over the leaves.

    Attributes:
        rule: Pure function of leaves, ``rule(g, *moments) -> (u, *moments)``, with the parameter as last argument
            where it reads it.
        moments: The trees that the rule moves on.
        settle: ``settle(*moments)`` makes the next state.
        reads_params: Whether the rule reads the parameters.
    """

    rule: Callable[..., tuple[Any, ...]]
    moments: tuple[Any, ...]
    settle: Callable[..., Any]
    reads_params: bool = False


def run_passes(passes: Sequence[Pass], updates: Any, params: Any, *, inplace: bool) -> tuple[Any, tuple[Any, ...]]:
    """Run steps one after another, in one pass over the leaves.

    Returns:
        The updates, and one state for each step.
    """
    reads = (params,) if any(p.reads_params for p in passes) else ()
    moments = [m for p in passes for m in p.moments]
    rule = passes[0].rule if len(passes) == 1 else _compose(passes)
    updates, *moved = apply_rule(rule, updates, *moments, reads=reads, inplace=inplace)
    rest = iter(moved)
    return updates, tuple(p.settle(*[next(rest) for _ in p.moments]) for p in passes)


def _compose(passes: Sequence[Pass]) -> Callable[..., tuple[Any, ...]]:
    plan, start = [], 0
    for p in passes:
        stop = start + len(p.moments)
        plan.append((p.rule, start, stop, p.reads_params))
        start = stop

    def composed(g: Any, *columns: Any) -> tuple[Any, ...]:
        moved: list[Any] = []
        for rule, start, stop, reads_params in plan:
            own = columns[start:stop]
            g, *new = rule(g, *own, columns[-1]) if reads_params else rule(g, *own)
            moved += new
        return (g, *moved)

    return composed
