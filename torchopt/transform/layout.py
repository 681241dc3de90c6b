# SPDX-License-Identifier: Apache-2.0
"""Combine all leaves into one vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt import elementwise, tree
from torchopt.base import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    factory,
    with_extra_args_support,
)
from torchopt.preconditions import required_by_all
from torchopt.transform.objective import is_plain

__all__ = ['flatten']


@factory
def flatten(inner: GradientTransformation) -> GradientTransformationExtraArgs:
    """Apply a transformation to all leaves as one vector.

    For a transformation without a native kernel, this replaces many small operations by a few large ones.  Norms of
    leaves become norms over all parameters.  The vector has the promoted dtype of all leaves; updates keep their own.

    Args:
        inner: The transformation.

    Returns:
        A transformation whose state is that of ``inner`` for one vector.

    Raises:
        ValueError: If an update of a parameter is None, since a part of a vector cannot be omitted.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.flatten(torchopt.adam(0.1))
        >>> params = {'w': torch.ones(2, 2), 'b': torch.ones(3)}
        >>> state = tx.init(params)
        >>> state[0].mu.shape
        torch.Size([7])
        >>> tx.update(params, state)[0]['b']
        tensor([-0.1000, -0.1000, -0.1000])
    """
    wide = with_extra_args_support(inner)

    def init(params: Any) -> Any:
        return wide.init(params if isinstance(params, tree.ParamsPlaceholder) else _as_vector(params))

    def update(updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any) -> tuple[Any, Any]:
        if params is not None:
            elementwise.check_updates(updates, params)
            for (path, g), p in zip(tree.flatten_with_path(updates), tree.flatten(params)[0]):
                if g is None and p is not None:
                    raise ValueError(
                        f'updates{path} is None, but flatten makes one vector of all updates, of which no part can be '
                        f'left out. Pass zeros, or put masked around flatten.'
                    )
            params = _as_vector(tree.map(Tensor.detach, params) if is_plain(updates, params) else params)
        vector, state = wide.update(_as_vector(updates), state, params, inplace=inplace, **extra)
        leaves, spec = tree.flatten(updates)
        parts = iter(torch.split(vector, [g.numel() for g in leaves if g is not None]))
        return tree.unflatten(spec, [None if g is None else _like(next(parts), g) for g in leaves]), state

    requires = required_by_all(lambda state, params: [(state, params)], wide)
    return GradientTransformationExtraArgs.requiring(init, update, requires)


def _as_vector(subject: Any) -> Tensor:
    elementwise.check_inexact(subject, name='the tree')
    leaves = [x.reshape(-1) for x in tree.leaves(subject)]
    return torch.cat(leaves) if leaves else torch.zeros(0)


def _like(part: Tensor, g: Tensor) -> Tensor:
    part = part.reshape(g.shape)
    return (part.real if part.is_complex() and not g.is_complex() else part).to(g.dtype)
