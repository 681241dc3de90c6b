# SPDX-License-Identifier: Apache-2.0
r"""Tasks distributed among ranks: :math:`L(\theta) = \frac1N \sum_i L_i(\theta)`, each rank with its own :math:`i`.

The losses of a rank, their gradients, and their number are sent in one vector, so a step of all ranks costs
one collective.  So the mean over all tasks is correct for any division of the tasks.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchopt import tree
from torchopt.distributed.collectives import add_up, typed_errors, world_size
from torchopt.distributed.errors import Failure
from torchopt.distributed.partition import share_of
from torchopt.graphs import leaves_of
from torchopt.numerics import apply_function, in_transform, real_dtype
from torchopt.sharding import is_dtensor

__all__ = ['map_tasks']


def map_tasks(
    fn: Callable[[Any, Any], Any],
    tasks: Sequence[Any],
    params: Any,
    *,
    reduction: Literal['mean', 'sum'] = 'mean',
    has_aux: bool = False,
    split: bool = True,
    create_graph: bool = False,
    group: Any = None,
    timeout: timedelta | None = None,
) -> Any:
    r"""The mean of a loss over tasks, to which every rank contributes its share.

    .. math:: L(\theta) = \frac1N \sum_{i=1}^N L_i(\theta)

    Every rank calls it, and gets the same loss with the same gradient, those of one process with all tasks:
    ``map_tasks(fn, tasks, net).backward()`` and a step of an optimizer keep the ranks equal.  The gradient of each task
    is computed right after its loss, so that only one task's graph is alive at a time; losses, gradients and counts are
    then added up over the ranks in one message.

    If ``fn`` raises on a rank, the call raises on all ranks, so none waits forever.

    Without a process group, a single process computes all tasks.

    Args:
        fn: ``fn(params, task)`` returns the loss of a task, a scalar tensor; with ``has_aux`` a pair of it and anything
            else.  It may contain a whole inner loop.
        tasks: The tasks; a rank accesses only its own.  If there are fewer tasks than ranks, some ranks are idle.
        params: A module, or a tree of tensors, which must be the same on all ranks.  The gradient is that in those
            which require grad.
        reduction: ``'mean'`` over all tasks of all ranks, or ``'sum'``.
        has_aux: Whether ``fn`` returns a pair.
        split: Whether ``tasks`` are the same on every rank, which does its contiguous share of them; otherwise they are
            the rank's own, and as many as it likes.
        create_graph: Whether the gradient is differentiable.  The graphs of all tasks are then kept, and
            the gradient takes a separate message.
        group: The process group, by default all.
        timeout: The time limit for the other ranks, by default that of the group.

    Returns:
        The loss, a scalar tensor with a gradient in ``params``; with ``has_aux`` a pair of it and the list of what
        ``fn`` returned beside it, for all tasks in their order (pickled, in a message of its own).

    Raises:
        TypeError: If ``fn`` returns no scalar tensor, or ``params`` are sharded.
        ValueError: If there are no tasks, no parameter requires grad, or the ranks do not agree on the number of tasks.
        RuntimeError: If ``torch.func`` transforms the call; use :func:`all_reduce` and :func:`replicate` there.
        WorkerDiedError, WorkerTimeoutError: If another rank is gone, or does not come.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> w = torch.tensor(3.0, requires_grad=True)
        >>> loss = todist.map_tasks(lambda w, x: (w - x) ** 2, [1.0, 2.0], w)
        >>> loss.backward()
        >>> loss, w.grad
        (tensor(2.5000, grad_fn=<_KnownGradientBackward>), tensor(3.))
    """
    if reduction not in ('mean', 'sum'):
        raise ValueError(f"Invalid reduction: {reduction!r}; expected 'mean' or 'sum'.")
    if in_transform():
        raise RuntimeError(
            'map_tasks computes gradients itself and cannot be transformed by torch.func. Write '
            'all_reduce(fn(replicate(params), ...)) there.'
        )
    leaves = _trainable(params)
    ends = [_end(p) for p in leaves]
    if not isinstance(params, nn.Module):
        of = {id(p): end for p, end in zip(leaves, ends)}
        params = tree.map(lambda p: of.get(id(p), p), params)
    ranks, rank = world_size(group), dist.get_rank(group) if world_size(group) > 1 else 0
    if rank < 0:
        raise ValueError('This process is not in group. Call map_tasks only on its members.')
    eager = torch.is_grad_enabled() and not create_graph
    work, own, error = _Work(None, [], [None] * len(leaves)), [], None
    try:
        own = [tasks[i] for i in share_of(len(tasks), ranks)[rank]] if split else list(tasks)
        work = _do(fn, own, params, ends, has_aux, eager)
    except Exception as raised:  # the other ranks wait for this one, so they hear of it first
        if ranks == 1:
            raise
        error = raised
    total = _add_up(work, len(own), len(tasks) if split else 0, error, leaves, eager, group, timeout)
    if total.failed:
        _raise_failures(error, rank, ranks, group)
    if not total.alike:
        raise ValueError(
            f'The ranks do not agree on the tasks: rank {rank} has {len(tasks)} of them, and others have more or less. '
            f'Pass the same tasks on every rank, or split=False if they are its own.'
        )
    if total.tasks == 0:
        raise ValueError('There are no tasks on any rank; expected at least one.')
    weight = 1.0 / total.tasks if reduction == 'mean' else 1.0
    value = total.loss * weight
    if eager:
        value = apply_function(_KnownGradient, value, total.gradients, weight, *leaves)
    elif create_graph:
        local = _Local([None if work.loss is None else work.loss * weight], ends)
        (value,) = apply_function(_SumOfParts, local, [value], group, timeout, *leaves)
    return (value, _gather(work.aux, ranks, group)) if has_aux else value


def _trainable(params: Any) -> list[Tensor]:
    candidates = params.parameters() if isinstance(params, nn.Module) else tree.leaves(params)
    leaves = [p for p in candidates if isinstance(p, Tensor) and p.requires_grad]
    if not leaves and torch.is_grad_enabled():
        raise ValueError(
            'No tensor in params requires grad, so there is no gradient to share. Call requires_grad_() on those to be '
            'trained, or torch.no_grad() if only the loss is wanted.'
        )
    if any(is_dtensor(p) for p in leaves):
        raise TypeError(
            'params hold DTensors, and map_tasks needs the whole of them on every rank. Sharded parameters add up '
            'gradients by themselves: call fn on this rank and backward() on the loss.'
        )
    return leaves


class _Work(NamedTuple):
    """What a rank has done: the sum of its losses, what else its tasks returned, and the sums of their gradients."""

    loss: Tensor | None
    aux: list[Any]
    gradients: list[Tensor | None]


_seen: weakref.WeakSet[Any] = weakref.WeakSet()  # codes of functions that have been looked at


def _do(fn: Any, own: list[Any], params: Any, leaves: list[Tensor], has_aux: bool, eager: bool) -> _Work:
    total: Tensor | None = None
    sums: list[Tensor | None] = [None] * len(leaves)
    others: list[weakref.ref[Tensor]] = []
    kept = []
    for number, task in enumerate(own):
        returned = fn(params, task)
        if has_aux and not (isinstance(returned, tuple) and len(returned) == 2):
            raise TypeError(f'fn returned a {type(returned).__name__}; expected a pair (loss, aux), as has_aux says.')
        loss, aux = returned if has_aux else (returned, None)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.dtype not in _DTYPES:
            what = f'a tensor of shape {tuple(loss.shape)}, {loss.dtype}' if isinstance(loss, Tensor) else repr(loss)
            raise TypeError(f'fn returned {what} as loss; expected a real scalar tensor. Reduce it, as by loss.mean().')
        loss = loss.reshape(())
        kept.append(tree.map(lambda x: x.detach() if isinstance(x, Tensor) else x, aux))
        if eager and loss.requires_grad:
            if number == 0:
                others = _look_for_others(fn, loss, leaves)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            sums = [g if s is None else s if g is None else s + g for s, g in zip(sums, found)]
            loss = loss.detach()
        total = loss if total is None else total + loss
        del returned, loss
    lost = [p.shape for ref in others if (p := ref()) is not None]
    if lost:
        warnings.warn(
            f'The loss depends on {len(lost)} tensors that require grad and are not in params, of shapes '
            f'{[tuple(shape) for shape in lost]}: they get no gradient. Pass them in params too, or detach them.',
            stacklevel=3,
        )
    return _Work(total, kept, sums)


def _look_for_others(fn: Any, loss: Tensor, leaves: list[Tensor]) -> list[weakref.ref[Tensor]]:
    """Leaves beside the parameters; those that are alive when the graph is gone would have lost their gradient."""
    code = getattr(fn, '__code__', None)
    if code is not None:
        if code in _seen:
            return []
        _seen.add(code)
    known = {id(p) for p in leaves}
    return [weakref.ref(x) for x in leaves_of([loss, *leaves]) if id(x) not in known]


class _Total(NamedTuple):
    """The sums over all ranks; ``alike`` says whether all ranks were given as many tasks."""

    failed: bool
    tasks: int
    alike: bool
    loss: Tensor
    gradients: list[Tensor | None]


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _add_up(
    work: _Work,
    own: int,
    given: int,
    error: Exception | None,
    leaves: list[Tensor],
    eager: bool,
    group: Any,
    timeout: timedelta | None,
) -> _Total:
    """Send one vector: what this rank did, its loss, which gradients it has, and these."""
    device = next((x.device for x in [*leaves, work.loss] if x is not None), None)
    gradients = work.gradients if eager else []
    # A rank without tasks learns the dtype of the loss from those that have one.
    dtype = 0 if work.loss is None else 1 + _DTYPES.index(work.loss.dtype)
    # Numbers are equal where the mean of the squares is the square of the mean; digits stay exact in single precision.
    digits = [given % 64, given // 64 % 64, given // 4096 % 64]
    numbers = [error is not None, own, dtype, dtype > 0, *digits, *(d * d for d in digits)]
    used = [g is not None for g in gradients]
    head = torch.tensor([*numbers, *used], dtype=torch.float32, device=device)
    loss = torch.zeros((), device=device) if work.loss is None else work.loss.detach().to(device)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, leaves)]
    # In the widest dtype that a loss may have; otherwise the ranks would not send vectors of the same one.
    widest = functools.reduce(torch.promote_types, (real_dtype(p.dtype) for p in leaves), torch.float32)
    head, loss, *sums = add_up([head, loss.to(widest), *filled], group, timeout)
    failed, total, code, holders, *rest = head.tolist()
    ranks, pairs = world_size(group), list(zip(rest[:3], rest[3:6]))
    return _Total(
        failed > 0,
        round(total),
        all(squares * ranks == digit**2 for digit, squares in pairs),
        loss.to(_DTYPES[round(code / max(1.0, holders)) - 1]),
        [g if u else None for g, u in zip(sums, rest[6:])],
    )


def _raise_failures(error: Exception | None, rank: int, ranks: int, group: Any) -> None:
    found: list[Failure | None] = [None] * ranks
    mine = None if error is None else Failure.of(error, rank)
    with typed_errors():
        dist.all_gather_object(found, mine, group=group)
    if error is not None:
        raise error
    raise next(failure for failure in found if failure is not None).exception()


def _gather(aux: list[Any], ranks: int, group: Any) -> list[Any]:
    if ranks == 1:
        return aux
    found: list[Any] = [None] * ranks
    with typed_errors():
        dist.all_gather_object(found, aux, group=group)
    return [x for part in found for x in part]


class _KnownGradient(torch.autograd.Function):
    """A value whose gradient, but for a factor, was computed together with it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], weight: float, *leaves: Tensor) -> Tensor:
        ctx.gradients, ctx.weight = gradients, weight
        return value.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                'The gradient of map_tasks has no graph. Pass create_graph=True to map_tasks to differentiate it again.'
            )
        factor = cotangent * ctx.weight
        present = [g for g in ctx.gradients if g is not None]
        scaled = iter(torch._foreach_mul(present, factor) if present else ())
        return None, None, None, *(None if g is None else next(scaled).to(g.dtype) for g in ctx.gradients)


