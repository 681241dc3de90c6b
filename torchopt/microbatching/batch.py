# SPDX-License-Identifier: Apache-2.0
"""Split the batch, and run a function on one microbatch after another."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchopt import tree
from torchopt.microbatching.accumulation import AccumulationType, accumulate, compose, map_tensors


def reshape_batch_axis(tree: Any, microbatch_size: int, axis: int = 0) -> Any:
    """Split the batch axis of every leaf into two axes, the microbatches and their rows.

    Microbatch ``i`` of ``k`` has the rows ``i, i + k, i + 2 k, ...``.  So if a batch is distributed in blocks over
    several devices, each device has a part of every microbatch.

    Args:
        tree: Tree of tensors, each with a batch axis.
        microbatch_size: The number of rows of a microbatch, which divides the size of the batch axis.
        axis: The batch axis.

    Returns:
        A tree of views; the axis ``axis`` is that of the microbatches, and the next axis that of their rows.

    Raises:
        ValueError: If ``microbatch_size`` does not divide the batch size, or a leaf has no such axis.

    Example:
        >>> import torch, torchopt
        >>> torchopt.microbatching.reshape_batch_axis(torch.arange(6), 2)
        tensor([[0, 3],
                [1, 4],
                [2, 5]])
    """

    def split(x: torch.Tensor) -> torch.Tensor:
        if not _has_axis(x, axis):
            raise ValueError(f'A leaf of tree has shape {tuple(x.shape)}, which has no axis {axis}. Pass another axis.')
        at = axis % x.ndim
        shape = (*x.shape[:at], microbatch_size, _divide(x.shape[at], microbatch_size), *x.shape[at + 1 :])
        return x.reshape(shape).transpose(at, at + 1)

    return map_tensors(split, tree)


def microbatch(
    fun: Callable[..., Any],
    argnums: int | Sequence[int],
    microbatch_size: int | None,
    accumulator: Any = AccumulationType.SUM,
    *,
    argnames: str | Sequence[str] = (),
    in_axes: int | Sequence[int] = 0,
    num_real_microbatches: int | torch.Tensor | None = None,
) -> Callable[..., Any]:
    """Run a function on one microbatch after another, and accumulate its values.

    For a sum or a mean over the batch, the result is the same, and the memory is that of one microbatch.

    Args:
        fun: The function.  Its value is a tree of tensors.
        argnums: The position or positions of the arguments that have a batch axis; each is a tree of tensors.  A call
            may pass such an argument by name, and one of ``argnames`` by position.
        microbatch_size: The number of rows of a microbatch, a divisor of the batch size.  With None, ``fun`` is
            returned unchanged.  An empty batch has no microbatches: its sum is zero, and its concatenation is empty.
        accumulator: How to accumulate: an :class:`AccumulationType`, an :class:`Accumulator`, or a tree of these with
            the structure of the value of ``fun`` or a prefix of it.
        argnames: The name or names of the keyword arguments that have a batch axis.
        in_axes: The batch axis: one for all, or one for each of ``argnums`` and then ``argnames``.
        num_real_microbatches: The number of microbatches to run; all if None.  A tensor is read, except in transforms
            and under compilation, where all microbatches are run and the values of the others are ignored.

    Returns:
        A function of the arguments of ``fun``.  See :func:`reshape_batch_axis` for the rows of each microbatch.

    Raises:
        TypeError: If ``in_axes`` does not match the arguments.
        ValueError: Raised by the new function if batch sizes differ or are not divisible, or for the mean of integers.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.microbatching import AccumulationType, microbatch
        >>> fun = lambda x: (x + 1, (3 * x).sum())
        >>> parts = (AccumulationType.CONCAT, AccumulationType.SUM)
        >>> microbatch(fun, argnums=0, microbatch_size=2, accumulator=parts)(torch.tensor([1, 2, 3, 4]))
        (tensor([2, 3, 4, 5]), tensor(30))
    """
    if microbatch_size is None:
        return fun
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    names = (argnames,) if isinstance(argnames, str) else tuple(argnames)
    batched: tuple[int | str, ...] = (*positions, *names)
    axes = (in_axes,) * len(batched) if isinstance(in_axes, int) else tuple(in_axes)
    if len(axes) != len(batched) or not batched:
        raise TypeError(
            f'in_axes has {len(axes)} axes, but argnums and argnames have {len(batched)} arguments. '
            f'Pass at least one argument, and one axis for all or one for each.'
        )

    def microbatched(*args: Any, **kwargs: Any) -> Any:
        places = [_place_of(key, fun, args, kwargs) for key in batched]
        given = [args[key] if isinstance(key, int) else kwargs[key] for key in places]
        count = _divide(_common_size(batched, given, axes), microbatch_size)

        def on_microbatch(index: int) -> Any:
            parts, named = list(args), dict(kwargs)
            for key, value, axis in zip(places, given, axes):
                rows = map_tensors(functools.partial(_rows, axis=axis, start=index, step=max(count, 1)), value)
                if isinstance(key, int):
                    parts[key] = rows
                else:
                    named[key] = rows
            return fun(*parts, **named)

        return accumulate(on_microbatch, compose(accumulator, count), count, num_real_microbatches)

    return microbatched


def _rows(x: torch.Tensor, axis: int, start: int, step: int) -> torch.Tensor:
    """Every ``step``-th row, as a view."""
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, None, step),)]


def _has_axis(x: Any, axis: int) -> bool:
    return -x.ndim <= axis < x.ndim


def _divide(size: int, microbatch_size: int) -> int:
    if microbatch_size < 1:
        raise ValueError(f'microbatch_size is {microbatch_size}; expected at least 1, or None for a single batch.')
    if size % microbatch_size:
        raise ValueError(
            f'The batch size {size} must be divisible by microbatch_size, which is {microbatch_size}. '
            f'Pass a divisor of it, or pad the batch.'
        )
    return size // microbatch_size


def _place_of(key: int | str, fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str:
    """The position or the name by which an argument was passed."""
    if key in kwargs if isinstance(key, str) else -len(args) <= key < len(args):
        return key
    names = _positional(fun)
    if isinstance(key, int) and 0 <= key < len(names) and names[key] in kwargs:
        return names[key]
    if isinstance(key, str) and key in names[: len(args)]:
        return names.index(key)
    raise TypeError(f'The argument {key!r} has a batch axis, but was not passed. Pass it by position or by name.')


def _positional(fun: Callable[..., Any]) -> list[str]:
    """The names of the arguments that may be passed by position; empty if there is no signature."""
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _common_size(keys: tuple[int | str, ...], given: list[Any], axes: tuple[int, ...]) -> int:
    """The batch size, which must be equal for all leaves of all batched arguments."""
    common = None
    for key, value, axis in zip(keys, given, axes):
        for i, leaf in enumerate(tree.flatten(value)[0]):
            if leaf is None:
                continue
            x = torch.as_tensor(leaf)
            if not _has_axis(x, axis):
                raise ValueError(
                    f'Argument {_place(key, value, i)} has shape {tuple(x.shape)}, which has no axis {axis}. '
                    f'Pass a batch, or another axis.'
                )
            if common is None:
                common = x.shape[axis]
            elif x.shape[axis] != common:
                raise ValueError(
                    f'Argument {_place(key, value, i)} has batch size {x.shape[axis]}, but those before it have batch '
                    f'size {common}. Pass equal batch sizes.'
                )
    if common is None:
        raise ValueError('The arguments with a batch axis contain no tensors. Pass a batch.')
    return common


def _place(key: int | str, value: Any, i: int) -> str:
    return f'{key!r}{tree.flatten_with_path(value)[i][0]}'
