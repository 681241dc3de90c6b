# SPDX-License-Identifier: Apache-2.0
r"""Collectives that are differentiable to any order.

Every rank has the same parameters :math:`\theta` and a part :math:`L_r` of the loss :math:`L(\theta) = \sum_r
L_r(\theta)`.  Two linear maps connect values that are equal on all ranks with values that differ:

- :math:`R`, :func:`replicate`, maps a value that is equal on all ranks to one copy per rank;
- :math:`S`, :func:`all_reduce`, maps one value per rank to their sum, which is equal on all ranks.

They are transposes of each other: :math:`\langle S x, y \rangle = \sum_r \langle x_r, y \rangle = \langle x, R y
\rangle`.  So the backward pass of each is the other, and the derivatives of :math:`S \circ L \circ R` are correct to
every order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from torchopt import tree
from torchopt.distributed.errors import translate_collective
from torchopt.dtypes import real_dtype
from torchopt.kinds import kind_of
from torchopt.levels import apply_function


def all_reduce(values: Any, op: str = 'sum', *, group: Any = None, timeout: timedelta | None = None) -> Any:
    r"""Sum the tensors of all ranks, with one collective.

    The result is equal on all ranks and counts once: the backward pass returns the gradient of the result unchanged on
    every rank.  (``torch.distributed.nn.functional.all_reduce`` counts it once for each rank.)  Use :func:`replicate`
    on the parameters to sum their gradients.

    Every rank of the group must call it with tensors of the same shapes.  Without a process group, a single process
    gets its own values back.

    Args:
        values: A tensor, or a tree of tensors; ``None`` leaves stay.
        op: ``'sum'`` or ``'mean'``.
        group: The process group, by default all.
        timeout: The time limit, by default that of the group.

    Returns:
        Tensors of the same shapes and dtypes.

    Raises:
        TypeError: If a leaf is not a tensor.
        ValueError: If ``op`` is unknown, or it is ``'mean'`` and the tensors are integers.
        WorkerDiedError, WorkerTimeoutError: If another process has died, or does not make the call in time.

    Example:
        >>> import torch, torchopt
        >>> torchopt.distributed.all_reduce({'loss': torch.tensor(2.0), 'count': torch.tensor(3)})
        {'loss': tensor(2.), 'count': tensor(3)}
    """
    if op not in ('sum', 'mean'):
        raise ValueError(f"Invalid op: {op!r}; expected 'sum' or 'mean'.")
    leaves, spec = _tensors(values)
    if op == 'mean' and any(not (x.is_floating_point() or x.is_complex()) for x in leaves if x is not None):
        raise ValueError("op='mean' is not supported for integers. Convert them to a floating dtype first.")
    size = world_size(group)
    if size == 1:
        return values
    reduced = _by_dtype(_Sum, leaves, group, timeout)
    return tree.unflatten(spec, [x / size if op == 'mean' and x is not None else x for x in reduced])


def replicate(values: Any, *, group: Any = None, timeout: timedelta | None = None) -> Any:
    """Return tensors unchanged; the backward pass sums their gradients over all ranks, with one collective.

    The forward pass sends nothing.  Like every collective, it must be called equally often on all ranks, regardless of
    the number of tasks for which the result is used.  The values must be equal on all ranks, which is not checked: use
    the same seed on every rank, or ``torch.distributed.broadcast``.

    Args:
        values: A tensor, or a tree of tensors, such as the parameters; ``None`` leaves stay.
        group: The process group, by default all.
        timeout: The time limit for the collectives in its derivatives.

    Raises:
        TypeError: If a leaf is not a tensor.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> def loss(w, part):  # the mean over the parts of all ranks
        ...     return todist.all_reduce((todist.replicate(w) * part).square().sum(), 'mean')
        >>> torch.func.grad(loss)(torch.tensor(2.0), torch.tensor([1.0, 2.0]))
        tensor(20.)
    """
    leaves, spec = _tensors(values)
    if world_size(group) == 1:
        return values
    return tree.unflatten(spec, _by_dtype(_Copy, leaves, group, timeout))


def world_size(group: Any = None) -> int:
    """The number of ranks of a group; 1 if there is no group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _tensors(values: Any) -> tuple[list[Tensor | None], Any]:
    leaves, spec = tree.flatten(values)
    for path, x in tree.flatten_with_path(values):
        if x is not None and not isinstance(x, Tensor):
            raise TypeError(f'values{path} is {kind_of(x)}; expected a tensor.')
    return leaves, spec


