# SPDX-License-Identifier: Apache-2.0
"""Steps and their derivatives in plain torch, where no kernel can run, and beyond the last derivative that has one."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt import rules
from torchopt._C.call import Call, Column, Order

is_present = functools.partial(operator.is_not, None)


def plain(call: Call) -> Callable[..., tuple[Any, ...]]:
    """The computation in plain torch: ``f(coefs, *tensors)``, differentiable to any order."""
    if call.order == Order.FORWARD:
        return lambda coefs, *tensors: _plain_step(call, coefs, tensors)
    inner = call.integrated()
    cut = inner.inputs * inner.leaves
    if call.order == Order.JVP:
        return lambda coefs, *tensors: push(plain(inner), (coefs, *tensors[:cut]), (None, *tensors[cut:]))

    def vjp(coefs: Any, *tensors: Any) -> tuple[Any, ...]:
        inputs, cotangents = _with_zeros(inner, tensors[:cut], tensors[cut:]), tensors[cut:]
        wanted = [x is not None and call.wanted[i // call.leaves] for i, x in enumerate(inputs)]
        with_coefs = call.order == Order.VJP_WITH_COEFS
        own, *rest = pull(plain(inner), (coefs, *inputs), cotangents, [with_coefs, *wanted])
        return (*rest, own) if with_coefs else tuple(rest)

    return vjp


def _plain_step(call: Call, coefs: Any, tensors: Column) -> tuple[Any, ...]:
    values = call.coefs if coefs is None else coefs.reshape(-1).unbind()
    assert values is not None
    rows = call.rows or (0,) * call.leaves
    size = call.row_size
    results: list[tuple[Any, ...]] = []
    for row, (g, *moments, p) in zip(rows, zip(*(call.column(tensors, i) for i in range(call.inputs)))):
        if g is None:  # a leaf of zeros of unknown shape
            results.append((None,) * (1 + len(moments)))
            continue
        own = values[row * size : (row + 1) * size]
        u, *moved = rules.step(call.plan.rules, own, g, moments, p)
        results.append((u.to(p.dtype) if call.onto_params else u, *moved))
    return tuple(itertools.chain.from_iterable(zip(*results)))


def _with_zeros(inner: Call, inputs: Column, cotangents: Column) -> Column:
    """Replace inputs that were not saved by zeros: if a step is linear in an argument, its value is not needed."""
    if inner.order != Order.FORWARD:
        return inputs
    every = (*inputs, *cotangents)
    shapes = [next(filter(is_present, every[i :: inner.leaves]), None) for i in range(inner.leaves)]
    kept = list(inputs)
    for first in (0, (inner.inputs - 1) * inner.leaves):
        for i, like in enumerate(shapes, first):
            if kept[i] is None and like is not None:
                kept[i] = torch.zeros_like(like)
    return kept


def _split(arguments: Column, chosen: Sequence[bool]) -> tuple[list[Any], Callable[..., list[Any]]]:
    """The chosen arguments, and a function that merges them with the others."""

    def merge(*values: Any) -> list[Any]:
        supplied = iter(values)
        return [next(supplied) if c else x for c, x in zip(chosen, arguments)]

    return list(itertools.compress(arguments, chosen)), merge


def present(function: Callable[..., Iterable[Any]]) -> tuple[Callable[..., tuple[Tensor, ...]], list[bool]]:
    """The function without results that are None; and a list that says, after a call, which results are there."""
    kept: list[bool] = []

    def outputs(*values: Any) -> tuple[Tensor, ...]:
        results = tuple(function(*values))
        kept[:] = [y is not None for y in results]
        return tuple(itertools.compress(results, kept))

    return outputs, kept


def pull(
    function: Callable[..., tuple[Any, ...]], arguments: Column, cotangents: Column, wanted: Sequence[bool]
) -> list[Any]:
    """Reverse mode: the gradients with respect to the wanted arguments, None for the others."""
    variables, merge = _split(arguments, wanted)
    if not variables or all(c is None for c in cotangents):
        return [None] * len(arguments)
    outputs, kept = present(lambda *values: function(*merge(*values)))
    ys, pullback = _vjp(outputs, *variables)
    cs = itertools.compress(itertools.chain(cotangents, itertools.repeat(None)), kept)
    gradients = iter(pullback(tuple(torch.zeros_like(y) if c is None else c.to(y.dtype) for y, c in zip(ys, cs))))
    return [next(gradients) if w else None for w in wanted]


def _vjp(function: Callable[..., Any], *primals: Tensor) -> Any:
    return torch.func.vjp(function, *primals)  # its annotation has three results; without has_aux there are two


def push(function: Callable[..., tuple[Any, ...]], arguments: Column, tangents: Column) -> tuple[Any, ...]:
    """Forward mode: the tangents of the results; None is a zero tangent."""
    moving = [t is not None and x is not None for x, t in zip(arguments, tangents)]
    variables, merge = _split(arguments, moving)
    outputs, kept = present(lambda *values: function(*merge(*values)))
    # Use reverse mode twice, since torch's forward mode does not nest outside of torch.func: the gradients are linear
    # in the cotangents, and the transpose of this map is forward mode.
    ys, pullback = _vjp(outputs, *variables)
    _, pushforward = _vjp(lambda *cs: pullback(cs), *[torch.zeros_like(y) for y in ys])
    # A tangent must not share memory: a backward pass may accumulate cotangents, and with them their tangents, in
    # place, which would change every tensor with the same memory.
    moved = iter(pushforward(tuple(itertools.compress(tangents, moving))))
    return tuple(next(moved).clone() if k else None for k in kept)
