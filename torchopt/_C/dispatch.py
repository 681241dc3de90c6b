# SPDX-License-Identifier: Apache-2.0
"""The decision which steps the native engine takes, and how."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import increment_version

from torchopt._C import fused, plans, reference
from torchopt._C.fused import Call, Column, Order
from torchopt.numerics import carries_no_graph

__all__ = ['step']

_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_add_to_params = functools.partial(reference.add_to_params)


def step(
    rules: Sequence[Callable[..., Any]],
    active: Sequence[Column | None],
    g: Column,
    moments: Sequence[Column],
    p: Column | None,
    *,
    inplace: bool,
    onto_params: bool,
) -> list[Column] | str:
    """Take a step natively, if that is possible.

    Args:
        rules: The rules that follow one another, partial applications of functions in
            :mod:`torchopt._C.reference` to their coefficients.
        active: For each rule None, or for each leaf whether the rule applies to it.
        g: The gradients.
        moments: The columns of moments that the rules move on.
        p: The parameters, where they are read or added to.
        inplace: Whether to write into the moments, and the parameters with ``onto_params``.
        onto_params: Whether to return the new parameters instead of the updates.

    Returns:
        The updates or the parameters, and the moments; or a string that says why the engine cannot take this step, in
        which case nothing is changed.
    """
    plan = _plan(rules)
    if isinstance(plan, str):
        return plan
    if not g:
        return [[], *([] for _ in moments)]
    if p is not None and any(x is None for x in p):
        return 'a parameter is missing'
    if onto_params:
        rules, active = [*rules, _add_to_params], [*active, None]
    rows, table = _rows(rules, active, len(g))  # type: ignore[arg-type]
    values, coefs = plans.settle(table, g[0])
    call = Call(plan, Order.FORWARD, len(g), (True,) * (plan.moments + 1), values, rows, onto_params)
    if inplace:
        return _write(call, coefs, g, moments, p)
    if p is not None and not onto_params and torch.is_grad_enabled():
        p = _constants(rules, g, moments, p)  # type: ignore[arg-type]
    return _operate(call, coefs, g, moments, p)


def _plan(rules: Sequence[Callable[..., Any]]) -> plans.Plan | str:
    if torch.compiler.is_compiling():
        return 'a compiler is tracing, and fuses plain torch itself'
    # Only rules that are known get as far as the cache of plans, which would keep those of users alive.
    functions = tuple([r.func for r in rules if type(r) is functools.partial and not r.args and plans.is_known(r.func)])
    plan = plans.find_plan(functions) if len(functions) == len(rules) else None
    if plan is None:
        return 'there is no kernel for these transformations'
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return 'a dispatch mode or a tracer wants to see every torch operation'
    return plan


def _rows(
    rules: Sequence[functools.partial[Any]], active: Sequence[Column | None], leaves: int
) -> tuple[tuple[int, ...] | None, list[list[Any]]]:
    """For each leaf its row of coefficients, and the rows; leaves with the same rules share one."""
    if all(flags is None for flags in active):
        return None, [plans.coefficients(rules, [True] * len(rules))]
    patterns = [tuple(flags is None or bool(flags[i]) for flags in active) for i in range(leaves)]
    numbers = {pattern: row for row, pattern in enumerate(dict.fromkeys(patterns))}
    return tuple(numbers[pattern] for pattern in patterns), [plans.coefficients(rules, p) for p in numbers]


def _write(call: Call, coefs: Tensor | None, g: Column, moments: Sequence[Column], p: Column | None) -> Any:
    if torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return 'a step in place cannot be transformed'
    written = [p, *moments] if call.onto_params else moments
    if not torch.is_inference_mode_enabled() and any(column[0].is_inference() for column in written if column):
        return 'inference tensors cannot be written to'
    into: list[Any] = [*written] if call.onto_params else [call.likes()[0], *moments]
    columns = fused.write(call, coefs, [g, *moments, p], into)
    if isinstance(columns, str):
        return columns
    increment_version([x for column in written if column is not None for x in column])
    return list(columns)


def _constants(rules: Sequence[functools.partial[Any]], g: Column, moments: Sequence[Column], p: Column) -> Column:
    """The parameters, detached where decay takes them for constants.

    :func:`reference.add_params` asks that of the update it is given, which may have its graph from the gradient, and
    from the moments and the coefficients of all rules before.
    """
    decay = max((i for i, rule in enumerate(rules) if rule.func is reference.add_params), default=0)
    before = rules[:decay]
    values = [x for rule in before for x in rule.keywords.values()]
    if any(isinstance(x, Tensor) and x.requires_grad for x in values):
        return p
    rows = zip(g, *moments) if any(rule.func in reference.RULES for rule in before) else zip(g)
    return [x.detach() if all(carries_no_graph(x, y) for y in row) else x for x, row in zip(p, rows)]


def _operate(call: Call, coefs: Tensor | None, g: Column, moments: Sequence[Column], p: Column | None) -> Any:
    columns = [g, *moments, p]
    tensors = [x for column in columns for x in (column or (None,) * call.leaves)]
    if not fused.is_tracked((coefs, *tensors)):
        results = fused.write(call, coefs, columns, call.likes())
        return results if isinstance(results, str) else list(results)
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    if any(t.key() == torch._C._functorch.TransformType.Functionalize for t in transforms):
        return 'functionalization wants to see every torch operation'
    if fused.loses_derivatives():
        return 'forward mode over forward mode differentiates plain torch only'
    if transforms and not _are_uniform(call, tensors):
        return 'tensors of a leaf differ in shape or device, or are no plain dense floating tensors'
    try:
        flat = fused.operate(call, coefs, tensors)
    except fused.RefusedError as refusal:
        return str(refusal)
    return [call.column(flat, i) for i in range(call.plan.moments + 1)]


def _are_uniform(call: Call, tensors: Column) -> bool:
    """What the kernels ask of tensors, asked where a transform stands between them and the kernel."""
    n, device = call.leaves, getattr(tensors[0], 'device', torch.device('meta'))
    return device.type in ('cpu', 'cuda') and all(
        x is None
        or (
            type(x) in (Tensor, torch.nn.Parameter)
            and x.dtype in _DTYPES
            and x.shape == tensors[i % n].shape
            and x.layout is torch.strided
            and x.device == device
        )
        for i, x in enumerate(tensors)
    )
