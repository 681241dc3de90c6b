# SPDX-License-Identifier: Apache-2.0
"""Detach parameters and gradients in plain training, so that no graph is kept from step to step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchopt import elementwise, tree
from torchopt.autodiff.objective import is_plain_step
from torchopt.graphs import detach_graph


def kept_copy(params: Any) -> Any:
    """A copy of the parameters for a state, with its graph; steps use it through :func:`without_graphs`."""
    elementwise.check_inexact(params, name='params')
    return tree.map(Tensor.clone, params)


def without_graphs(updates: Any, params: Any, *kept: Any, inplace: bool) -> tuple[Any, ...]:
    """Gradients, parameters, and stored copies of them, without graphs if the step is not differentiated.

    A step in place is outside autograd.  In plain training, parameters and what is computed from them are constant.

    Args:
        updates: The gradients.
        params: The parameters.
        *kept: Trees of tensors that the state computed from parameters.
        inplace: Whether the step is in place.

    Returns:
        Gradients and parameters, two trees like ``updates``, both None where it is None; then the kept trees, complete.

    Raises:
        TypeError: If an update has an integer or boolean dtype.
        ValueError: If structures or shapes differ.
    """
    elementwise.check_inexact(updates, name='updates')
    elementwise.check_updates(updates, params)

    read = tree.map(lambda u, p: p, updates, params)
    if inplace or is_plain_step(updates, params):
        updates, read, *kept = (tree.map(detach_graph, x) for x in (updates, read, *kept))  # type: ignore[assignment]
    return updates, read, *kept
