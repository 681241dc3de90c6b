# SPDX-License-Identifier: Apache-2.0
"""Decide which steps the native engine runs, and how."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import rules
from torchopt._C import fused
from torchopt._C.call import Call, Column, Order, Unsupported, UnsupportedError
from torchopt._C.plans import AFFINE, KNOWN, Plan, find_plan
from torchopt.levels import apply_function, in_transform, is_tracked
from torchopt.numerics import as_python_list, as_python_scalar, common_device, in_double, vector

__all__ = ['Rows', 'Unsupported', 'step', 'step_in_place']

_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_TENSORS = frozenset({Tensor, torch.nn.Parameter})
_PARTIAL = frozenset({functools.partial})
_FLOAT = frozenset({float})
_kind = operator.attrgetter('dtype', 'layout', 'is_cpu')
_layout = operator.attrgetter('shape', 'dtype', 'layout', 'is_cpu')
_ROUNDED_ALIKE = frozenset({(torch.float32, torch.strided, True), (torch.float64, torch.strided, True)})
_DESCENT = (rules.identity,)
_function, _arguments, _keywords = map(operator.attrgetter, ('func', 'args', 'keywords'))


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
        partials: The rules that follow one another: functions of :mod:`torchopt.rules` with their coefficients.
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
        if _is_recording and rows is None and not any(active):
            return _record(partials, g, moments, p, inplace, onto_params)
        return Unsupported('a compiler is tracing, and fuses plain torch by itself')
    if _is_intercepted():
        return Unsupported('a dispatch mode or a tracer must intercept every torch operation')
    plan = _plan_of(partials, onto_params)
    if plan is None:
        return Unsupported('there is no kernel for these transformations')
    count = len(g)
    if not count:
        return [[], *([] for _ in moments)]
    tensors = [*g, *itertools.chain.from_iterable(moments), *(p or ())]
    if not _TENSORS.issuperset(map(type, tensors)):
        return Unsupported('a tensor is missing, or of a subclass of torch.Tensor')
    coefs = numbers = None
    values = _constants(plan, partials) if rows is None and not any(active) else None  # type: ignore[arg-type]
    if values is None:
        values, coefs, numbers = _coefficients(plan, partials, active, rows, g)  # type: ignore[arg-type]
    if not inplace and is_tracked(tensors if coefs is None else [coefs, *tensors]):
        if plan.rules == _DESCENT and p and values and numbers is None and (moved := _descend(values, g, p)):
            return moved
        if in_transform() and (obstacle := _obstacle_in_transform(tensors, count)):
            return Unsupported(obstacle)
        reads_params = values is None or any(values[1 :: plan.coefs])
        call = Call(plan, Order.FORWARD, count, plan.like, values, numbers, reads_params)
        absent = () if p else itertools.repeat(None, count)
        try:
            flat = apply_function(fused.Step, call, coefs, *tensors, *absent)
        except UnsupportedError as error:
            return error.reason
        return [flat[i : i + count] for i in range(0, len(flat), count)]
    into: Sequence[Any] = plan.like
    if inplace:
        if in_transform() or forward_ad._current_level >= 0:
            return Unsupported('a step in place cannot be transformed')
        into = [p, *moments] if onto_params else [-1, *moments]
    known = coefs.detach() if values is None else values  # type: ignore[union-attr]
    results = fused.launch(plan, Order.FORWARD, known, numbers, [g, *moments, p], into, in_place=inplace)
    return results if isinstance(results, Unsupported) else list(results[0])


def step_in_place(partials: Sequence[Any], g: list[Any], moments: Sequence[Any], p: list[Any]) -> bool:
    """Take a step of plain training natively: all rules apply to all leaves, and write into parameters and moments.

    Returns:
        Whether the step was taken.  If not, such as for moments that are not lists of one length, nothing is changed,
        and :func:`step` says why or can take the step.
    """
    if torch.compiler.is_compiling() or _is_intercepted() or forward_ad._current_level >= 0 or in_transform():
        return False
    plan = _plan_of(partials, True)
    if plan is None or (values := _constants(plan, partials)) is None:
        return False
    columns = [g, *moments, p]
    moved = fused.launch(plan, Order.FORWARD, values, None, columns, [p, *moments], in_place=True)
    return not isinstance(moved, Unsupported)


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Let ``torch.compile`` capture steps as single operations instead of plain torch."""
    global _is_recording  # noqa: PLW0603
    _prepare_tracing()
    before, _is_recording = _is_recording, True
    try:
        yield
    finally:
        _is_recording = before


