# SPDX-License-Identifier: Apache-2.0
"""Convert leaves of trees, and their bounds, to tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from torchopt import tree as trees
from torchopt.dtypes import is_inexact
from torchopt.levels import host_values


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


def check_order(lower: Any, upper: Any, names: tuple[str, str]) -> None:
    """Require lower bounds that are not above the upper ones, if both can be read without synchronization."""
    low, high = (None if v is None else host_values(v) for v in (lower, upper))
    if low is None or high is None:
        return
    crossing = low > high
    if bool(crossing.any()):
        first, second = (v.expand_as(crossing)[crossing][0].item() for v in (low, high))
        raise ValueError(
            f'The bounds cross: {names[0]} is {first:g} where {names[1]} is {second:g}. The lower bound must not be '
            f'above the upper one.'
        )
