# SPDX-License-Identifier: Apache-2.0
"""Function modes that intercept every torch operation, to record the tensors from outside or to replace them."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from torchopt.autodiff.tape import Leaves
from torchopt.graphs import leaves_of
from torchopt.levels import (
    apply_function,
    beneath,
    has_tangent,
    in_transform,
    is_tensor,
    without_ended,
    without_wrappers,
)


class Replace(TorchFunctionMode):
    """Replace tensors by others."""

    def __init__(self, replacement: dict[int, Tensor]) -> None:
        super().__init__()
        self.replacement = replacement
        self.ids = replacement.keys()
        self.used: set[int] = set()

    def new(self, x: Tensor) -> Tensor:
        """The replacement of a tensor."""
        new = self.replacement.get(id(x))
        if new is None:
            return x
        self.used.add(id(x))
        return new

    def returned(self, outputs: Leaves) -> Leaves:
        """The results of a function, which may be tensors from outside that no operation has used."""
        return [self.new(y) for y in outputs]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.ids.isdisjoint(map(id, tensors_in(*args, *kwargs.values()))):  # few operations use one of them
            args, kwargs = self._replace(args), self._replace(kwargs)
        return func(*args, **kwargs)

    def _replace(self, x: Any) -> Any:
        """The same nested tuple, list or dict with other tensors."""
        if isinstance(x, dict):
            return dict(zip(x, self._replace([*x.values()])))
        new = [
            self.new(y) if isinstance(y, Tensor) else self._replace(y) if type(y) in (tuple, list, dict) else y
            for y in x
        ]
        return tuple(new) if type(x) is tuple else new


class Capture(Replace):
    """Record the tensors from outside that operations use.

    Args:
        inside: The arguments of the function that is run.
        replacement: Maps the ids of tensors to the arguments that replace them.

    Attributes:
        constants: The other tensors, each as a weak reference with its version at the first use.
        statistics: The running statistics that were updated; torch does not count this as a new version.
        optional: The ids of captured tensors that a later run may not use.
    """

    def __init__(self, inside: Leaves, replacement: dict[int, Tensor] | None = None) -> None:
        super().__init__(replacement or {})
        self.inside = inside
        # Weak references, since keeping all results alive would need far more memory.
        self._known = {id(x): weakref.ref(x) for x in inside}  # what was made or captured
        self._given = len(self._known)
        self._allocated: set[int] = set()
        self._old: dict[int, Tensor] = {}
        self._young: dict[int, weakref.ref[Tensor]] = {}
        self.constants: dict[int, tuple[weakref.ref[Tensor], int | None]] = {}
        self.statistics: dict[int, Tensor] = {}
        self.optional: set[int] = set()
        self.uses_a_graph = False
        """Whether the function differentiates a graph that was recorded outside, earlier."""
        top = _functorch.peek_interpreter_stack()
        self.depth = 0 if top is None else top.level()
        self.start = self._next = next_node()
        # Modes of others, which get the operations after this one, may use further tensors.
        outer = _get_current_function_mode_stack() if torch._C._len_torch_function_stack() else ()  # type: ignore[no-untyped-call]
        self._has_gap = not all(isinstance(mode, Replace) for mode in outer)
        self.has_hidden = False
        """Whether a tensor arose inside where this mode sees no inputs: as a sample of a vmap, or in another thread."""

    @property
    def has_seen_all_nodes(self) -> bool:
        """Whether each node of the run was created by an operation that this mode has intercepted, with its arguments.

        The sequence numbers of nodes are consecutive, so that a node which arises elsewhere, such as that of an
        autograd Function, leaves a gap.  A transform of torch.func wraps its arguments, which no mode sees; so
        operations on wrapped tensors are no proof.
        """
        return not (self._has_gap or self.has_hidden) and self._next == next_node()

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, known = kwargs or {}, self._known
        inputs = tensors_in(*args, *kwargs.values())
        if not self.ids.isdisjoint(map(id, inputs)):
            args, kwargs = self._replace(args), self._replace(kwargs)
            inputs = tensors_in(*args, *kwargs.values())
        new = [x for x in inputs if known.get(id(x), _gone)() is not x]
        if new:
            new = [x for x in new if not self._has_memory_of_result(x)]
        versions = [*map(version_of, new)]
        if not self._has_gap:
            is_known = self._next == next_node() and _is_function_of_arguments(func, kinds)
            self._has_gap = not is_known or True in map(_is_wrapped, inputs)
        result = func(*args, **kwargs)
        self._next = next_node()
        results = [result] if isinstance(result, Tensor) else tensors_in(result)
        if not results and not _writes(func):  # a shape or a dtype was read
            return result
        for x, version in zip(new, versions):
            if self._is_from_outside(x):
                self._capture(x)
                continue
            self.has_hidden |= matters(x)
            if id(x) not in self.constants:
                self.constants[id(x)] = (weakref.ref(x), version)
        if func in _NORMALIZATIONS:
            self.statistics.update((id(x), x) for x in _statistics(func, args, kwargs))
        if func is torch.autograd.grad:
            self.uses_a_graph |= any(self._has_captured(x) for x in tensors_in(args[0]))
        for x in results:
            if known.get(id(x), _gone)() is not x and not (new and any(x is y for y in new)):
                known[id(x)] = weakref.ref(x)
                if _is_wrapped(x) or not x.requires_grad:
                    self._note_place(x, inputs)
        return result

    def returned(self, outputs: Leaves) -> Leaves:
        """The results of a function, each as the result of an operation, which this mode intercepts.

        Copies, unlike views, do not hold the results of transforms that ended inside (see :attr:`captured`).
        """
        return [y if self.has_made(y) else y.clone() for y in outputs]

    @property
    def captured(self) -> dict[int, Tensor]:
        """The tensors from outside that carry a derivative or a batch, by their ids; to be read after the run.

        Results of transforms that end inside, which modes do not see arise, look like tensors from outside.  They are
        gone when the function has returned, unless something else holds them.
        """
        young = ((i, reference()) for i, reference in self._young.items())
        return self._old | {i: x for i, x in young if x is not None}

    def _capture(self, x: Tensor) -> None:
        self._known[id(x)] = reference = weakref.ref(x)
        if x.grad_fn is not None and not self._is_younger(x):
            self._old[id(x)] = x
        else:
            self._young[id(x)] = reference

    def _has_captured(self, x: Tensor) -> bool:
        return id(x) in self._old or self._young.get(id(x), _gone)() is x

    @property
    def has_begun(self) -> bool:
        """Whether an operation was intercepted."""
        return len(self._known) > self._given

    def has_made(self, x: Tensor) -> bool:
        """Whether a tensor is an argument, the result of an operation, or another tensor with the memory of a result.

        Modes do not intercept ``nn.Parameter(x)``, as in the constructor of a module or in a copy of one, nor the end
        of a transform.  Tensors from outside have memory that was allocated before the run.
        """
        known = self._known.get(id(x), _gone)() is x
        return not self._has_captured(x) if known else self._has_memory_of_result(x)

    def _has_memory_of_result(self, x: Tensor) -> bool:
        if not self._allocated or not (type(x) is nn.Parameter or _is_wrapped(x)):
            return False
        return _place(x) in self._allocated

    def _note_place(self, x: Tensor, arguments: Leaves) -> None:
        """Record the memory of the result of an operation, unless it is that of an argument."""
        place = _place(x)
        if place is not None and place not in map(_place, arguments):
            self._allocated.add(place)

    def _is_from_outside(self, x: Tensor) -> bool:
        if not matters(x):
            return False
        x = replacement_of(x)
        if _is_wrapped(x) and _is_wrapped(x := without_ended(x)):
            return _functorch.maybe_get_level(x) <= self.depth
        return not (self._is_younger(x) and (x.is_cpu or self._descends_from_arguments(x)))

    def _is_younger(self, x: Tensor) -> bool:
        """Whether the node of a tensor was created in the run, or in another thread.

        The sequence numbers of nodes increase in each thread.  A later node is that of a result from inside, such as
        that of an autograd Function or a transform of torch.func, which modes do not intercept.  The nodes of a
        backward pass on a device are created in its own thread.
        """
        return x.grad_fn is not None and x.grad_fn._sequence_nr() >= self.start

    def _descends_from_arguments(self, x: Tensor) -> bool:
        mine = {id(y) for y in self.inside}
        return any(id(leaf) in mine for leaf in leaves_of([x]))


_FLAT = {Tensor, nn.Parameter, int, float, bool, str, type(None), torch.dtype, torch.device}

_is_wrapped = _functorch.is_functorch_wrapped_tensor

next_node: Callable[[], int] = torch._C._autograd._get_sequence_nr
"""The sequence number of the next node of a graph that this thread creates."""

_NATIVE = (types.BuiltinFunctionType, types.MethodDescriptorType, types.MethodWrapperType, types.WrapperDescriptorType)


def _is_function_of_arguments(func: Any, kinds: Any) -> bool:
    """Whether an intercepted function is known to depend on the tensors in its arguments only.

    A function in Python may close over others, or call functions that do, also that of a subclass of tensors.
    ``torch.autograd.grad`` also depends on the graphs of its arguments.
    """
    if any(kind is not Tensor for kind in kinds):
        return False
    if isinstance(func, _NATIVE) or func is apply_function:
        return True
    module = getattr(func, '__module__', '')
    return (
        func is not nn.functional.triplet_margin_with_distance_loss  # which gets a function
        if module == 'torch.nn.functional'
        else module == 'torch._tensor' and func.__name__.startswith('__')
    )


def _gone() -> None:
    """A reference for ids without one.  Ids alone do not suffice, since later tensors get those of deleted ones."""


def _place(x: Tensor) -> int | None:
    """The address of the memory of a tensor, beneath all transforms; None if it has none of its own."""
    if _is_wrapped(x):
        x = without_wrappers(without_ended(x))
    if type(x) not in (Tensor, nn.Parameter) or x.layout is not torch.strided:
        return None
    return x.untyped_storage().data_ptr() or None


def allow_unused(ids: Iterable[int]) -> None:
    """Inform the runs that are being recorded that a function inside gets these tensors, but may not need them."""
    for mode in _get_current_function_mode_stack():  # type: ignore[no-untyped-call]
        if isinstance(mode, Capture):
            mode.optional.update(ids)


def replacement_of(x: Tensor) -> Tensor:
    """The replacement of a tensor while outer functions that use it are recomputed."""
    for mode in reversed(_get_current_function_mode_stack()):  # type: ignore[no-untyped-call]
        if isinstance(mode, Replace):
            x = mode.new(x)
    return x


def matters(x: Tensor) -> bool:
    """Whether a tensor is differentiated or mapped over."""
    return _is_wrapped(x) or x.requires_grad or has_tangent(x)


def version_of(x: Tensor) -> int | None:
    """The version counter of a tensor, or None if it has none."""
    if _is_wrapped(x):
        x = without_wrappers(without_ended(x))
    return None if x.is_inference() else x._version


_NORMALIZATIONS = {  # the first argument that is a running statistic, and whether these are updated by default
    nn.functional.batch_norm: (1, 'training', False),
    nn.functional.instance_norm: (1, 'use_input_stats', True),
    torch.batch_norm: (3, 'training', False),
    torch.instance_norm: (3, 'use_input_stats', True),
}


def _statistics(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The running statistics that a normalization updates."""
    start, flag, default = _NORMALIZATIONS[func]
    if args[5] if len(args) > 5 else kwargs.get(flag, default):
        yield from tensors_in([*args[start : start + 2], kwargs.get('running_mean'), kwargs.get('running_var')])


