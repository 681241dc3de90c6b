# SPDX-License-Identifier: Apache-2.0
"""Leaves of nested containers and copies of parameters, with the names of ``higher.utils``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['flatten', 'get_func_params']


def flatten(x: Any) -> list[Any]:
    """The leaves of nested dicts, lists, tuples and sets, in order."""
    if isinstance(x, dict):
        x = list(x.values())
    return [leaf for entry in x for leaf in flatten(entry)] if isinstance(x, (list, tuple, set)) else [x]


def get_func_params(
    module: nn.Module, device: torch.device | str | None = None, safe_copy: bool = True
) -> list[Tensor]:
    """Copies of the parameters of a module that require grad where the parameters do, without their graph.

    Args:
        module: The module.
        device: The device of the copies; None means that of the parameters.
        safe_copy: False shares memory with the parameters.
    """
    return [p.detach().to(device, copy=safe_copy).requires_grad_(p.requires_grad) for p in module.parameters()]
