# SPDX-License-Identifier: Apache-2.0
"""Gradients of a loss for the faces that take the loss itself."""

from __future__ import annotations

from typing import Any

import torch

from torchopt import tree

__all__ = ['check_same_kind', 'differentiable_gradients']


def differentiable_gradients(loss: Any, params: Any, *, create_graph: bool = True) -> Any:
    """The gradients of a loss, with a graph of their own.

    Args:
        loss: A tensor of one element that depends on the parameters.
        params: Tree of tensors; those that do not require grad are frozen.

    Returns:
        A tree like ``params``: ``None`` for what is frozen, and for what the loss does not depend on.

    Raises:
        TypeError: If the loss is not a tensor.
        ValueError: If the loss has more than one element, or if there is no parameter to differentiate in.
        RuntimeError: If the loss has no graph.
    """
    if not isinstance(loss, torch.Tensor):
        raise TypeError(f'loss is a {type(loss).__name__}; expected a scalar tensor.')
    if loss.numel() != 1:
        raise ValueError(
            f'loss has shape {tuple(loss.shape)}; expected a scalar. Reduce it first, as by loss.mean().'
        )
    if not loss.requires_grad:
        raise RuntimeError(
            'loss has no graph: it does not depend on anything that requires grad. Compute it from the parameters, '
            'outside of torch.no_grad(), and do not detach it.'
        )
    leaves, spec = tree.flatten(params)
    trainable = [p for p in leaves if isinstance(p, torch.Tensor) and p.requires_grad]
    if not trainable:
        raise ValueError(
            'No parameter requires grad, so there is nothing to optimize. '
            'Call requires_grad_() on those to be trained.'
        )
    found = iter(
        torch.autograd.grad(loss, trainable, create_graph=create_graph, allow_unused=True)
    )
    return tree.unflatten(
        spec,
        [next(found) if isinstance(p, torch.Tensor) and p.requires_grad else None for p in leaves],
    )


def check_same_kind(state: Any, expected: Any, *, name: str) -> None:
    """Require that a state is one of the same optimizer for parameters of the same shapes.

    Raises:
        ValueError: If it is not; the message says where they differ.
    """
    found, spec = tree.flatten(expected)
    values = tree.flatten_up_to(spec, state, name=name, like='the state of this optimizer')
    for i, (x, y) in enumerate(zip(found, values)):
        if getattr(x, 'shape', None) != getattr(y, 'shape', None):
            path = tree.flatten_with_path(expected)[i][0]
            raise ValueError(
                f'{name}{path} does not fit: expected {_kind(x)} and found {_kind(y)}. '
                f'Load a state that this optimizer saved for these parameters.'
            )


def _kind(x: Any) -> str:
    return f'shape {tuple(x.shape)}' if isinstance(x, torch.Tensor) else repr(x)