def _writes(func: Any) -> bool:
    name = getattr(func, '__name__', '')
    return name.endswith('_') and name != '__get__'  # an attribute that is read, such as the shape


class Fix(Replace):
    """Replace tensors by constants, and record which of them were used.

    A constant is created when its tensor is first used: tensors that were created inside do not occur again.
    """

    def __init__(self, noted: dict[int, Tensor]) -> None:
        super().__init__({})
        self.noted = noted
        self.ids = noted.keys()

    def leaves(self) -> list[Tensor]:
        """The constants that require grad."""
        return list(self.replacement.values())

    def new(self, x: Tensor) -> Tensor:
        """The constant."""
        if id(x) not in self.noted:
            return x
        self.used.add(id(x))
        if in_transform():
            return first_sample(x.detach())  # detached first, since an outer mode may replace it
        if id(x) not in self.replacement:
            self.replacement[id(x)] = as_leaf_like(x, x.detach())
        return self.replacement[id(x)]


def as_leaf_like(original: Tensor, x: Tensor) -> Tensor:
    """The tensor ``x``, as a leaf that requires grad if ``original`` requires grad, for derivatives in the function."""
    if x.requires_grad or not original.requires_grad or in_transform() or not torch.is_grad_enabled():
        return x
    return x.detach().requires_grad_()


def first_sample(x: Tensor) -> Tensor:
    """The value of a tensor without derivatives; for a batch of ``vmap``, the value of the first sample."""
    x = without_ended(x)
    with beneath(x):
        if not _is_wrapped(x):
            return x.detach()
        within = _functorch.get_unwrapped(x)
        if _functorch.is_batchedtensor(x):
            dim = _functorch.maybe_get_bdim(x)
            if not within.shape[dim]:
                return within.new_zeros(x.shape)
            within = within.select(dim, 0)
        return first_sample(within)


def tensors_in(*xs: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if _FLAT.issuperset(map(type, xs)):
        return [*filter(is_tensor, xs)]
    found: list[Tensor] = []
    for x in xs:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple)):
            found += tensors_in(*x)
        elif isinstance(x, dict):
            found += tensors_in(*x.values())
    return found
