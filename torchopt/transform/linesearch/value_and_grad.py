# SPDX-License-Identifier: Apache-2.0
"""Value and gradient from the state of a line search."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from torchopt import linesearch, tree
from torchopt.graphs import is_plain
from torchopt.levels import has_tangent, is_readable
from torchopt.scalars import where


def value_and_grad_from_state(value_fn: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """The value and the gradient of an objective, from the state of a line search if available.

    A line search has computed both at the point at which the next step begins.  They are correct if the objective is
    the same in every step and the parameters do not change in between.

    Args:
        value_fn: The objective ``value_fn(params, *args, **kwargs)``, a real tensor of one element.

    Returns:
        A function ``value_and_grad(params, *args, state, **kwargs)`` that returns the value and the gradient in the
        state.  If the value in the state is NaN or infinite, as in the first step, it computes both.  Under
        ``torch.func.vmap`` and ``torch.compile`` it always computes both, and then selects.

        For parameters that are leaves and require grad (plain training), the results have no graph.  For all other
        parameters they are differentiable, as in :func:`torch.func.grad`.

    Raises:
        ValueError: If the state contains no value or no gradient.
        KeyError: If it contains several.

    Example:
        >>> import torch, torchopt
        >>> f = lambda p: ((p - 1) ** 2).sum()
        >>> optimizer, params = torchopt.lbfgs(), torch.tensor([3.0, -1.0])
        >>> state, value_and_grad = optimizer.init(params), torchopt.transform.value_and_grad_from_state(f)
        >>> for _ in range(3):
        ...     value, grad = value_and_grad(params, state=state)
        ...     updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=f)
        ...     params = torchopt.apply_updates(params, updates)
        >>> params
        tensor([1., 1.])
    """

    def value_and_grad(params: Any, *args: Any, state: Any, **kwargs: Any) -> tuple[Any, Any]:
        value, grad = tree.get(state, 'value'), tree.get(state, 'grad')
        if value is None or grad is None:
            what = 'value' if value is None else 'gradient'
            raise ValueError(
                f'The state has no {what} of the objective. Pass the state of an optimizer with a line search that '
                f'stores them: scale_by_zoom_linesearch, or scale_by_backtracking_linesearch(store_grad=True).'
            )

        def compute() -> tuple[Any, Any]:
            return linesearch.value_and_gradient(
                lambda p: value_fn(p, *args, **kwargs), params, differentiable=not _are_weights(params)
            )

        finite = abs(value) < math.inf
        if is_readable(finite):
            return (value, grad) if finite else compute()
        fresh_value, fresh_grad = compute()
        chosen = tree.map(lambda g, x: where(finite, g, x), grad, fresh_grad)
        return where(finite, value, fresh_value.to(value.dtype)), chosen

    return value_and_grad


def _are_weights(params: Any) -> bool:
    tensors = [p for p in tree.leaves(params) if isinstance(p, Tensor)]
    return is_plain(tensors, ()) and any(p.requires_grad for p in tensors) and not any(map(has_tangent, tensors))
