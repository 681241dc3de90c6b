# SPDX-License-Identifier: Apache-2.0
"""Copies of tensors: by reference, with their graph, or without; tied tensors stay tied."""

from __future__ import annotations

import copy
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

Device = torch.device | str | int
"""The device of a copy."""

Container = MutableMapping[str, Any]
"""The parameters or the buffers of a submodule, by name."""


def _reference(tensor: Tensor, device: Device | None) -> Tensor:
    return tensor if device is None else tensor.to(device)


def _copy(tensor: Tensor, device: Device | None) -> Tensor:
    if is_lazy(tensor):
        return copy.deepcopy(tensor)
    moved = _reference(tensor, device)
    return tensor.clone() if moved is tensor else moved


def _deepcopy(tensor: Tensor, device: Device | None) -> Tensor:
    if is_lazy(tensor):
        return copy.deepcopy(tensor)
    fresh = _copy(tensor.detach(), device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fresh, requires_grad=tensor.requires_grad)
    return fresh.requires_grad_(tensor.requires_grad)


_REPLICATIONS: dict[str, Callable[[Tensor, Device | None], Tensor]] = {
    'reference': _reference,
    'ref': _reference,
    'copy': _copy,
    'clone': _copy,
    'deepcopy': _deepcopy,
    'deepclone': _deepcopy,
}


class Replicate:
    """Replicates leaves; each tensor is replicated once, so that tied tensors stay tied."""

    def __init__(self, by: str, device: Device | None = None) -> None:
        if by not in _REPLICATIONS:
            raise ValueError(f'by: {by!r} is not one of {", ".join(map(repr, _REPLICATIONS))}. Pass one of these')
        self._function = _REPLICATIONS[by]
        self._device = device
        self._replicas: dict[Tensor, Tensor] = {}  # tensors hash by identity

    def __call__(self, leaf: Any) -> Any:
        """The replica of a tensor; other objects unchanged."""
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf not in self._replicas:
            self._replicas[leaf] = self._function(leaf, self._device)
        return self._replicas[leaf]

    def container(self, container: Container) -> Container:
        """The replicas of the tensors in a dict, in a dict of the same class."""
        items = {name: self(tensor) for name, tensor in container.items() if tensor is not None}
        return type(container)(items)  # type: ignore[call-arg]  # dict or OrderedDict
