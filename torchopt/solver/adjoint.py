# SPDX-License-Identifier: Apache-2.0
"""How a run is differentiated: as a root of its optimality condition, or through its steps.

A run takes one of three ways; all of them serve reverse and forward mode, and every order.

- Implicit: the run leaves no graph.  The implicit function theorem gives the derivative at the solution, which is exact
  if the solution is; the start has no influence.  See :mod:`torchopt.implicit_diff`.
- Unrolled: autograd differentiates the steps that were made.  The derivative is that of the last iterate, with respect
  to the start too.  Memory grows with the number of steps.
- Checkpointed: as unrolled, but only every so many steps are remembered, and those between are made again in the
  backward pass: memory grows with the square root of ``maxiter``, at the cost of a second run.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import tree
from torchopt.autodiff.closure import Converted, closure_convert
from torchopt.implicit_diff.binding import refuse_hidden_parameters, signature_of
from torchopt.implicit_diff.custom_root import find_root
from torchopt.implicit_diff.root import select_tensors
from torchopt.loop import while_loop
from torchopt.numerics import apply_function, in_transform, saved_tensors

__all__ = ['checkpointed_loop', 'implicit']


def implicit(
    run: Callable[..., Any],
    optimality_fun: Callable[..., Any],
    reference: Callable[..., Any] | inspect.Signature,
    solve: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A run without a graph, with the implicit derivative attached to the solution.

    Args:
        run: ``run(*args, **kwargs)`` returns parameters and state.
        optimality_fun: ``optimality_fun(params, *args, **kwargs)``, zero at the solution.
        reference: Its signature.
        solve: The linear solver.
        args: The start, and the positional arguments.
        kwargs: The keyword arguments.
    """
    refuse_hidden_parameters((args[1:], kwargs))

    def without_recording(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        with torch.no_grad():
            return tuple(run(*args, **kwargs))

    return find_root(
        without_recording, optimality_fun, signature_of(reference), args, kwargs, has_aux=True, solve=solve
    )


def checkpointed_loop(
    cond_fun: Callable[[Any], Any], body_fun: Callable[[Any], Any], init_val: Any, maxiter: int
) -> Any:
    """A loop like :func:`torchopt.loop.while_loop` that remembers about the square root of its steps.

    Inside ``torch.func`` transforms, and where a step depends on tensors in a way that cannot be seen, it remembers
    all.
    """
    if in_transform() or forward_ad._current_level >= 0 or not torch.is_grad_enabled() or maxiter <= 1:
        return while_loop(cond_fun, body_fun, init_val, maxiter)

    def one_step(leaves: list[Tensor]) -> list[Tensor]:
        return [x for x in tree.leaves(body_fun(start.replace(leaves))) if isinstance(x, Tensor)]

    start = select_tensors(init_val)
    step = closure_convert(one_step, start.selected)
    if not step.is_complete:
        return while_loop(cond_fun, body_fun, init_val, maxiter)
    length = math.isqrt(maxiter - 1) + 1
    val, steps = init_val, 0
    while steps < maxiter and bool(cond_fun(val)):
        segment = _Segment(cond_fun, body_fun, val, min(length, maxiter - steps), step.captured)
        val, steps = segment.value(), steps + length
    return val


class _Segment:
    """Some steps of a loop, as a function of the tensors of the first value and of those that a step closes over."""

    def __init__(
        self,
        cond_fun: Callable[[Any], Any],
        body_fun: Callable[[Any], Any],
        val: Any,
        count: int,
        captured: list[Tensor],
    ) -> None:
        self.cond_fun, self.body_fun, self.count = cond_fun, body_fun, count
        self.start, self.captured = select_tensors(val), captured
        self.end: tree.Selection

    def value(self) -> Any:
        """The value after the steps."""
        found = iter(apply_function(_Checkpoint, self, *self.start.selected, *self.captured))
        return self.end.replace([next(found) for _ in self.end.selected])

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tensors of the value after the steps."""
        n = len(self.start.selected)

        def run(leaves: list[Tensor]) -> list[Tensor]:
            self.end = select_tensors(while_loop(self.cond_fun, self.body_fun, self.start.replace(leaves), self.count))
            return self.end.selected

        return Converted(run, self.captured)(tensors[n:], tensors[:n])


class _Checkpoint(torch.autograd.Function):
    """``apply(segment, *tensors)``: the steps once without a graph, and once more in the backward pass."""

    @staticmethod
    def forward(ctx: Any, segment: _Segment, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.segment = segment
        ctx.save_for_backward(*tensors)
        # With a graph, so that the steps are the same as in the backward pass: numbers without one would be floats.
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_(need) for x, need in zip(tensors, ctx.needs_input_grad[1:])]
            found = segment(inputs)
        ctx.mark_non_differentiable(*(x for x in found if not x.requires_grad))
        return tuple(x.detach().clone() for x in found)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        needs, again = ctx.needs_input_grad[1:], torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [
                (x.view_as(x) if again and x.requires_grad else x.detach().requires_grad_()) if need else x.detach()
                for x, need in zip(saved_tensors(ctx), needs)
            ]
            pairs = [(y, g) for y, g in zip(ctx.segment(inputs), cotangents) if y.requires_grad]
        wanted = [x for x, need in zip(inputs, needs) if need]
        ys, gs = [y for y, _ in pairs], [g for _, g in pairs]
        found = iter(torch.autograd.grad(ys, wanted, gs, allow_unused=True, create_graph=again) if pairs else ())
        return None, *(next(found, None) if need else None for need in needs)
