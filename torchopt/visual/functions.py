# SPDX-License-Identifier: Apache-2.0
"""Properties of autograd nodes: names, attributes, saved tensors, results."""

from __future__ import annotations

import functools
import re
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from torchopt.tree.table import format_bytes

SAVED_PREFIX = '_saved_'
"""The prefix of the attributes in which an autograd node keeps the values that its derivative uses."""

_ADDRESS = re.compile(r' at 0x[0-9a-fA-F]+')


@functools.lru_cache(maxsize=1024)
def _attributes_of(kind: Hashable) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith(SAVED_PREFIX))


def _saved_attributes(fn: Any) -> tuple[str, ...]:
    kind: Any = type(fn)  # cached by class, whose nodes all have the same attributes
    return _attributes_of(kind)


def _read(fn: Any, attribute: str) -> Any:
    try:
        return getattr(fn, attribute)
    except (RuntimeError, AttributeError):  # freed by a backward pass, or changed in place afterwards
        return '[freed]'


def function_name(fn: Any) -> str:
    """The class of a node, such as ``MulBackward0``."""
    name = type(fn).__name__
    return name if name not in ('CppFunction', 'Node') else fn.name().rsplit('::', 1)[-1]


def leaf_of(fn: Any) -> Tensor | None:
    """The leaf whose gradient a node accumulates; None for any other node."""
    return fn.variable if function_name(fn) == 'AccumulateGrad' else None


def get_fn_name(fn: Any, show_attrs: bool, max_attr_chars: int) -> str:
    """The text of an autograd node.

    Args:
        fn: The node, the ``grad_fn`` of a tensor.
        show_attrs: Whether to list the saved values below the name, with ``[saved tensor]`` for tensors.
        max_attr_chars: The length to which values are cut; at least 3.

    Returns:
        The name of its class, followed by one line per attribute if ``show_attrs``.

    Example:
        >>> import torch
        >>> from torchopt.visual import get_fn_name
        >>> fn = torch.ones(2, requires_grad=True).sum(0).grad_fn
        >>> print(get_fn_name(fn, False, 50))
        SumBackward1
        >>> print(get_fn_name(fn, True, 50))
        SumBackward1
        ---------------------
        dim           :  (0,)
        keepdim       : False
        self_sym_sizes:  (2,)
    """
    name = function_name(fn)
    if not show_attrs:
        return name
    attributes: dict[str, str] = {}
    for attribute in _saved_attributes(fn):
        value = _read(fn, attribute)
        if isinstance(value, Tensor):
            text = '[saved tensor]'
        elif isinstance(value, (tuple, list)) and any(isinstance(x, Tensor) for x in value):
            text = '[saved tensors]'
        else:
            text = _ADDRESS.sub('', str(value))
        attributes[attribute.removeprefix(SAVED_PREFIX)] = text
    if not attributes:
        return name
    left = max(map(len, attributes))
    right = min(max(map(len, attributes.values())), max(max_attr_chars, 3))
    rows = [f'{k:<{left}}: {v if len(v) <= right else v[: right - 3] + "...":>{right}}' for k, v in attributes.items()]
    return '\n'.join([name, '-' * max(left + right + 2, len(name)), *rows])


def saved_tensors(fn: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a node saved, with the names of the attributes."""
    if isinstance(fn, torch.autograd.function.BackwardCFunction):
        saved = _read(fn, 'saved_tensors')
        for i, tensor in enumerate(saved if isinstance(saved, tuple) else ()):
            if tensor is not None:
                yield f'saved_tensors[{i}]', tensor
        return
    for attribute in _saved_attributes(fn):
        value, name = _read(fn, attribute), attribute.removeprefix(SAVED_PREFIX)
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            for i, tensor in enumerate(value):
                if isinstance(tensor, Tensor):
                    yield f'{name}[{i}]', tensor


def tensor_label(name: str | None, shape: Any) -> str:
    """The text of the box of a tensor: its name, if any, and its shape."""
    size = f'({", ".join(map(str, shape))}{"," if len(shape) == 1 else ""})'
    return f'{name}\n{size}' if name else size


def describe_tensor(tensor: Tensor) -> str:
    """Shape, dtype, device and size as text."""
    words = [tensor_label(None, tensor.shape), str(tensor.dtype).removeprefix('torch.'), str(tensor.device)]
    return f'{" ".join(words)}, {format_bytes(tensor.numel() * tensor.element_size())}'


def results(fn: Any) -> list[Any]:
    """The metadata of each result of a node, with ``shape`` and ``dtype``; empty if torch does not provide it."""
    try:
        return list(fn._input_metadata)  # the inputs of a backward node correspond to the results of its function
    except (RuntimeError, AttributeError):
        return []
