# SPDX-License-Identifier: Apache-2.0
"""The levels at which code runs: nested ``torch.func`` transforms, forward mode, and the compiler.

They decide whether the value of a tensor can be read and where its tangent is, and how an autograd Function has to be
called.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ParamSpec

import torch
from torch._functorch.pyfunctorch import VmapInterpreter, coerce_cinterpreter, retrieve_current_functorch_interpreter
from torch.autograd import forward_ad

from torchopt.dtypes import is_inexact

__all__ = [
    'all_without_ended',
    'apply_function',
    'beneath',
    'eager',
    'entered',
    'forward_mode',
    'has_tangent',
    'host_values',
    'in_transform',
    'is_plain_level',
    'is_readable',
    'is_tensor',
    'is_tracing',
    'is_tracked',
    'is_transformed',
    'refuse_empty_batches',
    'runs_directly',
    'runs_untracked',
    'saved_tensors',
    'without_autocast',
    'without_ended',
    'without_wrappers',
]

_P = ParamSpec('_P')
_unwrap_if_dead = torch._C._functorch.unwrap_if_dead
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_requires_grad = operator.attrgetter('requires_grad')

is_tracing: Callable[[], bool] = torch.compiler.is_compiling
"""Whether ``torch.compile`` traces this code: values cannot be read, functions not inspected, caches not used."""

in_transform: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Whether the code runs inside a ``torch.func`` transform."""

is_tensor: Callable[[Any], bool] = functools.partial(type.__instancecheck__, torch.Tensor)
"""Whether an object is a tensor: for ``filter`` and ``map``, in less time than a Python function."""


def is_transformed(x: torch.Tensor) -> bool:
    """Whether a tensor is wrapped by a ``torch.func`` transform, or code is being compiled."""
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)


def is_readable(x: Any) -> bool:
    """Whether a tensor has one readable value, not inside ``vmap`` and not while compiling; a device synchronizes."""
    if not isinstance(x, torch.Tensor):
        return True
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return False
        x = functorch.get_unwrapped(x)
    return True


def host_values(x: torch.Tensor) -> torch.Tensor | None:
    """The values of a tensor without graph and wrappers; None if they cannot be read, or a device would synchronize."""
    return without_wrappers(x.detach()) if x.is_cpu and is_readable(x) else None


def is_plain_level() -> bool:
    """Whether this is outside of all transforms and of forward mode: only autograd may record results."""
    return forward_ad._current_level < 0 and not in_transform()


