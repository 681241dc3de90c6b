# SPDX-License-Identifier: Apache-2.0
"""A whole optimizer step as one kernel call and one autograd node, with derivatives of every order.

A step over a tree is a function of flat columns of tensors (gradients, moments, parameters) and of coefficients.  The
kernels compute it, its vector-Jacobian product, the vector-Jacobian product of that, and its Jacobian-vector product.
Each is an autograd Function whose derivative is the next.  Beyond the last, and if a kernel cannot run,
:mod:`torchopt.rules` computes the same function and torch differentiates it.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import rules
from torchopt._C.plans import Plan
from torchopt.numerics import apply_function, forward_mode, in_transform, saved_tensors, without_ended

__all__ = ['Call', 'Order', 'Unsupported', 'UnsupportedError', 'is_tracked', 'bind_kernels', 'apply', 'launch']

Column = Sequence[Any]
"""One tensor, or None, for each leaf."""


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """The result if the engine cannot run a step.  Nothing was changed.

    Attributes:
        reason: The reason, for an error message.
    """

    reason: str


class UnsupportedError(Exception):
    """The step itself, and not a derivative of it, cannot run natively."""

    def __init__(self, reason: Unsupported) -> None:
        super().__init__(reason.reason)
        self.reason = reason


class Order(enum.IntEnum):
    """Which derivative of a step; the numbers are those of ``include/torchopt/catalogue.hpp``."""

    FORWARD = 0
    VJP = 1
    VJP_WITH_COEFS = 2
    VJP_OF_VJP = 3
    JVP = 4


@dataclasses.dataclass(eq=False)
class Call:
    """A computation on tensors, which are passed separately.

    Attributes:
        plan: The rules of the step.
        order: The derivative of the step to compute.
        leaves: The number of leaves of the tree.
        wanted: Whether to compute each output column.
        coefs: The coefficients, row after row; None if they are a tensor, which is then passed separately.
        rows: The row of coefficients of each leaf; None if there is one row.
        onto_params: Whether the first result is added to the parameters and has their dtype.
    """

    plan: Plan
    order: Order
    leaves: int
    wanted: tuple[bool, ...]
    coefs: tuple[float, ...] | None
    rows: tuple[int, ...] | None
    onto_params: bool

    @property
    def inputs(self) -> int:
        """The number of input columns."""
        step, results = self.plan.moments + 2, self.plan.moments + 1
        if self.order == Order.FORWARD:
            return step
        if self.order == Order.JVP:
            return 2 * step
        return step + results + (step if self.order == Order.VJP_OF_VJP else 0)

    def derived(self, order: Order, wanted: Iterable[bool]) -> Call:
        """A derivative of this computation."""
        return Call(self.plan, order, self.leaves, tuple(wanted), self.coefs, self.rows, self.onto_params)

    def integrated(self) -> Call:
        """The computation of which this one is a derivative."""
        if self.order == Order.VJP_OF_VJP:
            return self.derived(Order.VJP, [True] * (self.plan.moments + 2))
        return self.derived(Order.FORWARD, [True] * (self.plan.moments + 1))

    def passes_params_through(self) -> bool:
        """Whether the step is ``p + u`` with an update that does not depend on ``p``."""
        if self.coefs is None or not self.onto_params or self.reads_params():
            return False
        return all(weight == 1.0 for weight in self.coefs[3 :: self.row_size])

    def reads_params(self) -> bool:
        """Whether the rule depends on the values of the parameters, for example by weight decay before it."""
        return self.coefs is None or any(self.coefs[1 :: self.row_size])

    @property
    def row_size(self) -> int:
        """The number of coefficients of a row."""
        return self.plan.coefs

    def output_dtypes(self) -> list[int]:
        """For each output, the index of the input with the same dtype; -1 for the widest dtype."""
        params = self.plan.moments + 1
        if self.order in (Order.FORWARD, Order.JVP):
            return [params if self.onto_params else -1, *range(1, params)]
        return list(range(self.integrated().inputs))

    def column(self, tensors: Column, i: int) -> Column:
        """Column ``i`` of the concatenated columns ``tensors``."""
        return tensors[i * self.leaves : (i + 1) * self.leaves]


_run: Callable[..., Any] | None = None


def bind_kernels(run: Callable[..., Any] | None) -> None:
    """Set the function of the compiled module that runs kernels; None means that plain torch computes everything."""
    global _run  # noqa: PLW0603  # set when the package is imported
    _run = run


def launch(
    call: Call, coefs: Tensor | None, columns: Sequence[Column | None], into: Sequence[Column | int | None]
) -> Any:
    """Run a kernel outside of autograd.

    Args:
        call: What to compute.
        coefs: The coefficients if they are a tensor, otherwise None.
        columns: The inputs; None is a column of zeros.
        into: For each output, the column of tensors to write to; or a number from :meth:`Call.output_dtypes` to create
            new tensors.

    Returns:
        The output columns; or the reason why the kernel cannot run, in which case nothing is changed.
    """
    result = _native(call, coefs, columns, into)
    return result if isinstance(result, Unsupported) else result[0]


def _native(
    call: Call, coefs: Tensor | None, columns: Sequence[Column | None], into: Sequence[Column | int | None]
) -> Any:
    if _run is None:
        return Unsupported('the compiled module is absent, or switched off')
    values = call.coefs if coefs is None else coefs.detach()
    result = _run(call.plan.kernel, call.order, columns, into, values, call.rows, torch.get_num_threads())
    return Unsupported(result) if isinstance(result, str) else result


def _compute(call: Call, coefs: Tensor | None, tensors: Column) -> tuple[Any, ...]:
    """The concatenated output columns, None for unwanted ones; computed natively if possible."""
    into = [like if wanted else None for like, wanted in zip(call.output_dtypes(), call.wanted)]
    native = _native(call, coefs, [call.column(tensors, i) for i in range(call.inputs)], into)
    if isinstance(native, Unsupported):
        if call.order == Order.FORWARD and not in_transform():
            raise UnsupportedError(native)
        return _separate(plain(call)(coefs, *tensors), tensors)
    columns, sums = native
    absent = (None,) * call.leaves
    flat = tuple(itertools.chain.from_iterable(absent if column is None else column for column in columns))
    if coefs is None or call.order != Order.VJP_WITH_COEFS:
        return flat
    return (*flat, torch.as_tensor(sums, dtype=torch.float64).reshape(coefs.shape))


def _separate(results: tuple[Any, ...], tensors: Column) -> tuple[Any, ...]:
    """The results; a result that is an argument is replaced by a view, since a Function must not return arguments."""
    arguments = {id(x) for x in tensors}
    return tuple(y.clone() if y is not None and id(y) in arguments else y for y in results)


def is_tracked(tensors: Iterable[Any]) -> bool:
    """Whether results computed from these tensors are differentiated, mapped or otherwise transformed."""
    return (
        in_transform()
        or forward_ad._current_level >= 0
        or (torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors))
    )


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
    coefs, *tensors = map(without_ended, (coefs, *tensors))
    if not is_tracked((coefs, *tensors)):
        return _compute(call, coefs, tensors)
    return apply_function(_FUNCTIONS[call.order], call, coefs, *tensors)


# The same in plain torch ---------------------------------------------------------------------------------------------


def plain(call: Call) -> Callable[..., tuple[Any, ...]]:
    """The computation in plain torch: ``f(coefs, *tensors)``, differentiable to any order."""
    if call.order == Order.FORWARD:
        return lambda coefs, *tensors: _plain_step(call, coefs, tensors)
    inner = call.integrated()
    cut = inner.inputs * inner.leaves
    if call.order == Order.JVP:
        return lambda coefs, *tensors: _push(plain(inner), (coefs, *tensors[:cut]), (None, *tensors[cut:]))

    def pull(coefs: Any, *tensors: Any) -> tuple[Any, ...]:
        inputs, cotangents = _with_zeros(inner, tensors[:cut], tensors[cut:]), tensors[cut:]
        wanted = [w and x is not None for w, x in zip(_each(call, call.wanted), inputs)]
        with_coefs = call.order == Order.VJP_WITH_COEFS
        own, *rest = _pull(plain(inner), (coefs, *inputs), cotangents, [with_coefs, *wanted])
        return (*rest, own) if with_coefs else tuple(rest)

    return pull


def _each(call: Call, columns: Iterable[bool]) -> Iterable[bool]:
    return itertools.chain.from_iterable([flag] * call.leaves for flag in columns)


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
    shapes = [next((x for x in row if x is not None), None) for row in zip(*_columns(inner, (*inputs, *cotangents)))]
    kept = list(inputs)
    for first in (0, (inner.inputs - 1) * inner.leaves):
        for i, like in enumerate(shapes, first):
            if kept[i] is None and like is not None:
                kept[i] = torch.zeros_like(like)
    return kept


def _columns(call: Call, tensors: Column) -> list[Column]:
    return [tensors[i : i + call.leaves] for i in range(0, len(tensors), call.leaves)]


def _split(arguments: Column, chosen: Sequence[bool]) -> tuple[list[Any], Callable[..., list[Any]]]:
    """The chosen arguments, and a function that merges them with the others."""

    def merge(*values: Any) -> list[Any]:
        supplied = iter(values)
        return [next(supplied) if c else x for c, x in zip(chosen, arguments)]

    return [x for x, c in zip(arguments, chosen) if c], merge


def _pull(
    function: Callable[..., tuple[Any, ...]], arguments: Column, cotangents: Column, wanted: Sequence[bool]
) -> list[Any]:
    """Reverse mode: the gradients with respect to the wanted arguments, None for the others."""
    variables, merge = _split(arguments, wanted)
    if not variables:
        return [None] * len(arguments)
    kept: list[int] = []

    def outputs(*values: Any) -> tuple[Tensor, ...]:
        results = function(*merge(*values))
        kept[:] = [i for i, y in enumerate(results) if y is not None]
        return tuple(results[i] for i in kept)

    if all(c is None for c in cotangents):
        return [None] * len(arguments)
    ys, pull = _vjp(outputs, *variables)
    cs = [cotangents[i] if i < len(cotangents) else None for i in kept]
    gradients = iter(pull(tuple(torch.zeros_like(y) if c is None else c.to(y.dtype) for y, c in zip(ys, cs))))
    return [next(gradients) if w else None for w in wanted]


def _vjp(function: Callable[..., Any], *primals: Tensor) -> Any:
    return torch.func.vjp(function, *primals)  # its annotation has three results; without has_aux there are two


def _push(function: Callable[..., tuple[Any, ...]], arguments: Column, tangents: Column) -> tuple[Any, ...]:
    """Forward mode: the tangents of the results; None is a zero tangent."""
    moving = [t is not None and x is not None for x, t in zip(arguments, tangents)]
    variables, merge = _split(arguments, moving)
    directions = tuple(t for t, m in zip(tangents, moving) if m)
    kept: list[bool] = []

    def outputs(*values: Any) -> tuple[Tensor, ...]:
        results = function(*merge(*values))
        kept[:] = [y is not None for y in results]
        return tuple(y for y in results if y is not None)

    # Use reverse mode twice, since torch's forward mode does not nest outside of torch.func: the gradients are linear
    # in the cotangents, and the transpose of this map is forward mode.
    ys, pull = _vjp(outputs, *variables)
    _, push = _vjp(lambda *cs: pull(cs), *[torch.zeros_like(y) for y in ys])
    # A tangent must not share memory: a backward pass may accumulate cotangents, and with them their tangents, in
    # place, which would change every tensor with the same memory.
    moved = iter(push(directions))
    return tuple(next(moved).clone() if k else None for k in kept)


# The autograd Functions ----------------------------------------------------------------------------------------------


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
        return (None, *_pull(plain(ctx.call), saved_tensors(ctx), cotangents, ctx.needs_input_grad[1:]))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        with forward_mode(ctx) as saved:
            return _push(plain(ctx.call), saved, tangents[1:])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, coefs: Tensor | None, *tensors: Any) -> Any:
        if in_dims[1] is not None or call.order == Order.VJP_WITH_COEFS:
            # Each sample has its own coefficients, or its own sums over elements.
            return _map_plain(call, in_dims[1:], (coefs, *tensors))
        # The rest is elementwise, so a batch is a larger leaf.
        batched = [_batched(x, d, info.batch_size) for x, d in zip(tensors, in_dims[2:])]
        results = apply(call, coefs, batched)
        return results, tuple(None if y is None else 0 for y in results)


def _needed(gradients: Column, needs: Column) -> tuple[Any, ...]:
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


def _map_plain(call: Call, in_dims: tuple[Any, ...], arguments: Column) -> tuple[Any, ...]:
    kept: list[bool] = []

    def outputs(*values: Any) -> tuple[Tensor, ...]:
        results = plain(call)(*values)
        kept[:] = [y is not None for y in results]
        return tuple(y for y in results if y is not None)

    mapped = iter(torch.vmap(outputs, in_dims=in_dims)(*arguments))
    return tuple(next(mapped) if k else None for k in kept), tuple(0 if k else None for k in kept)


class _Step(_Derivative):
    """The step itself."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, coefs, *tensors = inputs
        if call.coefs is not None and not call.reads_params() and forward_ad._current_level < 0:
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
                return _push(plain(call), (coefs, *tensors), tangents[1:])
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
    Order.FORWARD: _Step,
    Order.VJP: _StepVjp,
    Order.VJP_WITH_COEFS: _Derivative,
    Order.VJP_OF_VJP: _Derivative,
    Order.JVP: _Derivative,
}
