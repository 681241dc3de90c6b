# SPDX-License-Identifier: Apache-2.0
"""Closure conversion: the tensors that a function closes over become an argument.

A user writes ``solve_cg(lambda v: X.T @ (X @ v), b)`` and expects a derivative with respect to ``X``.  So the function
is run once under a mode that intercepts every torch operation and records the outside tensors that are differentiated
or mapped over.  Then these tensors are arguments of the function: later runs replace them by other tensors, under a
second mode.

A mode does not intercept the inputs of a ``torch.autograd.Function``, and the tensors in a graph that was recorded
earlier (if ``torch.autograd.grad`` differentiates it, or by the function that ``torch.func.vjp`` has returned).  There
is no such dependence if the mode has seen each node of the graph arise.  Otherwise a third run decides: with constants
in place of the recorded tensors, the function still has a derivative.

If only first derivatives are needed, the tensors must be known, but not replaced: the product is recorded again, and
autograd differentiates it.  Then the graph of a single run tells these tensors, if they are leaves or variables of the
function.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from torchopt.autodiff.modes import Capture, Fix, Replace, as_leaf_like, first_sample, next_node
from torchopt.autodiff.tape import Leaves
from torchopt.autodiff.variables import Remembered
from torchopt.graphs import ends_of, leaves_of
from torchopt.levels import all_without_ended, has_tangent, in_transform, without_ended

_is_wrapped = _functorch.is_functorch_wrapped_tensor


class Converted(NamedTuple):
    """A function of lists of tensors whose closed-over tensors are an argument too.

    Attributes:
        fun: The function itself.
        captured: The tensors that it closes over.
        is_complete: Whether the function depends on no other tensors from outside.
        value: Its value at the example, if known.
        remembered: The function with its variables; see :meth:`lasting`.
        is_seen: Whether a mode is known to see each use of the closed-over tensors; otherwise they cannot be replaced.
    """

    fun: Callable[..., Leaves]
    captured: list[Tensor]
    is_complete: bool = True
    value: Leaves | None = None
    remembered: Remembered | None = None
    is_seen: bool = True

    def lasting(self) -> Converted:
        """The same for calls at a later time, which use the present values of the variables of the function.

        The variables of a loop may have other values when the backward pass begins.
        """
        return self._replace(value=None, remembered=self.remembered or Remembered(self.fun))

    def __call__(self, consts: Leaves, *args: Leaves) -> Leaves:
        """Evaluate the function with ``consts`` in place of the tensors that it closes over."""
        fun = self.fun if self.remembered is None else self.remembered.again()
        if not self.captured:
            return fun(*args)
        with Replace({id(x): as_leaf_like(x, c) for x, c in zip(self.captured, consts)}) as mode:
            return mode.returned(fun(*args))


def is_recording() -> bool:
    """Whether results computed now can have derivatives or be mapped over."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0 or in_transform()


