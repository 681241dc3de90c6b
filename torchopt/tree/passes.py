# SPDX-License-Identifier: Apache-2.0
"""Elementwise transformations in one pass: several rules composed, and run over the leaves once.

A transformation that treats every element by itself is a *rule* on leaves with some moments.  A run of such
transformations is a rule again.  Where the native engine knows it, it is one kernel call over the whole tree and
one node of the graph; elsewhere each leaf goes through all rules before the next leaf is looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torchopt._C import dispatch
from torchopt.numerics import off_leaf
from torchopt.tree.moments import add_to_leaf, check_columns, check_updates, check_writable, move_columns
from torchopt.tree.ops import broadcast_prefix
from torchopt.tree.registry import TreeSpec, flatten, flatten_up_to, unflatten

__all__ = ['Pass', 'run_passes']


class Pass(NamedTuple):
    """One step of an elementwise transformation, ready to go over the leaves.

    Attributes:
        rule: Pure function of leaves, ``rule(g, *moments) -> (u, *moments)``, with the parameter as last argument
            where it reads it.  A partial application of a function in :mod:`torchopt._C.reference` to its
            coefficients can run natively.
        moments: The trees that the rule moves on.
        settle: ``settle(*moments)`` makes the next state.
        reads_params: Whether the rule reads the parameters.
        where: ``where(params)`` makes a tree of booleans, a prefix of the updates, that says where the rule applies;
            None means everywhere.  Only rules without moments can be left out.
        native: None uses the native engine where it can run, False never; True refuses to run elsewhere.
    """

    rule: Callable[..., tuple[Any, ...]]
    moments: tuple[Any, ...]
    settle: Callable[..., Any]
    reads_params: bool = False
    where: Callable[[Any], Any] | None = None
    native: bool | None = None


def run_passes(
    passes: Sequence[Pass], updates: Any, params: Any, *, inplace: bool, onto_params: bool = False
) -> tuple[Any, tuple[Any, ...]]:
    """Run steps one after another, in one pass over the leaves.

    Args:
        passes: The steps.
        updates: Tree of tensors; None leaves are left alone.
        params: Tree of the same structure, or None where no step reads it.
        inplace: Write into the moments, and into the parameters with ``onto_params``.
        onto_params: Add the updates to the parameters.

    Returns:
        The updates, or the new parameters; and one state for each step.

    Raises:
        RuntimeError: If a step asks for the native engine, and that cannot run.
    """
    leaves, spec = flatten(updates)
    moments = [flatten_up_to(spec, m, name='state', like='updates') for p in passes for m in p.moments]
    p = None
    if onto_params or any(step.reads_params for step in passes):
        p = flatten_up_to(spec, params, name='params', like='updates')
    active = [None if step.where is None else _flags(step.where(params), updates, spec) for step in passes]
    moved = _natively(passes, active, leaves, moments, p, inplace, onto_params)
    if isinstance(moved, str):
        if any(step.native for step in passes) and not torch.compiler.is_compiling():
            raise RuntimeError(
                f'use_accelerated_op=True, but the native engine cannot take this step: {moved}. Leave it out to run '
                f'in plain torch where the engine cannot run.'
            )
        if params is not None and (inplace or onto_params):
            check_updates(updates, params)
        if inplace:
            check_writable([x for column in [*moments, *([p or ()] if onto_params else ())] for x in column])
        if onto_params and not inplace and p is not None:
            p = [off_leaf(x, g) for x, g in zip(p, leaves)]
        check_columns(updates, leaves, [*moments, *([] if p is None else [p])], len(moments))
        moved = _plainly(passes, active, leaves, moments, p, inplace)
        if onto_params and p is not None:
            moved[0] = [add_to_leaf(x, u, inplace=inplace) for x, u in zip(p, moved[0])]
    first, *rest = (unflatten(spec, column) for column in moved)
    supply = iter(rest)
    return first, tuple(step.settle(*[next(supply) for _ in step.moments]) for step in passes)


def _flags(where: Any, updates: Any, spec: TreeSpec) -> list[Any]:
    spread = broadcast_prefix(where, updates, name='mask', like='updates')
    return flatten_up_to(spec, spread, name='mask', like='updates')  # in the order of the updates


def _natively(
    passes: Sequence[Pass],
    active: Sequence[Any],
    leaves: list[Any],
    moments: list[list[Any]],
    p: list[Any] | None,
    inplace: bool,
    onto_params: bool,
) -> list[Sequence[Any]] | str:
    """All steps as one call of the native engine, or the reason why not."""
    if any(step.native is False for step in passes):
        return 'the native engine was switched off for it'
    rules = [step.rule for step in passes]
    if all(g is not None for g in leaves):  # `None in leaves` would compare tensors by their elements
        return dispatch.step(rules, active, leaves, moments, p, inplace=inplace, onto_params=onto_params)
    present = [i for i, g in enumerate(leaves) if g is not None]

    def pick(column: Any) -> Any:
        return None if column is None else [column[i] for i in present]

    moved = dispatch.step(
        rules,
        [pick(flags) for flags in active],
        pick(leaves),
        [pick(m) for m in moments],
        pick(p),
        inplace=inplace,
        onto_params=onto_params,
    )
    if isinstance(moved, str):
        return moved
    # Where there is no gradient, everything stays as it was.
    whole = [list(p) if onto_params and p is not None else list(leaves), *map(list, moments)]
    for column, new in zip(whole, moved):
        for i, x in zip(present, new):
            column[i] = x
    return list(whole)


def _plainly(
    passes: Sequence[Pass],
    active: Sequence[Any],
    leaves: list[Any],
    moments: list[list[Any]],
    p: list[Any] | None,
    inplace: bool,
) -> list[Sequence[Any]]:
    """All steps leaf by leaf, in plain torch."""
    reads = [p] if any(step.reads_params for step in passes) and p is not None else []
    if len(passes) == 1 and active[0] is None:
        return move_columns(passes[0].rule, leaves, [*moments, *reads], len(moments), inplace=inplace)
    if all(flags is None for flags in active):
        return move_columns(_compose(passes), leaves, [*moments, *reads], len(moments), inplace=inplace)
    flags = [list(row) for row in zip(*([True] * len(leaves) if f is None else f for f in active))]
    rule = functools.partial(_compose(passes), chosen=True)
    return move_columns(rule, leaves, [*moments, *reads, flags], len(moments), inplace=inplace)


def _compose(passes: Sequence[Pass]) -> Callable[..., tuple[Any, ...]]:
    plan, start = [], 0
    for p in passes:
        stop = start + len(p.moments)
        plan.append((p.rule, start, stop, p.reads_params))
        start = stop

    def composed(g: Any, *columns: Any, chosen: bool = False) -> tuple[Any, ...]:
        flags = columns[-1] if chosen else None
        params = columns[-2 if chosen else -1] if columns else None
        moved: list[Any] = []
        for i, (rule, start, stop, reads_params) in enumerate(plan):
            if flags is not None and not flags[i]:
                continue
            own = columns[start:stop]
            g, *new = rule(g, *own, params) if reads_params else rule(g, *own)
            moved += new
        return (g, *moved)

    return composed
