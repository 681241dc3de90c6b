# SPDX-License-Identifier: Apache-2.0
"""Rules on whole leaves: their norm, their rows, scalars that the state keeps for each leaf."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt.norms import two_norm
from torchopt.numerics import as_scalar_like, detach_graph, is_plain

__all__ = ['as_constant', 'as_constants', 'least_norm', 'leaf_norm']


def as_constant(p: Tensor, u: Tensor) -> Tensor:
    """The parameter, detached in a step of plain training, so that no graph grows from step to step."""
    return as_constants(u, p)[0]


def as_constants(u: Tensor, p: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
    """The parameter and the state's copies of it, all detached in a step of plain training.

    ``init`` cannot know whether its parameters, which are leaves, will be differentiated.  It stores copies with
    their graph, and every step decides.
    """
    return tuple(map(detach_graph, (p, *kept))) if is_plain((p,), (u,)) else (p, *kept)


def leaf_norm(x: Tensor) -> Tensor:
    """The l2 norm of a leaf, a real 0-d tensor of at least float32 whose derivative at zero is zero."""
    return two_norm([x])


def least_norm(norm: Tensor, least: Any) -> Tensor:
    """The maximum of a norm and a lower bound; the derivative is zero where the bound applies."""
    bound = as_scalar_like(least, norm)
    return torch.where(norm <= bound, bound, norm)
