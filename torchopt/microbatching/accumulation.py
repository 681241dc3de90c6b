# SPDX-License-Identifier: Apache-2.0
"""Accumulation of the values of a function on the microbatches."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from torchopt import tree
from torchopt.levels import is_transformed


@dataclass(frozen=True)
class Accumulator:
    r"""How to accumulate the values of a function on the microbatches.

    The result for the values :math:`x_0, x_1, \dots` is
    ``finalize(update(... update(update(init(x_0), x_0, 0), x_1, 1) ...))``.

    Args:
        init: ``init(value)`` makes the initial carry, a tree of tensors, from the shapes and dtypes of the first value.
        update: ``update(carry, value, index)`` adds the value of one microbatch to the carry.
        finalize: ``finalize(carry)`` makes the result.
        aggregate: ``aggregate(values)`` accumulates the values of the rows of one microbatch, which are stacked along
            axis 0; for :func:`micro_vmap`.

    Example:
        >>> import torch, torchopt
        >>> from torchopt.microbatching import Accumulator, microbatch
        >>> largest = Accumulator(
        ...     init=lambda value: torch.full_like(value, -torch.inf),
        ...     update=lambda carry, value, index: torch.maximum(carry, value),
        ...     finalize=lambda carry: carry,
        ...     aggregate=lambda values: values.amax(0),
        ... )
        >>> microbatch(torch.amax, argnums=0, microbatch_size=2, accumulator=largest)(
        ...     torch.tensor([1.0, 4.0, 3.0, 2.0])
        ... )
        tensor(4.)
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], Any]
    finalize: Callable[[Any], Any]
    aggregate: Callable[[Any], Any]


class AccumulationType(enum.Enum):
    """The predefined kinds of accumulation.

    Example:
        >>> from torchopt.microbatching import AccumulationType
        >>> AccumulationType.SUM.name
        'SUM'
    """

    MEAN = enum.auto()
    """The sum of the values divided by the number of microbatches; for floating values."""
    SUM = enum.auto()
    """The sum of the values."""
    RUNNING_MEAN = enum.auto()
    """The mean of the values of the microbatches that have been run; for floating values."""
    CONCAT = enum.auto()
    """The values concatenated along axis 0, in the order of the rows of the batch; zeros for rows not run."""


def map_tensors(f: Callable[[torch.Tensor], Any], values: Any) -> Any:
    """Map over the leaves, with arrays and numbers converted to tensors."""
    return tree.map(lambda x: f(torch.as_tensor(x)), values)


def accumulate(
    on_microbatch: Callable[[int], Any], accumulator: Accumulator, count: int, real: int | torch.Tensor | None
) -> Any:
    """Run all microbatches, or only the first ``num_real_microbatches``."""
    unknown = real if isinstance(real, torch.Tensor) and is_transformed(real) else None
    steps = count if real is None or unknown is not None else int(real)
    if not 0 <= steps <= count:
        raise ValueError(
            f'num_real_microbatches is {steps}, but the batch has {count} microbatches. Pass from 0 to {count}.'
        )
    # Free each value after its update, before the next microbatch is run.
    first = [on_microbatch(0)]
    carry = accumulator.init(first[0])
    for i in range(steps):
        updated = accumulator.update(carry, first.pop() if first else on_microbatch(i), i)
        carry = updated if unknown is None else _choose(i < unknown, updated, carry)
        del updated
    return accumulator.finalize(carry)


def compose(accumulators: Any, count: int) -> Accumulator:
    """One accumulator for a tree of them."""
    kinds, spec = tree.flatten(accumulators)
    parts = [_ready_made(kind, count) for kind in kinds]

    def subtrees(values: Any) -> list[Any]:
        return tree.flatten_up_to(spec, values, name='The value of the function', like='accumulator', remedy=_REMEDY)

    return Accumulator(
        lambda values: [part.init(x) for part, x in zip(parts, subtrees(values))],
        lambda carry, values, i: [part.update(c, x, i) for part, c, x in zip(parts, carry, subtrees(values))],
        lambda carry: tree.unflatten(spec, [part.finalize(c) for part, c in zip(parts, carry)]),
        lambda values: tree.unflatten(spec, [part.aggregate(x) for part, x in zip(parts, subtrees(values))]),
    )