_is_recording = False


@functools.cache
def _prepare_tracing() -> None:
    torch.compiler.allow_in_graph(_recorded_step)  # type: ignore[no-untyped-call]  # loads the compiler
    torch.compiler.assume_constant_result(_has_plan)  # type: ignore[no-untyped-call]


def _record(
    partials: Sequence[Any], g: Column, moments: Sequence[Column], p: Column | None, inplace: bool, onto_params: bool
) -> list[Column] | Unsupported:
    """A step for ``torch.compile``, which traces this function."""
    tensors = [*g]
    for column in moments:
        tensors += column
    tensors += p or ()
    names, keywords = [], []
    for rule in partials:
        if not isinstance(rule, functools.partial) or rule.args or rule.func not in KNOWN:
            return Unsupported('there is no kernel for these transformations')
        names.append(rule.func.__name__)
        keywords.append(rule.keywords)
    if inplace or not g or not _has_plan(tuple(names), onto_params):
        return Unsupported('there is no kernel for these transformations')
    for i, x in enumerate(tensors):
        if x is None or x.shape != g[i % len(g)].shape or x.dtype != g[0].dtype or x.device != g[0].device:
            return Unsupported('tensors differ')
    flat = _recorded_step(tuple(names), onto_params, keywords, tensors, len(g))
    return [list(flat[i : i + len(g)]) for i in range(0, len(flat), len(g))]


def _has_plan(names: tuple[str, ...], onto_params: bool) -> bool:
    return find_plan(tuple(getattr(rules, name) for name in names), onto_params) is not None


def _recorded_step(
    names: Sequence[str], onto_params: bool, keywords: Sequence[dict[str, Any]], tensors: list[Tensor], count: int
) -> tuple[Tensor, ...]:
    functions = [getattr(rules, name) for name in names]
    partials = [functools.partial(f, **k) for f, k in zip(functions, keywords)]
    plan = find_plan(tuple(functions), onto_params)
    assert plan is not None
    values, coefs = _resolve([_row(plan, partials, [True] * len(partials))], tensors[0])
    call = Call(plan, Order.FORWARD, count, plan.like, values, None, values is None or any(values[1 :: plan.coefs]))
    absent = () if len(tensors) == (plan.moments + 2) * count else itertools.repeat(None, count)
    found: tuple[Tensor, ...] = apply_function(fused.Step, call, coefs, *tensors, *absent)
    return found


def _is_intercepted() -> bool:
    return bool(torch._C._len_torch_dispatch_stack()) or torch._C._get_tracing_state() is not None


def _plan_of(partials: Sequence[Any], onto_params: bool) -> Plan | None:
    """The plan for rules with their coefficients, or None if no kernel computes them."""
    if not _PARTIAL.issuperset(map(type, partials)) or any(map(_arguments, partials)):
        return None
    functions = tuple(map(_function, partials))
    try:  # only known rules enter the cache of plans, since it would keep user-defined rules alive
        known = KNOWN.issuperset(functions)
    except TypeError:  # a function that has no hash
        return None
    return find_plan(functions, onto_params) if known else None


def _constants(plan: Plan, partials: Sequence[functools.partial[Any]]) -> tuple[float, ...] | None:
    """The coefficients of a step with one row, if those of all rules are floats; else None."""
    found = plan.row(list(map(_keywords, partials)))
    return found if _FLOAT.issuperset(map(type, found)) else None


