# SPDX-License-Identifier: Apache-2.0
"""Steps and their derivatives as single operations of a recorded graph.

A tracer records one operation, ``torchopt::kernel``, instead of the arithmetic of every leaf; a run of the graph calls
the engine.  The autograd Functions of :mod:`torchopt._C.fused` give the derivatives, as they do outside of graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt._C.call import Call, Column, Order, Unsupported
from torchopt._C.fused import compute, launch
from torchopt._C.operation import call_of, made
from torchopt._C.plain import is_present


def direct(*args: Any) -> tuple[Callable[..., list[Tensor]], tuple[Any, ...]]:
    """A function that does what the operation does, without the dispatcher of torch, and its arguments."""
    *described, coefs, tensors = args
    call = call_of(*described)
    leaves = call.leaves
    columns = [tensors[i : i + leaves] for i in range(0, len(tensors), leaves)]
    given = [None if all(x is None for x in column) else column for column in columns]

    def general(coefs: Tensor | None, *columns: Column | None) -> list[Tensor]:
        return _computed(call, coefs, [x for column in columns for x in column or (None,) * leaves])

    def run(coefs: Tensor | None, *columns: Column | None) -> list[Tensor]:
        native = launch(call.plan, call.order, call.coefs if coefs is None else coefs, call.rows, columns, call.outputs)
        if isinstance(native, Unsupported):
            return general(coefs, *columns)
        return list(itertools.chain.from_iterable(filter(None, native[0])))

    is_simple = all(x is not None for x in _models(leaves, tensors)) and call.order != Order.VJP_WITH_COEFS
    return run if is_simple else general, (coefs, *given)


def _computed(call: Call, coefs: Tensor | None, tensors: Column) -> list[Tensor]:
    """The results that the operation returns; plain torch leaves some out, which are zero."""
    results, are_made = compute(call, coefs, tensors), made(call, tensors)
    models = _models(call.leaves, tensors) * len(call.outputs)
    found = [torch.zeros_like(x) if y is None else y for y, x, m in zip(results, models, are_made) if m]
    return [*found, *results[len(are_made) :]]


def _models(leaves: int, tensors: Column) -> list[Any]:
    """A tensor of each leaf, which has its shape and dtype."""
    return [next(filter(is_present, tensors[i::leaves]), None) for i in range(leaves)]


@torch.library.custom_op(
    'torchopt::kernel',
    mutates_args=(),
    schema=(
        '(str rules, bool onto_params, int order, int leaves, int[] outputs, float[]? values, int[]? rows, '
        'Tensor? coefs, Tensor?[] tensors) -> Tensor[]'
    ),
)
def _kernel(*args: Any) -> list[Tensor]:
    *described, coefs, tensors = args
    return [y.contiguous() for y in _computed(call_of(*described), coefs, tensors)]


@_kernel.register_fake
def _(*args: Any) -> list[Tensor]:
    *described, coefs, tensors = args
    call = call_of(*described)
    models = _models(call.leaves, tensors) * len(call.outputs)
    found = [x.new_empty(x.shape) for x, is_made in zip(models, made(call, tensors)) if is_made]
    if call.order == Order.VJP_WITH_COEFS and coefs is not None:
        found.append(torch.empty_like(coefs))
    return found


@_kernel.register_vmap
def _(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    names, onto_params, order, leaves, outputs, values, rows, coefs, tensors = args
    size, of_coefs = info.batch_size, in_dims[7]
    dims = in_dims[8] if isinstance(in_dims[8], (list, tuple)) else [None] * len(tensors)
    batched = [
        x if x is None else x.expand(size, *x.shape) if d is None else x.movedim(d, 0) for x, d in zip(tensors, dims)
    ]
    if coefs is None or (of_coefs is None and order != Order.VJP_WITH_COEFS):
        # The rest is elementwise, so a batch is a larger leaf.
        found = _kernel(names, onto_params, order, leaves, outputs, values, rows, coefs, batched)
        return found, [0] * len(found)
    # Each sample has its own coefficients, or its own sums over elements: samples become leaves, with their own rows.
    table = coefs.expand(size, *coefs.shape) if of_coefs is None else coefs.movedim(of_coefs, 0)
    number = table.shape[1]
    of_leaf = [i * number + row for row in rows or [0] * leaves for i in range(size)]
    samples = [y for x in batched for y in ([None] * size if x is None else x.unbind())]
    found = _kernel(
        names, onto_params, order, leaves * size, outputs, None, of_leaf, table.reshape(size * number, -1), samples
    )
    own = [found.pop().reshape(table.shape)] if order == Order.VJP_WITH_COEFS else []
    results = [torch.stack(found[i : i + size]) for i in range(0, len(found), size)] + own
    return results, [0] * len(results)
