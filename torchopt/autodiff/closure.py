# SPDX-License-Identifier: Apache-2.0
"""Closure conversion: the tensors that a function closes over become an argument.

A user writes ``solve_cg(lambda v: X.T @ (X @ v), b)`` and expects a derivative with respect to ``X``.  So the function
is run once under a mode that sees every operation of torch and records the outside tensors that are differentiated or
mapped over.  From then on these tensors are arguments of the function: it runs under a mode that replaces them by
others.

A mode does not see everything: not the tensors that a ``torch.autograd.Function`` is applied to, and not those in a
graph that was recorded earlier (``torch.autograd.grad`` of it, or what ``torch.func.vjp`` has returned).  Such
dependences are detected, since the function still has a derivative with constants in place of the recorded tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from torchopt.autodiff.modes import Capture, Fix, Replace, as_leaf_like, first_sample
from torchopt.autodiff.tape import Leaves
from torchopt.graphs import leaves_of
from torchopt.numerics import has_tangent, in_transform, is_transformed, without_ended

__all__ = ['Converted', 'closure_convert', 'is_recording']


class Converted(NamedTuple):
    """A function of lists of tensors whose closed-over tensors are an argument too.

    Attributes:
        fun: The function itself.
        captured: The tensors that it closes over.
        is_complete: Whether these are all that it depends on.
        value: Its value at the example, if that is known.
    """

    fun: Callable[..., Leaves]
    captured: list[Tensor]
    is_complete: bool = True
    value: Leaves | None = None

    def __call__(self, consts: Leaves, *args: Leaves) -> Leaves:
        """The function with other tensors in place of those that it closes over."""
        if not self.captured:
            return self.fun(*args)
        with Replace({id(x): as_leaf_like(x, c) for x, c in zip(self.captured, consts)}):
            return self.fun(*args)


def is_recording() -> bool:
    """Whether anything that is computed now can have a derivative, or is mapped over."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0 or in_transform()


def closure_convert(fun: Callable[..., Leaves], *example: Leaves, is_common: bool = True) -> Converted:
    """Make the tensors that a function closes over one of its arguments.

    Args:
        fun: A function of lists of tensors, which returns one.
        *example: Arguments to run it on, twice if it closes over tensors; without derivatives, save that they may be
            leaves that require grad.
        is_common: Whether such functions commonly close over tensors.  If not, it is run without a mode first, which
            detects at less cost that it does not.
    """
    if not is_recording():
        return Converted(fun, [])
    arguments = [x for leaves in example for x in leaves]
    if not (is_common or in_transform()) and not _origins(value := fun(*example), arguments):
        return Converted(fun, [], value=value)
    with Capture(arguments) as seen:
        value = fun(*example)
    found, noted = _origins(value, arguments), seen.captured
    if not found:
        # A constant, whatever it was made from; but under vmap each sample may have one of its own.
        noted = {i: x for i, x in noted.items() if _functorch.is_functorch_wrapped_tensor(x)}
        if not noted:
            return Converted(fun, [], value=value)
    incomplete = Converted(fun, list(noted.values()), is_complete=False, value=value)
    if seen.uses_a_graph:
        return incomplete
    if in_transform():
        example = tuple([first_sample(x) for x in leaves] for leaves in example)
    try:
        with Fix(noted) as fixed:
            constant = fun(*example)
    except RuntimeError:  # from torch.autograd.grad, of a tensor that has lost its graph
        return incomplete
    # What differs from one run to the next was made inside.
    captured = [x for i, x in noted.items() if i in fixed.used]
    known = {id(x) for x in found}
    hidden = [x for x in _origins(constant, [*arguments, *fixed.leaves()]) if id(x) in known or has_tangent(x)]
    is_complete = not hidden and not any(is_batched for y in constant for _, is_batched in _levels(y))
    return Converted(fun, captured, is_complete, value)


def _origins(values: Leaves, known: Leaves) -> list[Tensor]:
    """Where the derivatives of some values come from: leaves other than the known ones, and what has a tangent."""
    mine = {id(x) for x in known}
    found = []
    for y in values:
        if type(y) is Tensor and not (y.requires_grad or is_transformed(y) or has_tangent(y)):
            continue
        found += [leaf for x, _ in _levels(y) for leaf in leaves_of([x]) if id(leaf) not in mine]
        if has_tangent(y):
            found.append(y)
    return found


def _levels(x: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """What each transform sees of a tensor, the innermost first, and whether it is a batch there."""
    x = without_ended(x)
    while _functorch.is_functorch_wrapped_tensor(x):
        yield x, _functorch.is_batchedtensor(x)
        x = without_ended(_functorch.get_unwrapped(x))
    yield x, False
