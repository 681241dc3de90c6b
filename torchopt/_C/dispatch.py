# SPDX-License-Identifier: Apache-2.0
"""Decide which steps the native engine runs, and how."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt._C import fused, plans
from torchopt._C.call import Call, Column, Order, Unsupported, UnsupportedError
from torchopt.levels import in_transform, is_tracked
from torchopt.numerics import common_device, vector

__all__ = ['Rows', 'Unsupported', 'step', 'step_in_place']

_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_TENSORS = frozenset({Tensor, torch.nn.Parameter})


class Rows(NamedTuple):
    """Coefficients that differ between leaves: vectors in the rules, with an entry for each row.

    Attributes:
        number: The number of rows.
        of_leaf: The row of each leaf; the same rules apply to all leaves of a row.
    """

    number: int
    of_leaf: Sequence[int]


def step(
    partials: Sequence[Callable[..., Any]],
    active: Sequence[Column | None],
    g: Column,
    moments: Sequence[Column],
    p: Column | None,
    *,
    inplace: bool,
    onto_params: bool,
    rows: Rows | None = None,
) -> list[Column] | Unsupported:
    """Run a step on the native engine, if possible.

    Args:
        partials: The rules that follow one another, partial applications of functions in
            :mod:`torchopt.rules` to their coefficients.
        active: For each rule, whether it applies to each leaf; None if it applies to all.
        g: The gradients.
        moments: The columns of moments that the rules update.
        p: The parameters, if they are read or updated.
        inplace: Whether to write into the moments, and the parameters with ``onto_params``.
        onto_params: Whether to return the new parameters instead of the updates.
        rows: The rows of coefficients, if these are vectors.

    Returns:
        The updates or the parameters, and the moments; or the reason why the engine cannot run this step, in which
        case nothing is changed.
    """
    if torch.compiler.is_compiling():
        return Unsupported('a compiler is tracing, and fuses plain torch by itself')
    if _is_intercepted():
        return Unsupported('a dispatch mode or a tracer must intercept every torch operation')
    plan = plans.plan_of(partials, onto_params)
    if plan is None:
        return Unsupported('there is no kernel for these transformations')
    count = len(g)
    if not count:
        return [[], *([] for _ in moments)]
    tensors = [*g, *itertools.chain.from_iterable(moments), *(p or ())]
    if not _TENSORS.issuperset(map(type, tensors)):
        return Unsupported('a tensor is missing, or of a subclass of torch.Tensor')
    coefs = numbers = None
    values = plan.constants(partials) if rows is None and not any(active) else None  # type: ignore[arg-type]
    if values is None:
        values, coefs, numbers = _coefficients(plan, partials, active, rows, g)  # type: ignore[arg-type]
    if not inplace:
        into: Sequence[Any] = plan.like
        if is_tracked(tensors if coefs is None else [coefs, *tensors]):
            call = Call(plan, Order.FORWARD, count, (True,) * len(into), values, numbers)
            return _apply(call, coefs, tensors if p else [*tensors, *itertools.repeat(None, count)])
    elif in_transform() or forward_ad._current_level >= 0:
        return Unsupported('a step in place cannot be transformed')
    else:
        into = [p, *moments] if onto_params else [-1, *moments]
    known = coefs.detach() if values is None else values  # type: ignore[union-attr]
    results = fused.launch(plan, Order.FORWARD, known, numbers, [g, *moments, p], into, in_place=inplace)
    return results if isinstance(results, Unsupported) else list(results[0])


def step_in_place(partials: Sequence[Any], g: list[Any], moments: Sequence[Any], p: list[Any]) -> bool:
    """Take a step of plain training natively: all rules apply to all leaves, and write into parameters and moments.

    Args:
        partials: The rules, as for :func:`step`.
        g: The gradients.
        moments: The moments.  Other things than lists of one length are refused.
        p: The parameters.

    Returns:
        Whether the step was taken.  If not, nothing is changed, and :func:`step` says why or can take the step.
    """
    if torch.compiler.is_compiling() or _is_intercepted() or forward_ad._current_level >= 0 or in_transform():
        return False
    plan = plans.plan_of(partials, True)
    if plan is None or (values := plan.constants(partials)) is None:
        return False
    columns = [g, *moments, p]
    moved = fused.launch(plan, Order.FORWARD, values, None, columns, [p, *moments], in_place=True)
    return not isinstance(moved, Unsupported)


def _is_intercepted() -> bool:
    return bool(torch._C._len_torch_dispatch_stack()) or torch._C._get_tracing_state() is not None


def _coefficients(
    plan: plans.Plan,
    partials: Sequence[functools.partial[Any]],
    active: Sequence[Column | None],
    rows: Rows | None,
    g: Column,
) -> tuple[tuple[float, ...] | None, Tensor | None, tuple[int, ...] | None]:
    """The coefficients of all rows, as numbers or as a tensor; and the row of each leaf, if there are several rows."""
    every = [True] * len(partials)
    if rows is not None:
        own = [_masked(rule, flags, rows) for rule, flags in zip(partials, active)]
        entries = plans.coefficients(plan, own, every)
        return *plans.resolve_vectors(entries, rows.number, g[0]), tuple(rows.of_leaf)
    if not any(active):  # lists of flags are not empty
        return *plans.resolve([plans.coefficients(plan, partials, every)], g[0]), None
    patterns = [tuple(flags is None or bool(flags[i]) for flags in active) for i in range(len(g))]
    numbers = {pattern: row for row, pattern in enumerate(dict.fromkeys(patterns))}
    table = [plans.coefficients(plan, partials, pattern) for pattern in numbers]
    return *plans.resolve(table, g[0]), tuple(numbers[pattern] for pattern in patterns)


def _masked(rule: functools.partial[Any], flags: Column | None, rows: Rows) -> functools.partial[Any]:
    """An affine rule with a neutral coefficient in the rows to which it does not apply."""
    if flags is None or all(flags):
        return rule
    off = {row for row, flag in zip(rows.of_leaf, flags) if not flag}
    ((name, value),) = rule.keywords.items()
    entries = value.expand(rows.number).unbind() if isinstance(value, Tensor) else [value] * rows.number
    kept = [plans.AFFINE[rule.func] if row in off else x for row, x in enumerate(entries)]
    return functools.partial(rule.func, **{name: vector(kept, common_device(kept))})


def _apply(call: Call, coefs: Tensor | None, tensors: Column) -> Any:
    """The step as an autograd Function."""
    if in_transform():
        transforms = torch._C._functorch.get_interpreter_stack() or ()
        if any(t.key() == torch._C._functorch.TransformType.Functionalize for t in transforms):
            return Unsupported('functionalization must intercept every torch operation')
        if not _are_uniform(call, tensors):
            return Unsupported('tensors of a leaf differ in shape or device, or are not plain dense floating tensors')
    try:
        flat = fused.record(call, coefs, tensors)
    except UnsupportedError as error:
        return error.reason
    n = call.leaves
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def _are_uniform(call: Call, tensors: Column) -> bool:
    """Whether tensors meet the requirements of the kernels, which cannot check them inside a transform."""
    n, device = call.leaves, getattr(tensors[0], 'device', torch.device('meta'))
    return device.type in ('cpu', 'cuda') and all(
        x is None
        or (
            type(x) in _TENSORS
            and x.dtype in _DTYPES
            and x.shape == tensors[i % n].shape
            and x.layout is torch.strided
            and x.device == device
        )
        for i, x in enumerate(tensors)
    )