_REMEDY = 'Pass an accumulator with the structure of the value or a prefix of it.'


def _ready_made(kind: Any, count: int) -> Accumulator:
    """The accumulator of a predefined kind."""
    if isinstance(kind, Accumulator):
        return kind
    if kind in (AccumulationType.MEAN, AccumulationType.RUNNING_MEAN) and count < 1:
        raise ValueError(
            f'The batch is empty, but {kind.name} requires at least one microbatch. Pass a nonempty batch.'
        )
    if kind is AccumulationType.SUM or kind is None:
        return _lift(torch.zeros_like, lambda total, x, i: total + x, lambda total: total, _sum)
    if kind is AccumulationType.MEAN:
        return _lift(_floating_zeros, lambda total, x, i: total + x, lambda total: total / count, _mean)
    if kind is AccumulationType.RUNNING_MEAN:
        return _lift(_floating_zeros, _update_mean, lambda mean: mean, _mean)
    if kind is AccumulationType.CONCAT:
        return _lift(
            lambda x: _Rows(torch.zeros_like(x), ()),
            lambda rows, x, i: _Rows(rows.missing, (*rows.found, torch.as_tensor(x))),
            lambda rows: rows.join(count),
            lambda x: x,
        )
    raise ValueError(f'accumulator contains {kind!r}; expected an AccumulationType or an Accumulator.')


def _lift(
    init: Callable[..., Any], update: Callable[..., Any], finalize: Callable[..., Any], aggregate: Callable[..., Any]
) -> Accumulator:
    """Make an accumulator of trees from one of tensors."""
    return Accumulator(
        lambda value: map_tensors(init, value),
        lambda carry, value, i: tree.map(lambda c, x: update(c, x, i), carry, value),
        lambda carry: tree.map(finalize, carry),
        lambda values: map_tensors(aggregate, values),
    )


@dataclass(frozen=True)
class _Rows:
    """The values of the microbatches so far, and the replacement for those not run; a leaf for trees."""

    missing: torch.Tensor
    found: tuple[torch.Tensor, ...]

    def join(self, count: int) -> torch.Tensor:
        """Row ``j`` of microbatch ``i`` is row ``i + j * count`` of the batch."""
        if not count:
            return self.missing.new_zeros(0, *self.missing.shape[1:])
        parts = [*self.found, *[self.missing] * (count - len(self.found))]
        joined = torch.stack(parts, dim=min(self.missing.ndim, 1))
        return joined.reshape(-1, *self.missing.shape[1:])


def _choose(keep: torch.Tensor, new: Any, old: Any) -> Any:
    """The new carry or the old one, depending on a bool tensor whose value cannot be read."""

    def choose(x: Any, y: Any) -> Any:
        if isinstance(x, _Rows):
            return _Rows(x.missing, (*y.found, torch.where(keep, x.found[-1], x.missing)))
        return torch.where(keep, x, y)

    return tree.map(choose, new, old)


def _floating_zeros(x: torch.Tensor) -> torch.Tensor:
    if not x.is_floating_point():
        raise ValueError(
            f'MEAN and RUNNING_MEAN require floating-point values, found {x.dtype}. Convert them in the function.'
        )
    return torch.zeros_like(x)


def _update_mean(mean: torch.Tensor, x: Any, index: int) -> torch.Tensor:
    kept = index / (index + 1)
    return mean * kept + x * (1.0 - kept)


def _sum(x: torch.Tensor) -> torch.Tensor:
    return x.sum(0, dtype=None if x.dtype == torch.bool else x.dtype)


def _mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean(0, dtype=None if x.is_floating_point() or x.is_complex() else torch.get_default_dtype())
