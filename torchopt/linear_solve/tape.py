# SPDX-License-Identifier: Apache-2.0
"""A linear map, recorded once as the tensor operations that it consists of, and then repeated without autograd.

A product with a Jacobian goes back through a graph, and the engine that does so takes its time: in a system of a few
hundred unknowns more than the arithmetic.  But all products of one solve are the same operations on other numbers.  So
the first one is watched below autograd.  Of its operations only those are repeated that depend on the vector; what the
others gave is kept.

Nothing is taken on trust: the repetition is compared with the product itself, on another vector, and given up if it
differs (a kernel may have been called that torch does not dispatch), or if an operation cannot be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torchopt.linear_solve.operators import Leaves, Product

__all__ = ['taped']


def taped(product: Product) -> Product:
    """The same product, faster from the second time on."""
    repeat: Product | None = None
    calls = 0

    def run(u: Leaves) -> Leaves:
        nonlocal repeat, calls
        calls += 1
        if repeat is not None:
            return repeat(u)
        if calls != 2:  # one product alone is not worth a recording; and after a failed one there is no other
            return product(u)
        with _Recorder() as tape:
            y = product(u)
        repeat = _repetition(tape, u, y)
        return y

    return run


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation with what went in and what came out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


class _Slot:
    """Stands for a tensor that depends on the vector, by its place in the list of results."""

    def __init__(self, index: int) -> None:
        self.index = index


def _repetition(tape: _Recorder, u: Leaves, y: Leaves) -> Product | None:
    """The operations that lead from ``u`` to ``y``, or None if they cannot be repeated."""
    places = {id(x): i for i, x in enumerate(u)}
    program: list[tuple[Any, Any, Any, bool]] = []
    count = len(places)

    def with_slots(x: Any) -> Any:
        if isinstance(x, Tensor):
            return _Slot(places[id(x)]) if id(x) in places else x
        return type(x)(with_slots(z) for z in x) if type(x) in (list, tuple) else x

    for func, args, kwargs, result in tape.operations:
        live = any(id(x) in places for x in _tensors((*args, *kwargs.values())))
        schema = func._schema
        if schema.is_mutable:
            written = [
                a
                for a, declared in zip(args, schema.arguments)
                if declared.alias_info is not None and declared.alias_info.is_write
            ]
            if live != all(isinstance(a, Tensor) and id(a) in places for a in written) or len(written) < 1:
                return None
        if not live:
            continue
        if torch.Tag.nondeterministic_seeded in func.tags or torch.Tag.data_dependent_output in func.tags:
            return None
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        if not all(isinstance(x, Tensor) for x in results):
            return None
        program.append(
            (func, with_slots(args), {k: with_slots(v) for k, v in kwargs.items()}, isinstance(result, Tensor))
        )
        for x in results:
            places[id(x)] = count
            count += 1
    if not all(id(x) in places for x in y):
        return None
    outputs = [places[id(x)] for x in y]

    def repeat(u: Leaves) -> Leaves:
        slots = list(u)
        for func, args, kwargs, single in program:
            result = func(*_filled(args, slots), **{k: _filled(v, slots) for k, v in kwargs.items()})
            slots.append(result) if single else slots.extend(result)
        return [slots[i] for i in outputs]

    return repeat if _agrees(repeat, u, y) else None


def _agrees(repeat: Product, u: Leaves, y: Leaves) -> bool:
    """Whether the repetition gives half of the result, negative, for half of the vector, negative."""
    try:
        again = repeat([-0.5 * x for x in u])
    except RuntimeError:
        return False
    return all(torch.linalg.vector_norm(a + 0.5 * b) <= 1e-3 * torch.linalg.vector_norm(b) for a, b in zip(again, y))


def _tensors(xs: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for x in xs:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple)):
            found += _tensors(x)
    return found


def _filled(x: Any, slots: list[Tensor]) -> Any:
    if type(x) is _Slot:
        return slots[x.index]
    return type(x)(_filled(z, slots) for z in x) if type(x) in (list, tuple) else x