def _coefficients(
    plan: Plan,
    partials: Sequence[functools.partial[Any]],
    active: Sequence[Column | None],
    rows: Rows | None,
    g: Column,
) -> tuple[tuple[float, ...] | None, Tensor | None, tuple[int, ...] | None]:
    """The coefficients of all rows, as numbers or as a tensor; and the row of each leaf, if there are several rows."""
    every = [True] * len(partials)
    if rows is not None:
        own = [_masked(rule, flags, rows) for rule, flags in zip(partials, active)]
        entries = _row(plan, own, every)
        return *_resolve_vectors(entries, rows.number, g[0]), tuple(rows.of_leaf)
    if not any(active):  # lists of flags are not empty
        return *_resolve([_row(plan, partials, every)], g[0]), None
    patterns = [tuple(flags is None or bool(flags[i]) for flags in active) for i in range(len(g))]
    numbers = {pattern: row for row, pattern in enumerate(dict.fromkeys(patterns))}
    table = [_row(plan, partials, pattern) for pattern in numbers]
    return *_resolve(table, g[0]), tuple(numbers[pattern] for pattern in patterns)


def _masked(rule: functools.partial[Any], flags: Column | None, rows: Rows) -> functools.partial[Any]:
    """An affine rule with a neutral coefficient in the rows to which it does not apply."""
    if flags is None or all(flags):
        return rule
    off = {row for row, flag in zip(rows.of_leaf, flags) if not flag}
    ((name, value),) = rule.keywords.items()
    entries = value.expand(rows.number).unbind() if isinstance(value, Tensor) else [value] * rows.number
    kept = [AFFINE[rule.func] if row in off else x for row, x in enumerate(entries)]
    return functools.partial(rule.func, **{name: vector(kept, common_device(kept))})


def _descend(values: tuple[float, ...], g: Column, p: Column) -> list[Column] | None:
    """A differentiable step of gradient descent, ``p + f g``, by one operation of torch for each leaf.

    Torch records and differentiates it in C++, which takes less time than one node of the graph in Python: two thirds
    for two leaves, as much for 32.

    Returns:
        The new parameters; None if this is another step, or torch would round or broadcast in another way.
    """
    sign, decay, factor, weight = values
    if decay or weight != 1.0 or abs(sign) != 1.0:
        return None
    if not _ROUNDED_ALIKE.issuperset(map(_kind, g)) or list(map(_layout, g)) != list(map(_layout, p)):
        return None
    return [list(map(functools.partial(torch.add, alpha=sign * factor), p, g))]


def _row(plan: Plan, partials: Sequence[functools.partial[Any]], active: Sequence[bool]) -> tuple[Any, ...]:
    """The coefficients of one row: numbers and 0-d tensors, in the order of the kernel.

    They are multiplied in double precision, so that leaves in double precision get exact products.  For several rows,
    coefficients are vectors if those of the rules are.  Only affine rules may be inactive.
    """
    return plan.row(
        [
            {name: in_double(value) if applies else AFFINE[rule.func] for name, value in rule.keywords.items()}
            for rule, applies in zip(partials, active)
        ]
    )


def _resolve(rows: Sequence[Sequence[Any]], like: Any) -> tuple[tuple[float, ...] | None, Tensor | None]:
    """Rows of coefficients as floats if available on the host without synchronization, else as a differentiable tensor.

    The tensor is created on the device of the leaf ``like``.
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


def _resolve_vectors(entries: Sequence[Any], count: int, like: Any) -> tuple[tuple[float, ...] | None, Tensor | None]:
    """Like :func:`_resolve`, for ``count`` rows at once: coefficients that differ between rows are vectors."""
    where: dict[str, Any] = {'device': common_device(entries), 'dtype': torch.float64}
    columns = [
        c.to(**where).expand(count) if isinstance(c, Tensor) else torch.full((count,), c, **where) for c in entries
    ]
    table = torch.stack(columns, 1)
    values = as_python_list(table.reshape(-1))
    return (None, table.to(device=getattr(like, 'device', None))) if values is None else (tuple(values), None)


def _obstacle_in_transform(tensors: Column, leaves: int) -> str | None:
    """Why a step cannot run natively inside a ``torch.func`` transform, where the kernels cannot check tensors."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    if any(t.key() == torch._C._functorch.TransformType.Functionalize for t in transforms):
        return 'functionalization must intercept every torch operation'
    device = tensors[0].device
    if device.type in ('cpu', 'cuda') and all(
        x.dtype in _DTYPES and x.shape == tensors[i % leaves].shape and x.layout is torch.strided and x.device == device
        for i, x in enumerate(tensors)
    ):
        return None
    return 'tensors of a leaf differ in shape or device, or are not plain dense floating tensors'
