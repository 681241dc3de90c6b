# SPDX-License-Identifier: Apache-2.0
"""Normalize updates by their global norm."""

from __future__ import annotations

from typing import Any

import torch

from torchopt import elementwise, tree
from torchopt.base import EmptyState, GradientTransformation, factory, without_state
from torchopt.numerics import as_scalar_like, in_single

NormalizeState = EmptyState
"""The state of :func:`normalize`, which is empty."""


@factory
def normalize() -> GradientTransformation:
    r"""Divide all updates by their global l2 norm: :math:`u = g / \lVert g \rVert`.

    If the norm is zero, so is the update.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.normalize()
        >>> tx.update([torch.tensor(3.0), torch.tensor(4.0)], tx.init([]))[0]
        [tensor(0.6000), tensor(0.8000)]
    """

    def normalized(updates: Any, params: Any) -> Any:
        elementwise.check_inexact(updates, name='updates')
        norm = tree.wide_norm(updates)
        norm = torch.where(norm == 0, torch.ones_like(norm), norm)
        return tree.map(in_single(lambda g: g / as_scalar_like(norm, g)), updates)

    return without_state(normalized)
