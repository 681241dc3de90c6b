# SPDX-License-Identifier: Apache-2.0
"""The value of the objective as an argument of a step, and whether a step is differentiated."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchopt import tree
from torchopt.graphs import detach_graph, is_plain
from torchopt.numerics import tensor_like


def is_plain_step(gradients: Any, params: Any) -> bool:
    """Whether a step of trees is plain training; see :func:`torchopt.graphs.is_plain`."""
    found, weights = ([x for x in tree.leaves(part) if isinstance(x, Tensor)] for part in (gradients, params))
    return is_plain(weights, found)


def objective_value(value: Any, like: Tensor, updates: Any, params: Any = None, *, inplace: bool = False) -> Tensor:
    """The extra argument ``value`` as a 0-d tensor like ``like``.

    In a step that is not differentiated, such as any in-place step, it is detached: users pass the loss with its graph,
    which states and parameters would otherwise keep.

    Raises:
        TypeError: If ``value`` is None.
    """
    if value is None:
        raise TypeError(
            "The extra argument 'value' is missing. Call `update(updates, state, params, value=loss)` with the value "
            'of the objective at the parameters.'
        )
    if isinstance(value, Tensor) and (inplace or is_plain_step(updates, params)):
        value = detach_graph(value)
    return tensor_like(value, like)
