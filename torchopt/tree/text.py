# SPDX-License-Identifier: Apache-2.0
"""Nested values as readable text: on one line if they fit, else indented."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any, NamedTuple

import torch

WIDTH = 100
_INDENT = 4
_FEW = 6  # tensors with at most this many elements are shown with their values


class Spelled(NamedTuple):
    """A call to be printed, returned by the method ``_spelled`` of an object.

    Attributes:
        name: The name of the function.
        args: The positional arguments.
        kwargs: The keyword arguments.
        a_line_each: Whether to print every argument on its own line.

    Example:
        >>> import torchopt
        >>> torchopt.tree.Spelled('scale', (0.5,), {})
        Spelled(name='scale', args=(0.5,), kwargs={}, a_line_each=False)
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    a_line_each: bool = False


def as_text(value: Any) -> str:
    """Convert a value to text; an object with a method ``_spelled`` is shown as the call that made it.

    Functions are shown by name, tensors with more than a few elements by shape and dtype, dataclasses without the
    fields that have their default.

    Args:
        value: Numbers, tensors, functions, transformations, schedules, and any nesting of these.

    Example:
        >>> import torch, torchopt
        >>> torchopt.tree.as_text({'f': torchopt.tree.norm, 'x': torch.zeros(100, 3)})
        "{'f': norm, 'x': tensor(..., shape=(100, 3), dtype=float32)}"
    """
    return _show(value, 0, 0)


def _show(value: Any, indent: int, used: int) -> str:
    """The text of a value that begins in column ``indent + used`` of a line indented by ``indent``."""
    node = _node(value)
    if node is None:
        lines = _atom(value).splitlines() or ['']
        return ('\n' + ' ' * indent).join(line.rstrip() for line in lines)
    begin, parts, end, a_line_each = node
    if not parts:
        return begin + end
    if not a_line_each:
        shown = [prefix + _show(part, 0, 0) for prefix, part in parts]
        line = begin + ', '.join(shown) + (',' if end == ')' and begin == '(' and len(parts) == 1 else '') + end
        if '\n' not in line and indent + used + len(line) <= WIDTH:
            return line
    inner = indent + _INDENT
    shown = [' ' * inner + prefix + _show(part, inner, len(prefix) + 1) + ',' for prefix, part in parts]
    return '\n'.join([begin, *shown, ' ' * indent + end])


_Node = tuple[str, list[tuple[str, Any]], str, bool]


def _node(value: Any) -> _Node | None:
    """The opening text of a nested value, its parts with their prefixes, and the closing text."""
    call = _call(value)
    if call is not None:
        parts = [('', x) for x in call.args] + [(f'{name}=', x) for name, x in call.kwargs.items()]
        return f'{call.name}(', parts, ')', call.a_line_each
    if type(value) is dict:
        return '{', [(f'{key!r}: ', x) for key, x in value.items()], '}', False
    if type(value) is list:
        return '[', [('', x) for x in value], ']', False
    if type(value) is tuple:
        return '(', [('', x) for x in value], ')', False
    return None


def _call(value: Any) -> Spelled | None:
    if isinstance(value, type):
        return None
    if hasattr(type(value), '_spelled'):
        return value._spelled()
    if isinstance(value, functools.partial):
        return Spelled('partial', (value.func, *value.args), dict(value.keywords))
    if isinstance(value, tuple) and hasattr(value, '_fields'):
        return Spelled(type(value).__name__, (), dict(zip(value._fields, value)))
    if dataclasses.is_dataclass(value):
        told = {f.name: (getattr(value, f.name), f.default) for f in dataclasses.fields(value) if f.repr}
        made_by = getattr(value, 'made_by', type(value).__name__)
        return Spelled(made_by, (), {name: x for name, (x, default) in told.items() if not _same(x, default)})
    return None


def _same(x: Any, default: Any) -> bool:
    return x is default or (type(x) is type(default) and isinstance(x, (int, float, str)) and x == default)


def _atom(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if inspect.ismethod(value):
        owner = value.__self__ if isinstance(value.__self__, type) else type(value.__self__)
        return f'{owner.__name__}.{value.__name__}'
    if isinstance(value, type) or inspect.isroutine(value):
        return getattr(value, '__name__', repr(value))
    if getattr(type(value), '__repr__', None) is object.__repr__:
        return f'<{type(value).__name__}>'
    return repr(value)


def _tensor(x: torch.Tensor) -> str:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    if x.layout is torch.strided and x.device.type == 'cpu' and x.numel() <= _FEW and x.dim() < 2 and not wrapped:
        return repr(x)
    words = [f'shape={tuple(x.shape)}', f'dtype={str(x.dtype).removeprefix("torch.")}']
    if x.device.type != 'cpu':
        words.append(f"device='{x.device}'")
    if x.requires_grad:
        words.append('requires_grad=True')
    return f'tensor(..., {", ".join(words)})'
