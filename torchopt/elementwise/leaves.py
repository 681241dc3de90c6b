# SPDX-License-Identifier: Apache-2.0
"""Helpers for rules on whole leaves: constants of plain training, and norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt.graphs import detach_graph, is_plain
from torchopt.norms import two_norm
from torchopt.numerics import as_scalar_like


def as_constant(p: Tensor, u: Tensor) -> Tensor:
    """The parameter; detached in plain training, so that the graph does not grow with the number of steps."""
    return as_constants(u, p)[0]


def as_constants(u: Tensor, p: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
    """The parameter and the copies of it in the state; all detached in plain training.

    It is not known in ``init`` whether its parameters, which are leaves, will be differentiated.  So the state has
    copies with their graph, and every step decides whether to detach them.
    """
    return tuple(map(detach_graph, (p, *kept))) if is_plain((p,), (u,)) else (p, *kept)


def leaf_norm(x: Tensor) -> Tensor:
    """The l2 norm of a leaf, a real 0-d tensor of at least float32 whose derivative at zero is zero."""
    return two_norm([x])


def least_norm(norm: Tensor, least: Any) -> Tensor:
    """The maximum of a norm and a lower bound; the derivative is zero if the bound applies."""
    bound = as_scalar_like(least, norm)
    return torch.where(norm <= bound, bound, norm)
