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
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.autodiff import checkpoint
from torchopt.autodiff.closure import is_recording
from torchopt.implicit_diff.binding import refuse_hidden_parameters, signature_of
from torchopt.implicit_diff.custom_root import find_root
from torchopt.levels import is_readable
from torchopt.loop import while_loop
from torchopt.loop.while_loops import repeat


def implicit(
    run: Callable[..., Any],
    optimality_fun: Callable[..., Any],
    reference: Callable[..., Any] | inspect.Signature,
    solve: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """A run without a graph, with the implicit derivative attached to the solution; ``args`` begin with the start."""
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

    The others are made again in the backward pass, by :func:`torchopt.checkpoint`.  Where a condition cannot be read,
    in batches and while compiling, it remembers all.
    """
    if maxiter <= 1 or not is_recording():
        return while_loop(cond_fun, body_fun, init_val, maxiter)
    length = math.isqrt(maxiter - 1) + 1
    val, steps = init_val, 0
    while steps < maxiter:
        running = cond_fun(val)
        if not is_readable(running):
            return while_loop(cond_fun, body_fun, val, maxiter - steps)
        if not running:
            break
        count = min(length, maxiter - steps)
        # The first run checks the dtypes.  Later ones begin with tensors for numbers, and may make others of them.
        first = steps == 0
        val = checkpoint(
            lambda val, count=count, first=first: _with_tensors(repeat(cond_fun, body_fun, val, count, check=first))
        )(val)
        steps += length
    return val


def _with_tensors(val: Any) -> Any:
    """A value with tensors for numbers: a run that is differentiated has tensors where another reads numbers."""
    like = next((x for x in tree.leaves(val) if isinstance(x, Tensor)), torch.zeros(()))

    def as_tensor(x: Any) -> Tensor:
        if isinstance(x, Tensor):
            return x
        return torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None, device=like.device)

    return tree.map(as_tensor, val)
