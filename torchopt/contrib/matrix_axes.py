# SPDX-License-Identifier: Apache-2.0
"""Tensors as batches of matrices: which axes are the rows, and which are the columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from torchopt import tree

Axes = Sequence[int] | int


class MatrixShape(NamedTuple):
    """How to reshape a tensor to a batch of matrices.

    Attributes:
        order: The axes, first those of the batch, then those of the rows, then those of the columns.
        shape: The shape in this order.
        sizes: The numbers of matrices, rows and columns.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    sizes: tuple[int, int, int]

    def to_matrices(self, x: Tensor) -> Tensor:
        """The tensor as a batch of matrices."""
        return x.permute(self.order).reshape(self.sizes)

    def from_matrices(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`to_matrices`."""
        back = [self.order.index(i) for i in range(len(self.order))]
        return x.reshape(self.shape).permute(back)


def matrix_shape(shape: Sequence[int], rows: Axes, columns: Axes, *, name: str, batch: bool) -> MatrixShape:
    """How to reshape a tensor, of this shape and name, to a batch of matrices; ``rows`` and ``columns`` are axes.

    Raises:
        ValueError: If there are fewer than two axes, an axis is out of range or named twice, or there are other axes,
            which form the batch, although ``batch`` is False.
    """
    n = len(shape)
    if n < 2:
        raise ValueError(f'{name} has shape {tuple(shape)}; a matrix has at least two axes. Use another rule for it.')
    both = [_as_tuple(rows), _as_tuple(columns)]
    if any(not -n <= axis < n for axes in both for axis in axes):
        raise ValueError(f'{name} has the axes {-n} to {n - 1}; the rows are {rows!r} and the columns {columns!r}.')
    row_axes, column_axes = (tuple(axis % n for axis in axes) for axes in both)
    named = row_axes + column_axes
    if len(set(named)) < len(named):
        raise ValueError(
            f'The rows {rows!r} and the columns {columns!r} of {name}, of shape {tuple(shape)}, must be disjoint. Name '
            f'each axis once.'
        )
    rest = tuple(i for i in range(n) if i not in named)
    if rest and not batch:
        raise ValueError(
            f'The rows {rows!r} and the columns {columns!r} of {name} leave out the axes {rest} of its shape '
            f'{tuple(shape)}. Name every axis.'
        )
    order = rest + named
    sizes = [math.prod([shape[i] for i in axes]) for axes in (rest, row_axes, column_axes)]
    return MatrixShape(order, tuple(shape[i] for i in order), (sizes[0], sizes[1], sizes[2]))


def axes_of_leaves(axes: Any, updates: Any, kind: type, applies: Callable[[Tensor], bool]) -> list[Any]:
    """The axes of each leaf of a tree, or None.

    Args:
        axes: None for the default; one entry for all leaves to which it ``applies``; a tree of entries and
            Nones with the structure of the updates or a prefix of it; or a function that makes one from the updates.
        updates: The tree.
        kind: The class of an entry.
        applies: Whether the default, or one entry for all, applies to a leaf.

    Raises:
        ValueError: If the tree does not match.
        TypeError: If it contains anything but entries and Nones.
    """
    made = tree.made_for(updates, axes)
    if made is None or isinstance(made, kind):
        entry = kind() if made is None else made
        return [entry if x is not None and applies(x) else None for x in tree.flatten(updates)[0]]
    entries, top = tree.flatten(made, lambda x: isinstance(x, kind))
    for entry in entries:
        if entry is not None and not isinstance(entry, kind):
            raise TypeError(f'The dimension numbers contain {entry!r}; expected {kind.__name__} or None.')
    parts = tree.flatten_up_to(top, updates, name='updates', like='the dimension numbers')
    return [entry for entry, part in zip(entries, parts) for _ in tree.flatten(part)[0]]


def matrices_of_leaves(
    axes: Any, updates: Any, kind: type, applies: Callable[[Tensor], bool], *, batch: bool
) -> list[MatrixShape | None]:
    """How to reshape each leaf of a tree, or None; the arguments are those of the two functions above."""
    entries = axes_of_leaves(axes, updates, kind, applies)
    return [
        None if entry is None or x is None else matrix_shape(x.shape, *entry, name=f'leaf {i}', batch=batch)
        for i, (entry, x) in enumerate(zip(entries, tree.flatten(updates)[0]))
    ]


def _as_tuple(axes: Axes) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes)
