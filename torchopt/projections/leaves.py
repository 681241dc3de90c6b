# SPDX-License-Identifier: Apache-2.0
"""Convert leaves of trees, and their bounds, to tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from torchopt import tree as trees
from torchopt.dtypes import is_inexact

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ['as_bound', 'check_vector', 'map_leaves']


def check_vector(x: torch.Tensor) -> None:
    """Require a vector."""
    if x.ndim != 1:
        raise ValueError(f'x has shape {tuple(x.shape)}; expected a vector. To project each row use torch.func.vmap.')


def map_leaves(f: Callable[..., torch.Tensor], tree: Any, *rest: Any) -> Any:
    """Map a function over the leaves, after converting numbers to tensors."""
    return trees.map(lambda x, *others: f(torch.as_tensor(x), *others), tree, *rest)


def as_bound(value: Any, x: torch.Tensor) -> torch.Tensor:
    """A bound as a tensor to compare with a leaf; a scalar does not widen the leaf."""
    if not isinstance(value, torch.Tensor):
        keep = x.is_floating_point() or isinstance(value, int)
        return torch.as_tensor(value, dtype=x.dtype if keep else None, device=x.device)
    return value.to(x) if value.ndim == 0 and is_inexact(x) else value