def closure_convert(fun: Callable[..., Leaves], *example: Leaves, lazily: bool = False) -> Converted:
    """Make the tensors that a function closes over one of its arguments.

    Args:
        fun: A function of lists of tensors, which returns one.
        *example: Arguments for a trial run, or for two or three if the function closes over tensors.  They may be
            leaves that require grad, but have no other derivatives.
        lazily: Whether to look for the tensors in the variables first, which saves a run; if they
            are found there, :attr:`Converted.is_seen` is False.
    """
    if not is_recording():
        return Converted(fun, [])
    transformed = in_transform()
    arguments = [x for leaves in example for x in leaves]
    ends: dict[int, Any] = {}
    if not transformed:
        # A run without a mode detects at lower cost that the function closes over no such tensor.
        start = next_node()
        value = fun(*example)
        if forward_ad._current_level < 0 and not any(x.requires_grad or _is_wrapped(x) for x in value):
            return Converted(fun, [], value=value)
        if not any(map(has_tangent, value)) and not (ends := _ends(value, arguments, start)):
            return Converted(fun, [], value=value)
        if lazily and forward_ad._current_level < 0 and not torch._C._len_torch_function_stack():
            remembered = Remembered(fun)
            captured = _among_variables(ends, remembered)
            if captured:
                # Leaves that the function has created are gone with the graph.
                outside = [weakref.ref(x) for x in captured]
                value = [y.detach() for y in value]
                del captured
                ends.clear()
                found = [x for x in (reference() for reference in outside) if x is not None]
                return Converted(fun, found, True, value, remembered, is_seen=not found)
    with Capture(arguments) as seen:
        value = seen.returned(fun(*example))
    noted = seen.captured
    if ends and ends.keys() == set(map(_key, noted.values())) and seen.has_seen_all_nodes:
        # All nodes of the graph were seen to arise, and it ends at the tensors that were seen.
        return Converted(fun, list(noted.values()), value=value)
    found = _origins(value, arguments)
    if not found:
        # The result is a constant; but under vmap the constant may differ between samples.
        noted = {i: x for i, x in noted.items() if _is_wrapped(x)}
        if not noted:
            return Converted(fun, [], value=value)
    incomplete = Converted(fun, list(noted.values()), is_complete=False, value=value)
    if seen.uses_a_graph:
        return incomplete
    if transformed:
        example = tuple([first_sample(x) for x in leaves] for leaves in example)
    try:
        with Fix(noted) as fixed:
            constant = fixed.returned(fun(*example))
    except RuntimeError:  # from torch.autograd.grad, of a tensor that has lost its graph
        return incomplete
    # Tensors that differ between runs were created inside.
    captured = [x for i, x in noted.items() if i in fixed.used]
    known = {id(x) for x in found}
    hidden = [x for x in _origins(constant, [*arguments, *fixed.leaves()]) if id(x) in known or has_tangent(x)]
    is_complete = not hidden and not any(is_batched for y in constant for _, is_batched in _levels(y))
    return Converted(fun, captured, is_complete, value)


def _ends(values: Leaves, known: Leaves, start: int) -> dict[Any, Any]:
    """Where the graph recorded since ``start`` ends: unknown leaves, and nodes from before, by their keys."""
    values = all_without_ended(values)
    ends: dict[Any, Any] = {id(y): y for y in values if y.requires_grad and y.grad_fn is None}
    for node, output in ends_of(values, start):
        leaf = getattr(node, 'variable', None)
        ends[(id(node), output) if leaf is None else id(leaf)] = node if leaf is None else leaf
    for x in known:
        ends.pop(id(x), None)
    return ends


def _key(x: Tensor) -> Any:
    """The key of a tensor as an end of a graph."""
    return id(x) if x.grad_fn is None else (id(x.grad_fn), x.output_nr)


def _among_variables(ends: dict[Any, Any], remembered: Remembered) -> list[Tensor]:
    """The tensors at which a graph ends, if they are leaves, or a single variable of the function; else none.

    Of several tensors that are no leaves, one may have been computed from another.
    """
    if all(isinstance(x, Tensor) for x in ends.values()):
        return list(ends.values())
    variables = (x for x in remembered.values() if isinstance(x, Tensor) and _key(x) in ends)
    return list(itertools.islice(variables, 1)) if len(ends) == 1 else []


def _origins(values: Leaves, known: Leaves) -> list[Tensor]:
    """The tensors on which derivatives of values depend: unknown leaves of the graph, and tensors with a tangent."""
    mine = {id(x) for x in known}
    found = []
    for y in values:
        found += [leaf for x, _ in _levels(y) for leaf in leaves_of([x]) if id(leaf) not in mine]
        if has_tangent(y):
            found.append(y)
    return found


def _levels(x: Tensor) -> Iterator[tuple[Tensor, bool]]:
    """The tensor at each level of the transforms, the innermost first, and whether it is a batch at this level."""
    x = without_ended(x)
    while _is_wrapped(x):
        yield x, _functorch.is_batchedtensor(x)
        x = without_ended(_functorch.get_unwrapped(x))
    yield x, False