# --- Every derivative ---------------------------------------------------------------------------


class _Local(NamedTuple):
    """This rank's parts of a sum, with their graph from ``ends``, which stand for the inputs of the node.

    An end is cut off from what its input was computed from.  Otherwise what depends on another input would count twice:
    here, and where autograd goes on from the node.
    """

    parts: Sequence[Tensor | None]
    ends: Sequence[Tensor]


def _end(x: Tensor) -> Tensor:
    return x if x.is_leaf else x.detach().requires_grad_()


class _SumOfParts(torch.autograd.Function):
    r"""The sum :math:`\sum_r f_r(x)` over ranks, of which each has the graph of its own part only.

    The product of a cotangent :math:`v` with its Jacobian is :math:`\sum_r J_r^\top v`: a sum over ranks again, of what
    depends on :math:`x` and :math:`v`.
    """

    @staticmethod
    def forward(ctx: Any, local: _Local, sums: Sequence[Tensor], group: Any, timeout: Any, *inputs: Tensor) -> Any:
        ctx.local, ctx.group, ctx.timeout = local, group, timeout
        ctx.save_for_backward(*inputs)
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        record = torch.is_grad_enabled()
        needed = ctx.needs_input_grad[4:]
        inputs = [x for x, yes in zip(ctx.saved_tensors, needed) if yes]
        ends = [x for x, yes in zip(ctx.local.ends, needed) if yes]
        vectors = [_end(v) for v in cotangents] if record else cotangents
        pairs = [(x, v) for x, v in zip(ctx.local.parts, vectors) if x is not None and x.requires_grad]
        parts: Sequence[Tensor | None] = [None] * len(inputs)
        if pairs:
            outputs, given = zip(*pairs)
            parts = torch.autograd.grad(outputs, ends, given, create_graph=record, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(x) if g is None else g for g, x in zip(parts, inputs)]
        sums: Sequence[Tensor] = add_up(filled, ctx.group, ctx.timeout)
        if record:
            local = _Local(parts, [*ends, *vectors])
            sums = apply_function(_SumOfParts, local, sums, ctx.group, ctx.timeout, *inputs, *cotangents)
        found = iter(sums)
        return None, None, None, None, *(next(found) if yes else None for yes in needed)
