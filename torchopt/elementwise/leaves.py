# SPDX-License-Identifier: Apache-2.0
"""Rules on whole leaves: their norm, their rows, scalars that the state keeps for each leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.elementwise.moments import check_inexact, check_updates
from torchopt.norms import two_norm
from torchopt.numerics import as_scalar_like, carries_no_graph, detach_graph, is_plain

__all__ = ['as_constant', 'as_constants', 'least_norm', 'leaf_norm', 'move_leaves']


def move_leaves(
    rule: Callable[..., tuple[Any, ...]], updates: Any, *moments: Any, reads: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """Like :func:`torchopt.elementwise.apply_rule`, for moments whose shapes differ from their leaves.

    Args:
        rule: Pure function of one leaf, ``rule(g, *moments, *reads) -> (u, *moments)``.
        updates: Tree of tensors; for a leaf of None the rule is not called and the moments do not change.
        *moments: Trees with any object, even a tree, in the place of each leaf.
        reads: Trees of tensors like the updates (parameters).

    Returns:
        The new updates, followed by the new moments.

    Raises:
        ValueError: If structures do not match, or the shape of a parameter differs from its update.
        TypeError: If an update has an integer or boolean dtype.
    """
    check_inexact(updates, name='updates')
    for params in reads:
        check_updates(updates, params)
    leaves, spec = tree.flatten(updates)
    columns = [tree.flatten_up_to(spec, m, name='state', like='updates') for m in moments]
    columns += [tree.flatten_up_to(spec, r, name='params', like='updates') for r in reads]
    n = len(moments) + 1
    rows = [row[:n] if row[0] is None else rule(*row) for row in zip(leaves, *columns)]
    moved = zip(*rows) if rows else [()] * n
    return tuple(tree.unflatten(spec, list(column)) for column in moved)


def as_constant(p: Tensor, u: Tensor) -> Tensor:
    """The parameter, detached in a step of plain training, so that no graph grows from step to step."""
    return detach_graph(p) if carries_no_graph(p, u) else p


def as_constants(u: Tensor, p: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
    """The parameter and the state's copies of it, all detached in a step of plain training.

    ``init`` cannot know whether its parameters, which are leaves, will be differentiated.  It stores copies with
    their graph, and every step decides.
    """
    return tuple(map(detach_graph, (p, *kept))) if is_plain(u, p) else (p, *kept)


def leaf_norm(x: Tensor) -> Tensor:
    """The l2 norm of a leaf, a real 0-d tensor of at least float32 whose derivative at zero is zero."""
    return two_norm([x])


def least_norm(norm: Tensor, least: Any) -> Tensor:
    """The maximum of a norm and a lower bound; the derivative is zero where the bound applies."""
    bound = as_scalar_like(least, norm)
    return torch.where(norm <= bound, bound, norm)
