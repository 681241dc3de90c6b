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
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from torchopt.autodiff.tape import Leaves
from torchopt.graphs import leaves_of
from torchopt.numerics import beneath, has_tangent, in_transform, is_transformed, without_ended

__all__ = ['Converted', 'closure_convert', 'first_sample', 'is_recording']


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
        with _Replace({id(x): _as_leaf_like(x, c) for x, c in zip(self.captured, consts)}):
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
    with _Capture(arguments) as seen:
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
        with _Fix(noted) as fixed:
            constant = fun(*example)
    except RuntimeError:  # from torch.autograd.grad, of a tensor that has lost its graph
        return incomplete
    # What differs from one run to the next was made inside.
    captured = [x for i, x in noted.items() if i in fixed.used]
    known = {id(x) for x in found}
    hidden = [x for x in _origins(constant, [*arguments, *fixed.leaves()]) if id(x) in known or has_tangent(x)]
    is_complete = not hidden and not any(is_batched for y in constant for _, is_batched in _levels(y))
    return Converted(fun, captured, is_complete, value)


def first_sample(x: Tensor) -> Tensor:
    """The value of a tensor without derivatives; of the batches of ``vmap``, that of the first sample."""
    x = without_ended(x)
    with beneath(x):
        if not _functorch.is_functorch_wrapped_tensor(x):
            return x.detach()
        within = _functorch.get_unwrapped(x)
        if _functorch.is_batchedtensor(x):
            within = within.select(_functorch.maybe_get_bdim(x), 0)
        return first_sample(within)


def _as_leaf_like(original: Tensor, x: Tensor) -> Tensor:
    """The same tensor; a leaf that requires grad if ``original`` does, by which a function may differentiate inside."""
    if x.requires_grad or not original.requires_grad or in_transform() or not torch.is_grad_enabled():
        return x
    return x.detach().requires_grad_()


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


class _Capture(TorchFunctionMode):
    """Notes the tensors from outside that operations use."""

    def __init__(self, inside: Leaves) -> None:
        super().__init__()
        self.made = {id(x): x for x in inside}
        self.captured: dict[int, Tensor] = {}
        self.uses_a_graph = False
        """Whether it differentiates what was computed outside, before."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = _tensors(result)
        if made:  # otherwise a shape or a dtype was read
            for x in _tensors((args, kwargs or {})):
                if id(x) not in self.made and _matters(x):
                    self.captured[id(x)] = x
            if func is torch.autograd.grad:
                self.uses_a_graph |= any(id(x) in self.captured for x in _tensors(args[0]))
            for x in made:
                if id(x) not in self.captured:
                    self.made[id(x)] = x
        return result


def _matters(x: Tensor) -> bool:
    return _functorch.is_functorch_wrapped_tensor(x) or x.requires_grad or has_tangent(x)


class _Replace(TorchFunctionMode):
    """Puts tensors in the places of others."""

    def __init__(self, replacement: dict[int, Tensor]) -> None:
        super().__init__()
        self.replacement = replacement

    def new(self, x: Tensor) -> Tensor:
        """The replacement of a tensor."""
        return self.replacement.get(id(x), x)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replaced: Any = self._replace((args, kwargs or {}))
        return func(*replaced[0], **replaced[1])

    def _replace(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return self.new(x)
        if type(x) in (list, tuple):
            return type(x)(self._replace(y) for y in x)
        if type(x) is dict:
            return {k: self._replace(y) for k, y in x.items()}
        return x


class _Fix(_Replace):
    """Puts constants in the places of tensors, and notes which of them were used.

    A constant is made when its tensor is met: one that was made inside is not met again, and could not be used.
    """

    def __init__(self, noted: dict[int, Tensor]) -> None:
        super().__init__({})
        self.noted = noted
        self.used: set[int] = set()

    def leaves(self) -> list[Tensor]:
        """The constants that require grad."""
        return list(self.replacement.values())

    def new(self, x: Tensor) -> Tensor:
        """The constant."""
        if id(x) not in self.noted:
            return x
        self.used.add(id(x))
        if in_transform():
            return first_sample(x.detach())  # detached first, for a mode around this one may replace it
        if id(x) not in self.replacement:
            self.replacement[id(x)] = _as_leaf_like(x, x.detach())
        return self.replacement[id(x)]


def _tensors(x: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    found, left = [], [x]
    while left:
        y = left.pop()
        if isinstance(y, Tensor):
            found.append(y)
        elif isinstance(y, (list, tuple)):
            left.extend(reversed(y))
        elif isinstance(y, dict):
            left.extend(reversed(y.values()))
    return found
