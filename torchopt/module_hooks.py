# SPDX-License-Identifier: Apache-2.0
"""Hooks of this package that are called with every module that is called."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.module import _global_forward_pre_hooks, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

__all__ = ['hooked', 'unhooked']

_HANDLES: list[RemovableHandle] = []


@contextlib.contextmanager
def hooked(hook: Callable[[nn.Module, Any], None]) -> Iterator[None]:
    """Call a function with each module before its ``forward``, and with the arguments."""
    handle = register_module_forward_pre_hook(hook)
    _HANDLES.append(handle)
    try:
        yield
    finally:
        _HANDLES.remove(handle)
        handle.remove()


@contextlib.contextmanager
def unhooked() -> Iterator[None]:
    """Without these hooks, which ``torch.compile`` would capture, and whose changes make it capture again."""
    ids = [handle.id for handle in _HANDLES if handle.id in _global_forward_pre_hooks]  # others are hidden already
    hidden = {i: _global_forward_pre_hooks.pop(i) for i in ids}
    try:
        yield
    finally:
        _global_forward_pre_hooks.update(hidden)
