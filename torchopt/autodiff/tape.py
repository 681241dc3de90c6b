# SPDX-License-Identifier: Apache-2.0
"""A linear map, recorded once as a list of tensor operations, and then repeated without autograd.

A product with a Jacobian is a backward pass through a graph, whose overhead exceeds the arithmetic for systems of a few
hundred unknowns.  All products of one solve are the same operations on different numbers.  So the second product is
recorded below autograd (recording does not pay for a single product).  Later products repeat only the operations that
depend on the vector; the results of the others are kept.

The third product, with another vector, is computed in both ways.  The tape is discarded unless the results are
bitwise equal, since a kernel may have been called that torch does not dispatch.  It is also discarded if an operation
cannot be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ['Leaves', 'Product', 'taped']

Leaves = Sequence[Tensor]
"""The tensors of a tree."""

Product = Callable[[Leaves], Leaves]
"""A matrix-vector product, without derivatives."""


def taped(product: Product) -> Product:
    """The same product, faster from the fourth call on."""
    candidate: tuple[Leaves, Product] | None = None
    repeat: Product | None = None
    calls = 0

    def run(u: Leaves) -> Leaves:
        nonlocal candidate, repeat, calls
        if repeat is not None:
            return repeat(u)
        calls += 1
        if calls == 2:
            with _Recorder() as tape:
                y = product(u)
            program = _repetition(tape, u, y)
            candidate = None if program is None else ([x.clone() for x in u], program)
            return y
        y = product(u)
        if candidate is not None and not any(map(is_functorch_wrapped_tensor, u)) and not _equal(candidate[0], u):
            # A comparison with the same vector would prove nothing.
            repeat = candidate[1] if _agrees(candidate[1], u, y) else None
            candidate = None
        return y

    return run


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record every operation with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


class _Step(NamedTuple):
    """One operation: its constant arguments, and the arguments that are results of earlier operations."""

    run: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    fill: list[tuple[int, int]]
    """Pairs of the position of an argument and the index of a result."""
    fill_lists: list[tuple[int, list[tuple[int, int]]]]
    """The same for arguments that are lists of tensors."""
    is_single: bool


def _repetition(tape: _Recorder, u: Leaves, y: Leaves) -> Product | None:
    """The operations that lead from ``u`` to ``y``, or None if they cannot be repeated."""
    places = {id(x): i for i, x in enumerate(u)}
    program: list[_Step] = []
    count = len(places)
    for func, args, kwargs, result in tape.operations:
        live = any(id(x) in places for x in _tensors((*args, *kwargs.values())))
        if func._schema.is_mutable and not _writes_own_results(func, args, places, live):
            return None
        if not live:
            continue
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        random = torch.Tag.nondeterministic_seeded in func.tags or torch.Tag.data_dependent_output in func.tags
        if random or not all(isinstance(x, Tensor) for x in results) or _tensors(list(kwargs.values())):
            return None
        fill = [(i, places[id(x)]) for i, x in enumerate(args) if id(x) in places]
        fill_lists = [
            (i, [(j, places[id(x)]) for j, x in enumerate(a) if id(x) in places])
            for i, a in enumerate(args)
            if isinstance(a, (list, tuple)) and any(id(x) in places for x in a)
        ]
        program.append(_Step(func, list(args), kwargs, fill, fill_lists, isinstance(result, Tensor)))
        for x in results:
            places[id(x)] = count
            count += 1
    if not all(id(x) in places for x in y):
        return None
    outputs = [places[id(x)] for x in y]

    def repeat(u: Leaves) -> Leaves:
        slots = list(u)
        for run, args, kwargs, fill, fill_lists, is_single in program:
            arguments = args.copy()
            for i, place in fill:
                arguments[i] = slots[place]
            for i, inner in fill_lists:
                filled = list(args[i])
                for j, place in inner:
                    filled[j] = slots[place]
                arguments[i] = filled
            result = run(*arguments, **kwargs)
            slots.append(result) if is_single else slots.extend(result)
        return [slots[i] for i in outputs]

    return repeat


def _writes_own_results(func: Any, args: Sequence[Any], places: dict[int, int], live: bool) -> bool:
    """Whether an in-place operation writes only to tensors that each repetition creates."""
    written = [
        a for a, declared in zip(args, func._schema.arguments) if declared.alias_info and declared.alias_info.is_write
    ]
    return live and bool(written) and all(isinstance(a, Tensor) and id(a) in places for a in written)


def _agrees(repeat: Product, u: Leaves, y: Leaves) -> bool:
    """Whether the repetition gives bitwise the same product."""
    try:
        return _equal(repeat(u), y)
    except RuntimeError:
        return False


def _equal(xs: Leaves, ys: Leaves) -> bool:
    return all(torch.equal(x, y) for x, y in zip(xs, ys))


def _tensors(xs: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for x in xs:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple)):
            found += _tensors(x)
    return found