def is_tracked(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether results computed from these tensors are differentiated, mapped or otherwise transformed."""
    recorded = torch.is_grad_enabled() and True in map(_requires_grad, tensors)
    return recorded or forward_ad._current_level >= 0 or in_transform()


def runs_untracked(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether operations on these tensors are not recorded, neither by autograd nor by a transform or function mode."""
    return not (torch._C._len_torch_function_stack() or is_tracked(tensors) or True in map(_is_wrapped, tensors))


def has_tangent(x: torch.Tensor) -> bool:
    """Whether a tensor has a forward-mode tangent in any of the nested transforms."""
    if forward_ad._current_level < 0 or not is_inexact(x):
        return False
    if not in_transform():
        return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
    functorch = torch._C._functorch
    if functorch.is_functorch_wrapped_tensor(x):
        with beneath(x):
            if has_tangent(functorch.get_unwrapped(x)):
                return True
        if functorch.is_batchedtensor(x):
            return False
    with beneath(x, itself=True):
        return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def runs_directly() -> bool:
    """Whether operations run at once on plain tensors: no ``torch.func`` transform, no compiler."""
    return not (torch.compiler.is_compiling() or in_transform())


def refuse_empty_batches(error: Exception | None = None) -> None:
    """Raise an error if the code runs in a ``torch.vmap`` without samples, in which torch cannot compute with numbers.

    Args:
        error: The error that torch has raised, if it was not foreseen.

    Raises:
        ValueError: If a batch is empty.
    """
    if is_tracing():
        return
    for level in torch._C._functorch.get_interpreter_stack() or ():
        within = coerce_cinterpreter(level)
        if isinstance(within, VmapInterpreter) and within.batch_size() == 0:
            raise ValueError(
                'The batch of torch.vmap is empty, and torch cannot compute with numbers of no samples, such as '
                '2.0 * x.sum(). Leave out empty batches.'
            ) from error


@contextlib.contextmanager
def beneath(x: torch.Tensor, *, itself: bool = False) -> Iterator[None]:
    """Disable the ``torch.func`` transforms inside the one that wraps a tensor, and this one too.

    Inner transforms hide what the outer ones attach to the tensor: its tangents and its batches.  ``itself`` keeps the
    transform that wraps the tensor enabled.
    """
    level = torch._C._functorch.maybe_get_level(x)
    with contextlib.ExitStack() as lowered:
        while (top := torch._C._functorch.peek_interpreter_stack()) is not None:
            if top.level() < max(level, 1) or (itself and top.level() == level):
                break
            lowered.enter_context(retrieve_current_functorch_interpreter().lower())
        yield


def without_ended(x: Any) -> Any:
    """A tensor without the wrappers of ``torch.func`` transforms that have ended; other objects unchanged.

    The pullback of ``torch.func.vjp`` runs after its transform has ended, on tensors that were saved inside it.  Their
    wrappers still require grad, but belong to no graph: autograd differentiates the tensors inside.
    """
    if isinstance(x, torch.Tensor):
        while (within := _unwrap_if_dead(x)) is not x:
            x = within
    return x


def without_wrappers(x: torch.Tensor, *, unless_batch: str | None = None) -> torch.Tensor:
    """The values of all samples of all batches, without the wrappers of ``torch.func``.

    Args:
        x: The tensor.
        unless_batch: If given, a batch of ``torch.vmap`` raises an error with this message.

    Raises:
        NotImplementedError: If the tensor is a batch, and ``unless_batch`` is given.

    Example:
        >>> import torch
        >>> from torchopt.levels import without_wrappers
        >>> torch.vmap(lambda x: x + without_wrappers(x).sum())(torch.tensor([1.0, 2.0]))
        tensor([4., 5.])
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x):
        if unless_batch is not None and functorch.is_batchedtensor(x):
            raise NotImplementedError(unless_batch)
        x = functorch.get_unwrapped(x)
    return x


def saved_tensors(ctx: Any) -> list[Any]:
    """The tensors that an autograd Function saved for its backward pass; see :func:`without_ended`."""
    return list(all_without_ended(ctx.saved_tensors))


def all_without_ended(xs: Sequence[Any]) -> Sequence[Any]:
    """:func:`without_ended` for each of several objects; a check of all of them finds out whether any is wrapped."""
    if torch.compiler.is_compiling() or True in map(_is_wrapped, filter(is_tensor, xs)):
        return list(map(without_ended, xs))
    return xs


def apply_function(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` for tensors that may have been saved in a transform that has ended.

    Outside transforms it bypasses ``torch.func``, which would flatten every argument.  Function modes, which do not see
    the arguments of an autograd Function, see this call: those that record or replace tensors would miss them otherwise
    (see :mod:`torchopt.autodiff.modes`).
    """
    if torch._C._len_torch_function_stack():
        if torch.compiler.is_compiling():
            args = tuple(x.view_as(x) if isinstance(x, torch.Tensor) else x for x in args)
        else:
            return torch.overrides.handle_torch_function(apply_function, (), function, *args)
    args = tuple(all_without_ended(args))
    if in_transform():
        return function.apply(*args)  # type: ignore[no-untyped-call]
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def without_autocast(device_types: Iterable[str]) -> contextlib.AbstractContextManager[Any]:
    """Ignore the autocast state of the caller on these types of devices."""
    contexts = [
        torch.autocast(kind, enabled=False)
        for kind in set(device_types)
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    ]
    return entered(contexts)


def entered(contexts: Sequence[contextlib.AbstractContextManager[Any]]) -> contextlib.AbstractContextManager[Any]:
    """Several context managers as one, whose ``with`` block ends them; they are entered here."""
    if not contexts:
        return contextlib.nullcontext()
    stack = contextlib.ExitStack()
    for context in contexts:
        stack.enter_context(context)
    return stack


@contextlib.contextmanager
def forward_mode(ctx: Any) -> Iterator[list[Any]]:
    """Within ``jvp`` of an autograd Function: the saved tensors, without the tangents of this level.

    Torch disables forward mode there, and with it the tangents of all outer levels: forward mode over forward mode
    would be silently wrong.  So this enables it again.
    """
    with forward_ad._set_fwd_grad_enabled(True):
        yield [forward_ad.unpack_dual(x).primal if is_inexact(x) else x for x in saved_tensors(ctx)]  # type: ignore[no-untyped-call]


def eager(fun: Callable[_P, Any]) -> Callable[_P, Any]:
    """Make a function one graph break under ``torch.compile``, instead of many small graphs.

    This is for functions that cannot be compiled, since the number of their steps depends on data.
    ``torch.compiler.disable`` loads the compiler, which takes a second, so it is called only while compiling.
    """

    @functools.wraps(fun)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(fun)(*args, **kwargs)  # type: ignore[no-untyped-call]
        return fun(*args, **kwargs)

    return run
