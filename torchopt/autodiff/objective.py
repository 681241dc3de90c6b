# SPDX-License-Identifier: Apache-2.0
"""The value of the objective as an argument of a step, and whether a step is differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.numerics import has_tangent, in_transform, tensor_like

__all__ = ['is_plain', 'objective_value']


def is_plain(gradients: Any, params: Any) -> bool:
    """Whether a step is not differentiated: its gradients have no graph, and its parameters are leaves."""
    if torch.compiler.is_compiling() or in_transform():
        return False
    found = [g for g in tree.leaves(gradients) if isinstance(g, Tensor)]
    weights = [p for p in tree.leaves(params) if isinstance(p, Tensor)]
    if any(x.requires_grad for x in found) or any(p.requires_grad and not p.is_leaf for p in weights):
        return False
    return not any(has_tangent(x) for x in (*found, *weights))


def objective_value(value: Any, like: Tensor, updates: Any, params: Any = None, *, inplace: bool = False) -> Tensor:
    """The extra argument ``value`` as a 0-d tensor like another.

    In a step that is not differentiated, such as any in-place step, it is a constant: users pass the loss unchanged,
    whose graph would otherwise be kept in states and parameters.

    Raises:
        TypeError: If it was not given.
    """
    if value is None:
        raise TypeError(
            "The extra argument 'value' is missing. Call `update(updates, state, params, value=loss)` with the value "
            'of the objective at the parameters.'
        )
    if isinstance(value, Tensor) and (inplace or is_plain(updates, params)):
        value = value.detach()
    return tensor_like(value, like)
