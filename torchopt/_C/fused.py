# SPDX-License-Identifier: Apache-2.0
"""A whole optimizer step as one kernel call and one autograd node, with derivatives of every order.

A step over a tree is a function of flat columns of tensors (gradients, moments, parameters) and of coefficients.  The
kernels compute it, its vector-Jacobian product, the vector-Jacobian product of that, and its Jacobian-vector product.
Each is an autograd Function whose derivative is the next.  Beyond the last, and if a kernel cannot run,
:mod:`torchopt.rules` computes the same function and torch differentiates it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import rules
from torchopt._C.call import Call, Column, Order, Unsupported, UnsupportedError
from torchopt._C.operation import record
from torchopt._C.plain import is_present, plain, present, pull, push
from torchopt._C.plans import Plan
from torchopt.levels import all_without_ended, apply_function, forward_mode, in_transform, is_tracked, saved_tensors

_run: Callable[..., Any] | None = None


def bind_kernels(run: Callable[..., Any] | None) -> None:
    """Set the function of the compiled module that runs kernels; None means that plain torch computes everything."""
    global _run  # noqa: PLW0603  # set when the package is imported
    _run = run


def launch(
    plan: Plan,
    order: Order,
    coefs: tuple[float, ...] | Tensor | None,
    rows: tuple[int, ...] | None,
    columns: Sequence[Column | None],
    into: Sequence[Column | int | None],
    *,
    in_place: bool = False,
) -> Any:
    """Run a kernel outside of autograd.

    Args:
        plan: The rules.
        order: Which derivative of them to compute.
        coefs: The coefficients, numbers or a tensor without a graph.
        rows: The row of coefficients of each leaf; None if there is one row.
        columns: The inputs; None is a column of zeros.
        into: For each output, the column of tensors to write to; a number as in :attr:`Call.outputs` to create
            new tensors; or None if it is not wanted.
        in_place: Whether the tensors to write to belong to others.  Then columns are lists of one length, no tensor
            may be missing or read-only, and the versions of those that are written to increase.

    Returns:
        The output columns, and the sums over elements; or the reason why the kernel cannot run, in which case nothing
        is changed.
    """
    if _run is None:
        return Unsupported('the compiled module is absent, or switched off')
    result = _run(plan.kernel, order, columns, into, coefs, rows, torch.get_num_threads(), in_place)
    return Unsupported(result) if isinstance(result, str) else result


def compute(call: Call, coefs: Tensor | None, tensors: Column, *, required: bool = False) -> tuple[Any, ...]:
    """The concatenated output columns, None for unwanted ones; computed natively if possible.

    If no kernel can run, plain torch computes them, or :class:`UnsupportedError` is raised if one is ``required``.
    """
    values = call.coefs if coefs is None else coefs.detach()
    columns = [tensors[i : i + call.leaves] for i in range(0, len(tensors), call.leaves)]
    native = launch(call.plan, call.order, values, call.rows, columns, call.outputs)
    if isinstance(native, Unsupported):
        if required:
            raise UnsupportedError(native)
        return _separate(plain(call)(coefs, *tensors), tensors)
    results, sums = native
    absent = (None,) * call.leaves
    flat = tuple(itertools.chain.from_iterable(absent if column is None else column for column in results))
    if coefs is None or call.order != Order.VJP_WITH_COEFS:
        return flat
    return (*flat, torch.as_tensor(sums, dtype=torch.float64).reshape(coefs.shape))


def _separate(results: tuple[Any, ...], tensors: Column) -> tuple[Any, ...]:
    """The results; a result that is an argument is replaced by a copy, since a Function must not return arguments."""
    arguments = {id(x) for x in tensors}
    return tuple(y.clone() if y is not None and id(y) in arguments else y for y in results)


def _compute(call: Call, coefs: Tensor | None, tensors: Column) -> tuple[Any, ...]:
    if torch._C._len_torch_dispatch_stack():
        return record(call, coefs, tensors)
    return compute(call, coefs, tensors, required=call.order == Order.FORWARD)


def apply(call: Call, coefs: Tensor | None, tensors: Column) -> Any:
    """Run a computation differentiably.

    Args:
        call: What to compute.
        coefs: The coefficients as a float64 tensor of shape (rows, coefficients), or None.
        tensors: The inputs, column after column; None for a missing one.

    Returns:
        The outputs, column after column, None for unwanted ones; for ``VJP_WITH_COEFS`` also the gradient with respect
        to the coefficients.
    """
    if not any(call.wanted) and call.order != Order.VJP_WITH_COEFS:
        return (None,) * (call.leaves * len(call.wanted))  # a node without outputs could not be differentiated
    coefs, *tensors = all_without_ended((coefs, *tensors))
    if not is_tracked(filter(is_present, (coefs, *tensors))):
        return _compute(call, coefs, tensors)
    return apply_function(_FUNCTIONS[call.order], call, coefs, *tensors)


class _Derivative(torch.autograd.Function):
    """A derivative of a step.  Unless a kernel computes it, its derivative is that of the function in plain torch."""

    @staticmethod
    def forward(call: Call, coefs: Tensor | None, *tensors: Any) -> tuple[Any, ...]:
        return _compute(call, coefs, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _keep(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        return (None, *pull(plain(ctx.call), saved_tensors(ctx), cotangents, ctx.needs_input_grad[1:]))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        with forward_mode(ctx) as saved:
            return push(plain(ctx.call), saved, tangents[1:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, coefs: Tensor | None, *tensors: Any) -> Any:
        if in_dims[1] is not None or call.order == Order.VJP_WITH_COEFS:
            # Each sample has its own coefficients, or its own sums over elements.
            outputs, kept = present(plain(call))
            mapped = iter(torch.vmap(outputs, in_dims=in_dims[1:])(coefs, *tensors))
            return tuple(next(mapped) if k else None for k in kept), tuple(0 if k else None for k in kept)
        # The rest is elementwise, so a batch is a larger leaf.
        batched = [_batched(x, d, info.batch_size) for x, d in zip(tensors, in_dims[2:])]
        results = apply(call, coefs, batched)
        return results, tuple(None if y is None else 0 for y in results)


def _needed(gradients: Column, needs: Column) -> tuple[Any, ...]:
    if all(needs):
        return tuple(gradients)
    return tuple(g if need else None for g, need in zip(gradients, needs))


def _keep(ctx: Any, call: Call, coefs: Tensor | None, *tensors: Any) -> None:
    ctx.call = call
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(coefs, *tensors)
    if forward_ad._current_level >= 0:
        ctx.save_for_forward(coefs, *tensors)


def _batched(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    if x is None:
        return None
    return x.movedim(dim, 0) if dim is not None else x.expand(size, *x.shape)


class Step(_Derivative):
    """The step itself."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, coefs, *tensors = inputs
        if forward_ad._current_level < 0 and not call.reads_params:
            # Without decay before the rule the step is linear in the parameters, so their values need not be saved;
            # plain gradient descent is also linear in the gradients.
            tensors[-call.leaves :] = [None] * call.leaves
            if not call.plan.moments and call.plan.rules == (rules.identity,):
                tensors[: call.leaves] = [None] * call.leaves
        _keep(ctx, call, coefs, *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        call = ctx.call
        coefs, *tensors = saved_tensors(ctx)
        needs = ctx.needs_input_grad[2:]
        if all(c is None for c in cotangents):
            return (None,) * (2 + len(tensors))
        wanted = [any(call.column(needs, i)) for i in range(call.inputs)]
        if not ctx.needs_input_grad[1]:
            passes_through = wanted[-1] and call.passes_params_through()
            if passes_through:
                wanted[-1] = False
            gradients = apply(call.derived(Order.VJP, wanted), coefs, (*tensors, *cotangents))
            if passes_through:
                through: Column = cotangents[: call.leaves]
                if in_transform():  # a Function must not return an argument here
                    through = [None if c is None else c.view_as(c) for c in through]
                gradients = (*gradients[: -call.leaves], *through)
            return (None, None, *_needed(gradients, needs))
        *gradients, own = apply(call.derived(Order.VJP_WITH_COEFS, wanted), coefs, (*tensors, *cotangents))
        return (None, own, *_needed(gradients, needs))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        call = ctx.call
        with forward_mode(ctx) as (coefs, *tensors):
            if tangents[1] is not None:
                return push(plain(call), (coefs, *tensors), tangents[1:])
            return apply(call.derived(Order.JVP, call.wanted), coefs, (*tensors, *tangents[2:]))


class _StepVjp(_Derivative):
    """The vector-Jacobian product of a step."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        call = ctx.call
        coefs, *tensors = saved_tensors(ctx)
        if coefs is not None:
            return _Derivative.backward(ctx, *cotangents)
        needs = ctx.needs_input_grad[2:]
        wanted = [any(call.column(needs, i)) for i in range(call.inputs)]
        gradients = apply(call.derived(Order.VJP_OF_VJP, wanted), None, (*tensors, *cotangents))
        return (None, None, *_needed(gradients, needs))


_FUNCTIONS: dict[Order, type[_Derivative]] = {
    Order.FORWARD: Step,
    Order.VJP: _StepVjp,
    Order.VJP_WITH_COEFS: _Derivative,
    Order.VJP_OF_VJP: _Derivative,
    Order.JVP: _Derivative,
}