def _by_dtype(function: Any, leaves: Sequence[Tensor | None], group: Any, timeout: timedelta | None) -> list[Any]:
    """Apply a function to one vector for each dtype and device."""
    result: list[Any] = list(leaves)
    kinds = dict.fromkeys((x.dtype, x.device) for x in leaves if x is not None)
    for kind in kinds:
        numbers = [i for i, x in enumerate(leaves) if x is not None and (x.dtype, x.device) == kind]
        together: list[Any] = [leaves[i] for i in numbers]
        flat = torch.cat([x.reshape(-1) for x in together]) if len(together) > 1 else together[0].reshape(-1)
        pieces = apply_function(function, flat, group, timeout).split([x.numel() for x in together])
        for i, piece, x in zip(numbers, pieces, together):
            result[i] = piece.reshape(x.shape)
    return result


class _Collective(torch.autograd.Function):
    """Base of the two maps, which are linear and elementwise."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.group, ctx.timeout = inputs
        ctx.set_materialize_grads(True)

    @classmethod
    def vmap(cls, info: Any, in_dims: Any, x: Tensor, group: Any, timeout: Any) -> tuple[Tensor, int | None]:
        return apply_function(cls, x, group, timeout), in_dims[0]


class _Sum(_Collective):
    @staticmethod
    def forward(x: Tensor, group: Any, timeout: Any) -> Tensor:
        return sum_over_ranks(x, group, timeout)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return apply_function(_Copy, g, ctx.group, ctx.timeout), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return apply_function(_Sum, tangent, ctx.group, ctx.timeout)


class _Copy(_Collective):
    @staticmethod
    def forward(x: Tensor, group: Any, timeout: Any) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return apply_function(_Sum, g, ctx.group, ctx.timeout), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return apply_function(_Copy, tangent, ctx.group, ctx.timeout)


_SMALL = 1 << 19  # bytes of all ranks together


def sum_over_ranks(x: Tensor, group: Any, timeout: timedelta | None) -> Tensor:
    """The sum of a tensor over the ranks, without a graph."""
    whole = x.detach().contiguous()
    wire = torch.view_as_real(whole.resolve_conj()) if whole.is_complex() else whole
    ranks = world_size(group)
    if ranks * wire.nbytes <= _SMALL and dist.get_backend(group) == 'gloo':
        # gloo splits a sum into many messages.  For a small tensor, gathering it on all ranks and adding locally takes
        # a third of the time.
        every = wire.new_empty(ranks, *wire.shape)
        with typed_errors():
            _wait(_gather_into(every.view(-1), wire.view(-1), group), timeout)
        total = every.sum(0, dtype=wire.dtype)
    else:
        total = wire.clone()
        with typed_errors():
            _wait(dist.all_reduce(total, group=group, async_op=True), timeout)
    return torch.view_as_complex(total) if whole.is_complex() else total


def _gather_into(every: Tensor, own: Tensor, group: Any) -> Any:
    functions: Any = dist
    # The old name, all_gather_into_tensor, is deprecated since torch 2.13.
    gather = getattr(functions, 'all_gather_single', None) or functions.all_gather_into_tensor
    return gather(every, own, group=group, async_op=True)


def _wait(work: Any, timeout: timedelta | None) -> None:
    if timeout is None:
        work.wait()
    else:
        work.wait(timeout)


def add_up(tensors: Sequence[Tensor], group: Any, timeout: timedelta | None) -> list[Tensor]:
    """The sums of tensors over the ranks, with one collective, without a graph.

    They are sent in the widest of their dtypes, at least float32, since sums in half precision are inaccurate.
    """
    if world_size(group) == 1:
        return [x.detach() for x in tensors]
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, real_dtype(x.dtype))
    if all(x.dtype == dtype for x in tensors):
        total = sum_over_ranks(torch.cat([x.detach().reshape(-1) for x in tensors]), group, timeout)
        return [piece.view(x.shape) for piece, x in zip(torch.split(total, [x.numel() for x in tensors]), tensors)]
    real = [torch.view_as_real(x.detach().resolve_conj()) if x.is_complex() else x.detach() for x in tensors]
    flat = torch.cat([x.reshape(-1).to(dtype) for x in real])
    pieces = torch.split(sum_over_ranks(flat, group, timeout), [x.numel() for x in real])
    whole = [piece.reshape(x.shape) for piece, x in zip(pieces, real)]
    # Not view_as_complex, which needs an even offset.
    return [(torch.complex(*y.unbind(-1)) if x.is_complex() else y).to(x.dtype) for x, y in zip(tensors, whole)]


@contextlib.contextmanager
def typed_errors() -> Iterator[None]:
    """Convert errors of collectives to those of this package."""
    try:
        yield
    except RuntimeError as error:
        typed = translate_collective(error)
        if typed is error:
            raise
        raise typed from error
