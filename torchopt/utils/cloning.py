# SPDX-License-Identifier: Apache-2.0
"""Copies of modules and optimizers, together with the tensors that they hold."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor, nn

from torchopt import tree
from torchopt.utils.replication import Device, Replicate
from torchopt.utils.state import HOLDERS, ModuleState, is_state, refuse_iterator

T = TypeVar('T')


def module_clone(target: T, *, by: str = 'reference', detach_buffers: bool = False, device: Device | None = None) -> T:
    """Copy a module or an optimizer; ``by`` determines how its tensors are copied.

    The copy shares no Python container with the original, so training one does not affect the other.  All tensors are
    replicated, including meta members and plain attributes; tied tensors stay tied.  Clone a module and its optimizer
    together, ``module_clone((net, optimizer))``, to keep them connected; the clone of an optimizer alone has its own
    parameters.

    Args:
        target: A module, an optimizer, or a tree of these and of tensors; other leaves are kept unchanged.
        by: ``'reference'``, ``'copy'`` or ``'deepcopy'`` (or their second names); see :func:`extract_state_dict`.
        detach_buffers: Whether to replicate buffers by ``'deepcopy'`` for any ``by``.
        device: The device of the copy; None means that of the originals.

    Raises:
        TypeError: The target is an iterator, such as ``module.parameters()``.
        ValueError: ``by`` is unknown.

    Example:
        >>> import torch, torchopt
        >>> net = torch.nn.Linear(2, 1)
        >>> twin = torchopt.module_clone(net, by='reference')
        >>> twin is net, twin.weight is net.weight
        (False, True)
        >>> torchopt.module_clone(net, by='copy').weight.grad_fn
        <CloneBackward0 object at ...>
    """
    refuse_iterator(target)
    replicate = Replicate(by, device)
    replicate_buffer = Replicate('deepcopy', device) if detach_buffers else replicate
    held = [x for x in tree.leaves(target, is_state) if isinstance(x, HOLDERS)]
    tensors, buffers = _tensors_in(held)
    memo: dict[int, Any] = {id(tensor): replicate(tensor) for tensor in tensors}
    memo.update((id(buffer), replicate_buffer(buffer)) for buffer in buffers)

    def clone(leaf: Any) -> Any:
        if isinstance(leaf, HOLDERS):
            return copy.deepcopy(leaf, memo)
        if isinstance(leaf, ModuleState):
            return leaf._replace(
                params=tuple(map(replicate.container, leaf.params)),
                buffers=tuple(map(replicate_buffer.container, leaf.buffers)),
            )
        return replicate(leaf)

    return tree.map(clone, target, is_leaf=is_state)


def _tensors_in(roots: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """All tensors that a deep copy of the roots would visit, and those of them that are buffers."""
    tensors: list[Tensor] = []
    buffers: list[Tensor] = []
    seen: set[int] = set()
    stack = list(roots)
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            tensors.append(item)
            continue
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, nn.Module):
            buffers.extend(buffer for buffer in item._buffers.values() if buffer is not None)
        if isinstance(item, HOLDERS):
            stack.append(vars(item))
        elif isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, (tuple, list, set, frozenset)):
            stack.extend(item)
    return tensors, buffers
