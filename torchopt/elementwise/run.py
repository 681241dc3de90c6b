# SPDX-License-Identifier: Apache-2.0
"""Elementwise transformations in one pass: several rules are composed, and run over the leaves once.

An elementwise transformation is a *rule* on leaves and their moments.  A sequence of such transformations is again a
rule.  If the native engine supports it, it is one kernel call over the whole tree and one node of the graph.
Otherwise plain torch applies all rules to one leaf before it goes to the next leaf.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from torchopt._C import dispatch
from torchopt.elementwise.hyperparams import PerLeafRule, share_rows
from torchopt.elementwise.moments import (
    add_to_leaf,
    check_columns,
    check_updates,
    check_writable,
    keep_dtype,
    lay_into,
    move_columns,
)
from torchopt.graphs import as_non_leaf, carries_graph, detach_graph
from torchopt.levels import is_tracing, runs_directly
from torchopt.numerics import in_single
from torchopt.tree.ops import broadcast_prefix
from torchopt.tree.registry import TreeSpec, flatten, flatten_up_to, unflatten


class ElementwiseStep(NamedTuple):
    """One step of an elementwise transformation.

    Attributes:
        rule: Pure function of leaves, ``rule(g, *moments) -> (u, *moments)``, with the parameter as last argument
            if ``reads_params``.  A partial application of a function in :mod:`torchopt.rules` to its
            coefficients can run natively.  :class:`torchopt.elementwise.Hyperparams` builds rules for each leaf.
        moments: The trees that the rule updates.
        make_state: ``make_state(*moments)`` returns the next state.
        reads_params: Whether the rule reads the parameters.
        where: ``where(params)`` returns a tree of booleans, a prefix of the updates: whether the rule applies to the
            leaf; None applies it to all.  Only rules without moments can be skipped.
        native: None uses the native engine if it can run, False never; True raises if it cannot run.
    """

    rule: Callable[..., tuple[Any, ...]] | PerLeafRule
    moments: tuple[Any, ...]
    make_state: Callable[..., Any]
    reads_params: bool = False
    where: Callable[[Any], Any] | None = None
    native: bool | None = None


def run_steps(
    passes: Sequence[ElementwiseStep], updates: Any, params: Any, *, inplace: bool, onto_params: bool = False
) -> tuple[Any, tuple[Any, ...]]:
    """Run steps one after another, in one pass over the leaves.

    Args:
        passes: The steps.
        updates: Tree of tensors; leaves of None are skipped.
        params: Tree of the same structure, or None if no step reads it.
        inplace: Whether to write into the moments, and with ``onto_params`` into the parameters.
        onto_params: Whether to add the updates to the parameters.

    Returns:
        The updates, or the new parameters; and one state for each step.

    Raises:
        RuntimeError: If a step requires the native engine, and the engine cannot run.
    """
    if inplace and onto_params and type(updates) is list and type(params) is list:
        taken = _step_lists(passes, updates, params)
        if taken is not None:
            return params, taken
    leaves, spec = flatten(updates)
    partials: list[Any] = []
    active: list[Any] = []
    trees: list[Any] = []
    reads_params, per_leaf, native = onto_params, False, True
    for rule, moments, _, reads, where, wish in passes:
        partials.append(rule)
        trees += moments
        active.append(None if where is None else _flags(where(params), updates, spec))
        reads_params = reads_params or reads
        per_leaf = per_leaf or type(rule) is PerLeafRule
        native = native and wish is not False
    columns = [flatten_up_to(spec, m, name='state', like='updates') for m in trees]
    p = None
    if reads_params:
        p = flatten_up_to(spec, params, name='params', like='updates')
        if not (inplace or onto_params) and torch.is_grad_enabled():
            p = _constants_in_plain_training(passes, leaves, columns, p)
    rows = _rows(passes, active, updates, leaves, spec) if per_leaf else None
    if not native:
        moved: Any = dispatch.Unsupported('the native engine was switched off for it')
    elif rows is None and type(None) not in list(map(type, leaves)):  # `None in leaves` compares tensors by elements
        moved = dispatch.step(partials, active, leaves, columns, p, inplace=inplace, onto_params=onto_params)
    else:
        moved = _run_native(passes, active, rows, leaves, columns, p, inplace, onto_params)
    if isinstance(moved, dispatch.Unsupported):
        if any(step.native for step in passes) and not is_tracing():
            raise RuntimeError(
                f'use_accelerated_op=True, but the native engine cannot run this step: {moved.reason}. Omit the '
                f'option to run in plain torch if the engine cannot run.'
            )
        if params is not None and (inplace or onto_params):
            check_updates(updates, params, inplace=inplace and onto_params)
        if inplace:
            check_writable([x for column in columns for x in column])
        if onto_params and not inplace and p is not None:
            p = [x if g is None or g.requires_grad else as_non_leaf(x) for x, g in zip(p, leaves)]
        check_columns(updates, leaves, [*columns, *([] if p is None else [p])], len(columns))
        moved = _run_torch(passes, active, rows, leaves, columns, p, inplace)
        if onto_params and p is not None:
            moved[0] = [add_to_leaf(x, u, inplace=inplace) for x, u in zip(p, moved[0])]
    if inplace and onto_params and moved[0] is p:  # the engine has written into the leaves of these trees
        first, rest = params, trees
    else:
        first, *rest = [unflatten(spec, column) for column in moved]
    new = iter(rest)
    return first, tuple([step.make_state(*itertools.islice(new, len(step.moments))) for step in passes])


def _step_lists(passes: Sequence[ElementwiseStep], grads: list[Any], params: list[Any]) -> tuple[Any, ...] | None:
    """Take steps natively, in place, on lists of tensors.

    The steps of the optimizer classes come here: no tree is taken apart, and none is built.

    Returns:
        One state for each step; None if this is not possible, in which case nothing is changed.
    """
    partials: list[Any] = []
    moments: list[Any] = []
    for rule, own, _, _, where, native in passes:
        if where is not None or native is False:
            return None
        partials.append(rule)
        moments += own
    if not dispatch.step_in_place(partials, grads, moments, params):
        return None
    return tuple([step.make_state(*step.moments) for step in passes])


def _constants_in_plain_training(
    passes: Sequence[ElementwiseStep], leaves: list[Any], moments: list[list[Any]], p: list[Any]
) -> list[Any]:
    """Detach the parameters that rules read in plain training, so that the graph does not grow with the steps.

    This is decided once for each leaf.  A step is recorded if a parameter is not a leaf of autograd, or if a gradient,
    a moment or a hyper-parameter of any of the rules has a graph.
    """
    if not any(map(carries_graph, p)):
        return p
    coefficients = [x for step in passes for x in _coefficients(step.rule)]
    if not runs_directly() or any(map(carries_graph, coefficients)):
        return p
    return [
        detach_graph(x) if carries_graph(x) and x.is_leaf and not any(map(carries_graph, row)) else x
        for x, *row in zip(p, leaves, *moments)
    ]


def _coefficients(rule: Any) -> list[Any]:
    """The coefficients of a rule, if they are known."""
    if isinstance(rule, PerLeafRule):
        return rule.coefficients()
    return list(rule.keywords.values()) if isinstance(rule, functools.partial) else []


def _flags(where: Any, updates: Any, spec: TreeSpec) -> list[Any]:
    spread = broadcast_prefix(where, updates, name='mask', like='updates')
    return flatten_up_to(spec, spread, name='mask', like='updates')  # in the order of the updates


class _Rows(NamedTuple):
    """The rows of coefficients: the row of each leaf, and the hyper-parameters of each row."""

    number: int
    of_leaf: list[int]
    values: list[dict[str, list[Any]]]  # for each step, the value in each row of every hyper-parameter that is a tree


def _rows(
    passes: Sequence[ElementwiseStep], active: Sequence[Any], updates: Any, leaves: Sequence[Any], spec: TreeSpec
) -> _Rows | None:
    """The rows, or None if no hyper-parameter is a tree."""
    found = [step.rule.columns(updates, spec) if isinstance(step.rule, PerLeafRule) else {} for step in passes]
    if not any(found):
        return None
    columns = [index for own in found for _, index in own.values()]
    columns += [flags for flags in active if flags is not None]
    of_leaf, first = share_rows(columns, [g is not None for g in leaves])
    values = [{name: [xs[index[i]] for i in first] for name, (xs, index) in own.items()} for own in found]
    return _Rows(len(first), of_leaf, values)


def _run_native(
    passes: Sequence[ElementwiseStep],
    active: Sequence[Any],
    rows: _Rows | None,
    leaves: list[Any],
    moments: list[list[Any]],
    p: list[Any] | None,
    inplace: bool,
    onto_params: bool,
) -> list[Sequence[Any]] | dispatch.Unsupported:
    """Run all steps as one call of the native engine, or return the reason why it is impossible."""
    partials: Any = [step.rule for step in passes]
    if rows is not None:
        if is_tracing():
            return dispatch.Unsupported('a compiler is tracing, and fuses plain torch itself')
        partials = [rule.together(own) if own else rule for rule, own in zip(partials, rows.values)]
        if None in partials:
            return dispatch.Unsupported('a hyper-parameter has the shape of its parameter')
    present = [i for i, g in enumerate(leaves) if g is not None]

    def pick(column: Any) -> Any:
        return None if column is None else [column[i] for i in present]

    moved = dispatch.step(
        partials,
        [pick(flags) for flags in active],
        pick(leaves),
        [pick(m) for m in moments],
        pick(p),
        inplace=inplace,
        onto_params=onto_params,
        rows=None if rows is None else dispatch.Rows(rows.number, pick(rows.of_leaf)),
    )
    if isinstance(moved, dispatch.Unsupported):
        return moved
    # Leaves without a gradient do not change.
    whole = [list(p) if onto_params and p is not None else list(leaves), *map(list, moments)]
    for column, new in zip(whole, moved):
        for i, x in zip(present, new):
            column[i] = x
    return list(whole)


def _run_torch(
    passes: Sequence[ElementwiseStep],
    active: Sequence[Any],
    rows: _Rows | None,
    leaves: list[Any],
    moments: list[list[Any]],
    p: list[Any] | None,
    inplace: bool,
) -> list[Sequence[Any]]:
    """Run all steps leaf by leaf, in plain torch."""
    reads = [p] if any(step.reads_params for step in passes) and p is not None else []
    store = lay_into if inplace else keep_dtype
    if rows is None and all(flags is None for flags in active):
        rule: Any = passes[0].rule if len(passes) == 1 else _compose(passes)
        return move_columns(in_single(rule), leaves, [*moments, *reads], len(moments), store)
    own = zip(*(_of_leaves(i, step, active[i], rows, len(leaves)) for i, step in enumerate(passes)))
    rule = functools.partial(_compose(passes), chosen=True)
    return move_columns(in_single(rule), leaves, [*moments, *reads, list(own)], len(moments), store)


def _of_leaves(i: int, step: ElementwiseStep, flags: Any, rows: _Rows | None, leaves: int) -> list[Any]:
    """The rule of a step for each leaf; None if it does not apply."""
    if isinstance(step.rule, PerLeafRule) and rows is not None:
        made = step.rule.of_rows(rows.values[i])
        partials: list[Any] = [made[row] for row in rows.of_leaf]
    else:
        partials = [step.rule] * leaves
    return partials if flags is None else [rule if flag else None for rule, flag in zip(partials, flags)]


def _compose(passes: Sequence[ElementwiseStep]) -> Callable[..., tuple[Any, ...]]:
    plan, start = [], 0
    for p in passes:
        stop = start + len(p.moments)
        plan.append((start, stop, p.reads_params))
        start = stop
    shared: list[Any] = [p.rule for p in passes]

    def composed(g: Any, *columns: Any, chosen: bool = False) -> tuple[Any, ...]:
        partials, columns = (columns[-1], columns[:-1]) if chosen else (shared, columns)
        params = columns[-1] if columns else None
        moved: list[Any] = []
        for rule, (start, stop, reads_params) in zip(partials, plan):
            if rule is not None:
                own = columns[start:stop]
                g, *new = rule(g, *own, params) if reads_params else rule(g, *own)
                moved += new
        return (g, *moved)

    return composed
