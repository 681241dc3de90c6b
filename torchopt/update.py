# SPDX-License-Identifier: Apache-2.0
"""Add updates to parameters."""

from __future__ import annotations

from typing import Any

import torch

from torchopt import tree
from torchopt.numerics import carries_no_graph

__all__ = ['apply_updates']


def apply_updates(params: Any, updates: Any, *, inplace: bool | None = None) -> Any:
    """Add updates to parameters: the last act of a step.

    With ``inplace=None`` each parameter is treated as its role demands.  A leaf that requires grad, with an update
    that carries no graph, outside every ``torch.func`` transform and compilation, is a weight in plain training: it
    is updated in place, and the module that owns it is trained.  All others are added out of place, differentiably.

    Args:
        params: Tree of tensors.
        updates: Tree of the same structure and shapes; ``None`` leaves a parameter as it is.
        inplace: True writes into every parameter (outside of autograd), False into none.

    Returns:
        The new parameters, in the dtype of the old ones.

    Raises:
        ValueError: If structures or shapes differ; the message names the path of the first leaf at fault.
        TypeError: If a parameter with an update has an integer dtype, or is real where its update is complex.
        RuntimeError: If ``inplace=True`` meets a parameter that cannot be written to, such as an expanded one.

    Example:
        >>> import torch, torchopt
        >>> torchopt.apply_updates({'w': torch.tensor(1.0)}, {'w': torch.tensor(-0.25)})
        {'w': tensor(0.7500)}
    """
    leaves, spec = tree.flatten(params)
    deltas = tree.flatten_up_to(spec, updates, name='updates', like='params')
    for i, (p, u) in enumerate(zip(leaves, deltas)):
        if u is not None and not _fits(p, u):
            _raise_misfit(params, i, p, u)
    return tree.unflatten(spec, [_apply(p, u, inplace) for p, u in zip(leaves, deltas)])


def _fits(p: Any, u: Any) -> bool:
    return (
        isinstance(p, torch.Tensor)
        and getattr(u, 'shape', None) == p.shape
        and (p.is_complex() or (p.is_floating_point() and not u.is_complex()))
    )


def _apply(p: Any, u: Any, inplace: bool | None) -> Any:
    if p is None or u is None:
        return p
    if carries_no_graph(p, u) if inplace is None else inplace:
        with torch.no_grad():
            return p.add_(u)
    new = p + u
    return new if new.dtype == p.dtype else new.to(p.dtype)


def _raise_misfit(params: Any, i: int, p: Any, u: Any) -> None:
    path = tree.flatten_with_path(params)[i][0]
    if p is None:
        raise ValueError(f'params{path} is None, but it has an update. Pass None as its update.')
    tree.check_inexact(p, name=f'params{path}')
    if not isinstance(u, torch.Tensor) or u.shape != p.shape:
        shape = tuple(u.shape) if hasattr(u, 'shape') else f'none, it is a {type(u).__name__}'
        raise ValueError(
            f'updates{path} and params{path} must have one shape: {shape} and {tuple(p.shape)}. '
            f'Pass the gradients of these very parameters.'
        )
    raise TypeError(
        f'updates{path} is complex ({u.dtype}), but params{path} is real ({p.dtype}). Pass a real update, '
        f'or make the parameter complex.'
    )
