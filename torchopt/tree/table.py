# SPDX-License-Identifier: Apache-2.0
"""A table of the leaves of a tree with their shapes, dtypes and memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from torchopt.tree.registry import flatten_with_path

_HEAD = ('leaf', 'shape', 'dtype', 'device', 'bytes')
_WIDEST_VALUE = 32


def summary(tree: Any, *, max_rows: int | None = 60) -> str:
    """Tabulate the leaves of a tree.

    Each row shows the path, shape, dtype, device and bytes of a leaf.  For a leaf that is not a tensor, the columns
    "shape" and "dtype" show its value and type.  The last line shows the totals, where memory shared by several leaves
    (tied weights, views, expanded tensors) is counted once.  The bytes of a ``DTensor`` are those of the local shard.
    Sparse tensors and parameters of lazy modules show ``-`` and are not counted.

    The function reads no values of tensors, so it does not synchronize with a device, and tensors may be on the meta
    device.

    Args:
        tree: Parameters, a state, or any other tree.
        max_rows: The maximum number of leaves to show; the rows in the middle of longer trees are omitted, but still
            counted.  ``None`` shows all.

    Raises:
        ValueError: If ``max_rows`` is negative.

    Example:
        >>> import torch, torchopt
        >>> print(torchopt.tree.summary(torchopt.adam().init({'w': torch.zeros(3, 2)})))
        leaf         shape   dtype    device  bytes
        [0].count    ()      int64    cpu         8
        [0].mu['w']  (3, 2)  float32  cpu        24
        [0].nu['w']  (3, 2)  float32  cpu        24
        3 leaves, 13 elements, 56 bytes
    """
    if max_rows is not None and max_rows < 0:
        raise ValueError(f'max_rows is {max_rows}; expected None or a nonnegative number.')
    leaves = flatten_with_path(tree)
    shown = [(path or '(root)', *_describe(x)) for path, x in leaves]
    hidden = 0 if max_rows is None else max(0, len(shown) - max_rows)
    head = len(shown) if not hidden else len(shown) - hidden - (len(shown) - hidden) // 2
    rows = [_HEAD, *shown[:head], *shown[head + hidden :]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    lines = [_line(row, widths) for row in rows]
    if hidden:
        lines.insert(1 + head, f'... {_count(hidden, "leaf", "leaves")} more ...')
    elements, size = _sums([x for _, x in leaves if isinstance(x, torch.Tensor) and not is_lazy(x)])
    parts = [
        _count(len(leaves), 'leaf', 'leaves'),
        _count(elements, 'element', 'elements'),
        _count(size, 'byte', 'bytes'),
    ]
    rounded = f' ({format_bytes(size)})' if size >= 1024 else ''
    return '\n'.join([*lines, ', '.join(parts) + rounded])


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths)]
    return '  '.join([*cells, row[-1].rjust(widths[-1])]).rstrip()


def _count(n: int, one: str, many: str) -> str:
    return f'{n:,} {one if n == 1 else many}'


def format_bytes(size: int) -> str:
    """A size as text: ``512 B``, ``1.5 KiB``."""
    value, units = float(size), ['B', 'KiB', 'MiB', 'GiB', 'TiB']
    while value >= 1023.95 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f'{size} B' if units[0] == 'B' else f'{value:.1f} {units[0]}'


def _describe(x: Any) -> tuple[str, str, str, str]:
    if not isinstance(x, torch.Tensor):
        value = repr(x) if x is None or isinstance(x, (bool, int, float, complex, str)) else ''
        value = value if len(value) <= _WIDEST_VALUE else f'{value[: _WIDEST_VALUE - 3]}...'
        return value, '' if x is None else type(x).__name__, '', ''
    dtype = str(x.dtype).removeprefix('torch.')
    if is_lazy(x):
        return '?', dtype, str(x.device), '-'
    if x.layout is not torch.strided:
        return str(tuple(x.shape)), f'{dtype}, {str(x.layout).removeprefix("torch.")}', str(x.device), '-'
    return str(tuple(x.shape)), dtype, str(x.device), f'{_size(_here(x)):,}'


class _Memory(NamedTuple):
    """The number of bytes of one storage that tensors use, and its size."""

    elements: int
    asked: int
    held: int


def _sums(tensors: list[Any]) -> tuple[int, int]:
    """The number of elements and of bytes, with shared memory counted once."""
    sparse = sum(x.numel() for x in tensors if x.layout is not torch.strided)
    memories: dict[Any, _Memory] = {}
    for x in tensors:
        if x.layout is not torch.strided:
            continue
        here = _here(x)
        key, held = storage_of(here)
        before = memories.get(key, _Memory(0, 0, held))
        elements = before.elements + x.numel()
        if here is x:
            elements = min(elements, max(held // x.element_size(), before.elements))
        elif before.elements:  # a distributed tensor that has been counted
            elements = before.elements
        memories[key] = _Memory(elements, before.asked + _size(here), held)
    found = memories.values()
    return sparse + sum(m.elements for m in found), sum(min(m.asked, m.held) for m in found)


def storage_of(x: torch.Tensor) -> tuple[tuple[str, int], int]:
    """A key of the storage of a tensor, and its size in bytes."""
    try:
        storage = x.untyped_storage()
        return ('storage', storage._cdata), storage.nbytes()
    except (RuntimeError, NotImplementedError):  # sparse, or inside a torch.func transform
        return ('tensor', id(x)), _size(x)


def _here(x: Any) -> Any:
    """The local shard of a distributed tensor; any other tensor unchanged."""
    return x.to_local() if hasattr(x, 'to_local') else x


def _size(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()
