# SPDX-License-Identifier: Apache-2.0
"""A linear map, recorded once as a list of tensor operations, and then repeated without autograd.

A product with a Jacobian is a backward pass through a graph, whose overhead exceeds the arithmetic for systems of a few
hundred unknowns.  All products of one solve are the same operations on different numbers.  So the first product is
recorded below autograd.  Later products repeat only the operations that depend on the vector; the results of the others
are kept.  A direct method takes one product with all vectors together, under ``vmap``, which is not recorded.

The second product, with another vector, is computed in both ways.  The tape is discarded unless the results are
bitwise equal, since a kernel may have been called that torch does not dispatch.  It is also discarded if an operation
cannot be repeated.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import TorchDispatchMode

Leaves = Sequence[Tensor]
"""The tensors of a tree."""

Product = Callable[[Leaves], Leaves]
"""A matrix-vector product, without derivatives."""


def taped(product: Product) -> Product:
    """The same product, faster from the third call on."""
    is_recorded = False
    candidate: tuple[Leaves, Product] | None = None
    repeat: Product | None = None

    def run(u: Leaves) -> Leaves:
        nonlocal is_recorded, candidate, repeat
        if repeat is not None:
            return repeat(u)
        is_batch = any(map(is_functorch_wrapped_tensor, u))
        if not is_recorded and not is_batch:
            is_recorded = True
            with _Recorder() as tape:
                y = product(u)
            program = _repetition(tape, u, y)
            candidate = None if program is None else ([x.clone() for x in u], program)
            return y
        y = product(u)
        if candidate is not None and not is_batch and not _equal(candidate[0], u):
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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # compiled code does not come here, and the wrapper against it takes longer than an operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result


def _repetition(tape: _Recorder, u: Leaves, y: Leaves) -> Product | None:
    """A Python function of the operations that lead from ``u`` to ``y``, or None if they cannot be repeated."""
    names = {id(x): f'u{i}' for i, x in enumerate(u)}
    scope: dict[str, Any] = {}  # the operations and their constant arguments
    lines = [f'def repeat(u):\n    {_tuple(names.values())} = u']
    for func, args, kwargs, result in tape.operations:
        live = any(id(x) in names for x in _tensors((*args, *kwargs.values())))
        if func._schema.is_mutable and not _writes_own_results(func, args, names, live):
            return None
        if not live:
            continue
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        random = torch.Tag.nondeterministic_seeded in func.tags or torch.Tag.data_dependent_output in func.tags
        if random or not all(isinstance(x, Tensor) for x in results) or _tensors(list(kwargs.values())):
            return None
        arguments = [_text(x, names, scope) for x in args]
        arguments += [f'{name}={_text(x, names, scope)}' for name, x in kwargs.items()]
        call = f'{_text(func._op, names, scope)}({", ".join(arguments)})'
        names |= {id(x): f'x{len(scope)}_{i}' for i, x in enumerate(results)}
        made = [names[id(x)] for x in results]
        lines.append(f'    {made[0] if isinstance(result, Tensor) else _tuple(made)} = {call}')
    if not all(id(x) in names for x in y):
        return None
    lines.append(f'    return {_tuple(names[id(x)] for x in y)}')
    exec(_compiled('\n'.join(lines)), scope)
    repeat: Product = scope.pop('repeat')  # which refers to its scope: no cycle may keep the tensors alive
    return repeat


def _text(x: Any, names: dict[int, str], scope: dict[str, Any]) -> str:
    """How the function refers to an argument; constants become a part of its scope."""
    if id(x) in names:
        return names[id(x)]
    if isinstance(x, (list, tuple)):
        return f'[{", ".join(_text(y, names, scope) for y in x)}]'
    name = f'c{len(scope)}'
    scope[name] = x
    return name


@functools.lru_cache(maxsize=256)
def _compiled(source: str) -> types.CodeType:
    """Code for a source, which is the same for all products with the same operations."""
    return compile(source, '<tape>', 'exec')


def _tuple(names: Iterable[str]) -> str:
    return f'({"".join(f"{name}, " for name in names)})'


def _writes_own_results(func: Any, args: Sequence[Any], names: dict[int, str], live: bool) -> bool:
    """Whether an in-place operation writes only to tensors that each repetition creates."""
    written = [
        a for a, declared in zip(args, func._schema.arguments) if declared.alias_info and declared.alias_info.is_write
    ]
    return live and bool(written) and all(isinstance(a, Tensor) and id(a) in names for a in written)


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
