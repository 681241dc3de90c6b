# SPDX-License-Identifier: Apache-2.0
r"""Tasks divided among ranks: :math:`L(\theta) = \frac1N \sum_i L_i(\theta)`, where each rank has some of the tasks.

The sums of the losses and gradients of a rank and its number of tasks are sent in one vector, so a step uses one
collective.  The mean over all tasks is correct for any division of the tasks.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchopt import tree
from torchopt.distributed.collectives import add_up, typed_errors, world_size
from torchopt.distributed.errors import Failure
from torchopt.distributed.partition import share_of
from torchopt.dtypes import real_dtype
from torchopt.graphs import carries_graph, leaves_of
from torchopt.kinds import kind_of
from torchopt.levels import apply_function, in_transform
from torchopt.progress import Progress, reporter
from torchopt.sharding import is_dtensor
from torchopt.tree.ops import detached


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
    callback: Progress = None,
) -> Any:
    r"""The mean of a loss over tasks, where every rank computes some of the tasks.

    .. math:: L(\theta) = \frac1N \sum_{i=1}^N L_i(\theta)

    Every rank must call it.  All get the same loss and the same gradient, equal to those of one process with all tasks,
    so that ``map_tasks(fn, tasks, net).backward()`` and a step of an optimizer keep the ranks equal.  The gradient of
    each task is computed right after its loss, so that only the graph of one task exists at a time.  Losses, gradients
    and counts are then summed over the ranks with one collective.

    If ``fn`` raises on one rank, the call raises on all ranks.  Without a process group, a single process computes all
    tasks.

    Args:
        fn: ``fn(params, task)`` returns the loss of a task, a scalar tensor; with ``has_aux``, a pair of the loss and
            any other object.  It may contain a whole inner loop.
        tasks: The tasks; a rank accesses only its own.  If there are fewer tasks than ranks, some ranks are idle.
        params: A module or a tree of tensors, equal on all ranks.  Tensors that require grad get gradients.
        reduction: ``'mean'`` over all tasks of all ranks, or ``'sum'``.
        has_aux: Whether ``fn`` returns a pair.
        split: Whether ``tasks`` is the same sequence on every rank, of which each rank takes a contiguous part; if
            False, ``tasks`` are the tasks of this rank only, in any number.
        create_graph: Whether the gradient is differentiable.  The graphs of all tasks are then kept, and the gradient
            uses a separate collective.
        group: The process group, by default all.
        timeout: The time limit for the other ranks, by default that of the group.
        callback: A function that is called after each task of this rank with the number of tasks that are done and of
            all its tasks, or ``'bar'`` for a progress bar (needs tqdm).

    Returns:
        The loss, a scalar tensor differentiable with respect to ``params``; with ``has_aux``, a pair of the loss and
        the list of the other objects for all tasks in order (pickled, in a separate collective).

    Raises:
        TypeError: If ``fn`` does not return a scalar tensor, ``params`` are sharded, or ``callback`` is no function.
        ValueError: If there are no tasks, no parameter requires grad, or the number of tasks differs between ranks.
        RuntimeError: If called inside a ``torch.func`` transform; use :func:`all_reduce` and :func:`replicate` there.
        WorkerDiedError, WorkerTimeoutError: If another rank has died, or does not make the call in time.

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
    report = reporter(callback, 'tasks')
    leaves = _trainable(params)
    ends = [_end(p) for p in leaves]
    end_of = {id(p): end for p, end in zip(leaves, ends)}
    at_ends: Any = contextlib.nullcontext()
    if isinstance(params, nn.Module):
        at_ends = _with_parameters(params, end_of)
    else:
        params = tree.map(lambda p: end_of.get(id(p), p), params)
    ranks, rank = world_size(group), dist.get_rank(group) if world_size(group) > 1 else 0
    if rank < 0:
        raise ValueError('This process is not in group. Call map_tasks only on its members.')
    eager = torch.is_grad_enabled() and not create_graph
    work, own, error = _Work(None, [], [None] * len(leaves)), [], None
    try:
        own = [tasks[i] for i in share_of(len(tasks), ranks)[rank]] if split else list(tasks)
        with at_ends:
            work = _do(fn, own, params, ends, has_aux, eager, report)
    except Exception as raised:  # the other ranks wait for this one, so report the error to them first
        if ranks == 1:
            raise
        error = raised
    total = _add_up(work, len(own), len(tasks) if split else 0, error, leaves, eager, group, timeout)
    if total.failed:
        _raise_failures(error, rank, ranks, group)
    if not total.alike:
        raise ValueError(
            f'The number of tasks differs between ranks: rank {rank} has {len(tasks)}. Pass the same tasks on every '
            f'rank, or split=False if each rank has its own tasks.'
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
    if not has_aux:
        return value
    aux = _gather(work.aux, ranks, group) if ranks > 1 else [work.aux]
    return value, [x for part in aux for x in part]


def _trainable(params: Any) -> list[Tensor]:
    candidates = params.parameters() if isinstance(params, nn.Module) else tree.leaves(params)
    leaves = list({id(p): p for p in candidates if carries_graph(p)}.values())  # each once, even if it occurs twice
    if not leaves and torch.is_grad_enabled():
        raise ValueError(
            'No tensor in params requires grad, so there is no gradient. Call requires_grad_() on the parameters, or '
            'use torch.no_grad() to compute only the loss.'
        )
    if any(is_dtensor(p) for p in leaves):
        raise TypeError(
            'params hold DTensors, but map_tasks requires whole tensors on every rank. DTensors sum gradients over the '
            'ranks themselves: call fn on this rank and backward() on the loss.'
        )
    return leaves


@contextlib.contextmanager
def _with_parameters(module: nn.Module, new: dict[int, Tensor]) -> Iterator[None]:
    """Replace parameters, given by their ids, in the module and all its parts."""
    places: list[tuple[Any, str, Tensor]] = [
        (part._parameters, name, p)
        for part in module.modules()
        for name, p in part._parameters.items()
        if p is not None and new.get(id(p), p) is not p
    ]
    for parameters, name, p in places:
        parameters[name] = new[id(p)]
    try:
        yield
    finally:
        for parameters, name, p in places:
            parameters[name] = p


class _Work(NamedTuple):
    """The work of one rank: the sum of its losses, the other objects, and the sums of the gradients."""

    loss: Tensor | None
    aux: list[Any]
    gradients: list[Tensor | None]


_seen: weakref.WeakSet[Any] = weakref.WeakSet()  # code objects of functions that have been checked


def _do(fn: Any, own: list[Any], params: Any, leaves: list[Tensor], has_aux: bool, eager: bool, report: Any) -> _Work:
    total: Tensor | None = None
    sums: list[Tensor | None] = [None] * len(leaves)
    others: list[weakref.ref[Tensor]] = []
    kept = []
    for number, task in enumerate(own):
        returned = fn(params, task)
        if has_aux and not (isinstance(returned, tuple) and len(returned) == 2):
            raise TypeError(f'fn returned {kind_of(returned)}; expected a pair (loss, aux) with has_aux=True.')
        loss, aux = returned if has_aux else (returned, None)
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.dtype not in _DTYPES:
            what = f'a tensor of shape {tuple(loss.shape)}, {loss.dtype}' if isinstance(loss, Tensor) else repr(loss)
            raise TypeError(f'fn returned {what} as loss; expected a real scalar tensor. Reduce it: loss.mean().')
        loss = loss.reshape(())
        kept.append(detached(aux))
        if eager and loss.requires_grad:
            if number == 0:
                others = _look_for_others(fn, loss, leaves)
            found = torch.autograd.grad(loss, leaves, allow_unused=True)
            sums = [g if s is None else s if g is None else s + g for s, g in zip(sums, found)]
            loss = loss.detach()
        total = loss if total is None else total + loss
        del returned, loss
        if report is not None:
            report(number + 1, len(own))
    lost = [p.shape for ref in others if (p := ref()) is not None]
    if lost:
        warnings.warn(
            f'The loss depends on {len(lost)} tensors that require grad and are not in params, with the shapes '
            f'{[tuple(shape) for shape in lost]}: they get no gradient. Add them to params, or detach them.',
            stacklevel=3,
        )
    return _Work(total, kept, sums)


def _look_for_others(fn: Any, loss: Tensor, leaves: list[Tensor]) -> list[weakref.ref[Tensor]]:
    """Weak references to leaves outside of the parameters; those that outlive the graph lose their gradient."""
    code = getattr(fn, '__code__', None)
    if code is not None:
        if code in _seen:
            return []
        _seen.add(code)
    known = {id(p) for p in leaves}
    return [weakref.ref(x) for x in leaves_of([loss, *leaves]) if id(x) not in known]


class _Total(NamedTuple):
    """The sums over all ranks; ``alike`` is whether all ranks have the same number of tasks."""

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
    """Sum one vector over the ranks: counts and flags, the loss, which gradients exist, and the gradients."""
    device = next((x.device for x in [*leaves, work.loss] if x is not None), None)
    gradients = work.gradients if eager else []
    # A rank without tasks gets the dtype of the loss from the others.
    dtype = 0 if work.loss is None else 1 + _DTYPES.index(work.loss.dtype)
    # Numbers are equal if and only if the mean of their squares is the square of their mean.  Single precision is exact
    # for digits.
    digits = [given % 64, given // 64 % 64, given // 4096 % 64]
    numbers = [error is not None, own, dtype, dtype > 0, *digits, *(d * d for d in digits)]
    used = [g is not None for g in gradients]
    head = torch.tensor([*numbers, *used], dtype=torch.float32, device=device)
    loss = torch.zeros((), device=device) if work.loss is None else work.loss.detach().to(device)
    filled = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, leaves)]
    # The dtype must be equal on all ranks, so use the widest that a loss can have.
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
    found = _gather(None if error is None else Failure.of(error, rank), ranks, group)
    if error is not None:
        raise error
    raise next(failure for failure in found if failure is not None).exception()


def _gather(own: Any, ranks: int, group: Any) -> list[Any]:
    """The objects of all ranks."""
    found: list[Any] = [None] * ranks
    with typed_errors():
        dist.all_gather_object(found, own, group=group)
    return found


class _KnownGradient(torch.autograd.Function):
    """A value whose gradient, up to a factor, was computed together with it."""

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
    """This rank's terms of a sum, with their graph from ``ends``, detached copies of the inputs of the node.

    The ends are detached since otherwise an input that depends on another input would count twice: in this graph, and
    when autograd continues from the node.
    """

    parts: Sequence[Tensor | None]
    ends: Sequence[Tensor]


def _end(x: Tensor) -> Tensor:
    return x if x.is_leaf else x.detach().requires_grad_()


class _SumOfParts(torch.autograd.Function):
    r"""The sum :math:`\sum_r f_r(x)` over ranks, where each rank has the graph of its own term only.

    Its vector-Jacobian product with a cotangent :math:`v` is :math:`\sum_r J_r^\top v`, again a sum over ranks of
    functions of :math:`x` and :math:`v`.
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
