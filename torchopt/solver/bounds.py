# SPDX-License-Identifier: Apache-2.0
"""Lower and upper bounds of parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.kinds import kind_of
from torchopt.levels import is_readable


def bounds_like(bounds: Any, params: Any) -> tuple[Any, Any]:
    """The lower and the upper bound, trees like the parameters.

    ``bounds`` is a pair of trees, tops of trees, or numbers, None where there is no bound; or None for no bounds.

    Raises:
        ValueError: If ``bounds`` is not a pair, structures or shapes do not match, a bound is NaN, or bounds cross.
    """
    if bounds is None:
        bounds = (None, None)
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f'Invalid bounds: {kind_of(bounds)}; expected a pair (lower, upper), or None.')
    lower, upper = (
        _fitted(default if bound is None else bound, params, name)
        for name, bound, default in zip(('lower', 'upper'), bounds, (-math.inf, math.inf))
    )
    for low, high in zip(tree.leaves(lower), tree.leaves(upper)):
        low, high = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in (low, high))
        if is_readable(low) and is_readable(high) and not bool((low <= high).all()):
            i = (~(low <= high)).nonzero()[0].tolist()
            if bool(low.isnan().any() | high.isnan().any()):
                raise ValueError('A bound is NaN; use -inf and inf where there is no bound.')
            raise ValueError(
                f'The bounds cross: the lower bound is {low[tuple(i)].item():g} where the upper bound is '
                f'{high[tuple(i)].item():g}, at {i}. Exchange them.'
            )
    return lower, upper


def _fitted(bound: Any, params: Any, name: str) -> Any:
    """A bound as a tree like the parameters."""
    if isinstance(params, Tensor):  # a list is an array here, not a tree
        return _expanded(bound, params, name)
    filled = tree.broadcast_prefix(bound, params, name=f'the {name} bound', like='init_params')
    return tree.map(lambda p, b: _expanded(b, p, name), params, filled)


def _expanded(bound: Any, like: Tensor, name: str) -> Tensor:
    bound = torch.as_tensor(bound, device=like.device)
    if like.is_complex() and not bound.is_complex():  # of the real and of the imaginary part
        bound = torch.complex(bound.double(), bound.double())
    if bound.dim() and bound.shape != like.shape:
        raise ValueError(
            f'The {name} bound has shape {tuple(bound.shape)}; expected that of init_params, {tuple(like.shape)}, or a '
            f'number.'
        )
    return bound.to(like.dtype).expand_as(like)
