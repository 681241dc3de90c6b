# SPDX-License-Identifier: Apache-2.0
"""Backward passes within a context of torch's distributed autograd, as in TorchOpt 0.7.3.

Calls of :mod:`torchopt.distributed` do not need it: their results have ordinary graphs for ``loss.backward()`` and
``torch.autograd.grad``.  Use it for existing code, and for gradients through direct calls of ``torch.distributed.rpc``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

import torch.distributed.autograd as torch_autograd
from torch import Tensor

from torchopt.distributed.call import errors_of_gradients

__all__ = ['is_available', 'context', 'DistAutogradContext', 'get_gradients', 'backward', 'grad']

LOCK = Lock()

_autograd: Any = torch_autograd  # its stubs lack these names

is_available = _autograd.is_available

if _autograd.is_available():
    DistAutogradContext, context, get_gradients = (
        _autograd.DistAutogradContext,
        _autograd.context,
        _autograd.get_gradients,
    )


def backward(
    autograd_ctx_id: int,
    tensors: Tensor | Sequence[Tensor],
    retain_graph: bool = False,
    inputs: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """Add the gradients of the sum of some tensors to ``.grad`` of the leaves on which they depend.

    Args:
        autograd_ctx_id: The value of ``with context() as autograd_ctx_id``.
        tensors: Scalars, computed within the context.
        retain_graph: Whether the graph can be differentiated again.
        inputs: The leaves that get gradients, by default all.

    Raises:
        RuntimeError: If ``inputs`` is empty, or contains a tensor that does not require grad.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> with todist.autograd.context() as ctx:  # doctest: +SKIP
        ...     todist.autograd.backward(ctx, x * x)
        >>> x.grad  # doctest: +SKIP
        tensor(4.)
    """
    wanted = None if inputs is None else _inputs(inputs)
    found = _gradients(autograd_ctx_id, tensors, retain_graph)
    with LOCK:
        for p, g in found:
            if wanted is None or any(p is x for x in wanted):
                p.grad = g if p.grad is None else p.grad + g


def grad(
    autograd_ctx_id: int,
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    retain_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of the sum of some tensors with respect to leaves.

    Args:
        autograd_ctx_id: The value of ``with context() as autograd_ctx_id``.
        outputs: Scalars, computed within the context.
        inputs: Leaves that require grad.
        retain_graph: Whether the graph can be differentiated again.
        allow_unused: Whether the outputs may be independent of an input, whose gradient is then None.

    Raises:
        RuntimeError: If ``inputs`` is empty or contains a tensor that does not require grad, or if the outputs do not
            depend on an input and ``allow_unused`` is False.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> x = torch.tensor(2.0, requires_grad=True)
        >>> with todist.autograd.context() as ctx:  # doctest: +SKIP
        ...     todist.autograd.grad(ctx, x * x, x)
        (tensor(4.),)
    """
    wanted = _inputs(inputs)
    found = _gradients(autograd_ctx_id, outputs, retain_graph)
    gradients = [next((g for p, g in found if p is x), None) for x in wanted]
    for i, g in enumerate(gradients):
        if g is None and not allow_unused:
            raise RuntimeError(
                f'outputs do not depend on inputs[{i}], or it is not a leaf. Set allow_unused=True to get None for it.'
            )
    return tuple(gradients)


def _gradients(
    autograd_ctx_id: int, tensors: Tensor | Sequence[Tensor], retain_graph: bool
) -> list[tuple[Tensor, Tensor]]:
    """Leaves and their gradients: the sum that the context accumulates, minus that of earlier passes."""
    before = [(p, g.clone()) for p, g in _autograd.get_gradients(autograd_ctx_id).items()]
    errors_of_gradients.clear()
    try:
        _autograd.backward(autograd_ctx_id, _listed(tensors), retain_graph=retain_graph)
    except RuntimeError as error:
        if errors_of_gradients and str(errors_of_gradients[-1]) in str(error):
            raise errors_of_gradients[-1] from None
        raise
    found = []
    for p, g in _autograd.get_gradients(autograd_ctx_id).items():
        earlier = next((old for q, old in before if q is p), None)
        found.append((p, g.clone() if earlier is None else g - earlier))  # the context accumulates into its tensor
    return found


def _listed(tensors: Tensor | Iterable[Tensor]) -> list[Any]:
    return [tensors] if isinstance(tensors, Tensor) else list(tensors)


def _inputs(inputs: Tensor | Iterable[Tensor]) -> list[Tensor]:
    wanted = _listed(inputs)
    if not wanted:
        raise RuntimeError('inputs is empty; pass at least one leaf, or None for all.')
    for i, x in enumerate(wanted):
        if not x.requires_grad:
            raise RuntimeError(f'inputs[{i}] does not require grad; call its requires_grad_() before you use it.')
    return wanted
