# SPDX-License-Identifier: Apache-2.0
"""Autograd graphs: their leaves, whether a step is recorded in one, and tensors without a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt.dtypes import is_inexact
from torchopt.levels import in_transform, is_tracing, runs_directly

__all__ = [
    'as_non_leaf',
    'carries_graph',
    'carries_no_graph',
    'depend',
    'detach_graph',
    'ends_of',
    'is_plain',
    'leaves_of',
    'nodes_of',
    'zeros_of',
]


def nodes_of(outputs: Iterable[Tensor], until: Iterable[Any] = ()) -> Iterator[Any]:
    """The nodes of the graph behind some tensors, each once, without recursion; not ``until`` and what is behind it."""
    stack: list[Any] = [x.grad_fn for x in outputs]
    seen = {None, *until}  # the nodes, since their Python objects exist, and have one id, as long as they are held
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack += [following for following, _ in node.next_functions]


def leaves_of(outputs: Iterable[Tensor], until: Iterable[Any] = ()) -> list[Tensor]:
    """The leaves that require grad on which these tensors depend, each once; not those behind the nodes ``until``."""
    outputs = list(outputs)
    found = {id(x): x for x in outputs if x.requires_grad and x.grad_fn is None}
    found.update((id(node.variable), node.variable) for node in nodes_of(outputs, until) if hasattr(node, 'variable'))
    return list(found.values())


def depend(outputs: Iterable[Tensor], ancestors: Iterable[Tensor], until: Iterable[Any] = ()) -> bool:
    """Whether tensors depend on one of ``ancestors``, in the graph up to the nodes ``until``."""
    outputs = list(outputs)
    nodes = {x.grad_fn for x in ancestors}
    leaves = {id(x) for x in ancestors if x.grad_fn is None}
    return any(y.grad_fn is None and id(y) in leaves for y in outputs) or any(
        node in nodes or id(getattr(node, 'variable', None)) in leaves for node in nodes_of(outputs, until)
    )


def ends_of(outputs: Iterable[Tensor], start: int) -> list[tuple[Any, int]]:
    """The edges at which the part of a graph that begins with the sequence number ``start`` ends.

    These lead to the nodes of leaves, to older nodes, and possibly to nodes that other threads have created.
    """
    stack = [(x.grad_fn, x.output_nr) for x in outputs if x.grad_fn is not None]
    seen, ends = set(stack), []
    while stack:
        node, _ = edge = stack.pop()
        if node._sequence_nr() < start or not node.next_functions:
            ends.append(edge)
            continue
        new: set[Any] = {e for e in node.next_functions if e[0] is not None and e not in seen}
        seen |= new
        stack.extend(new)
    return ends


def carries_graph(x: Any) -> bool:
    """Whether an object is a tensor that requires grad."""
    return isinstance(x, torch.Tensor) and x.requires_grad


def is_plain(params: Iterable[Any], updates: Iterable[Any]) -> bool:
    """Whether a step is plain training, which is not differentiated.

    This holds outside ``torch.func`` transforms and compilation, if no update has a graph and all parameters are
    leaves: weights, or constants, which is how transformations pass on weights in plain training.
    """
    return runs_directly() and not any(u.requires_grad for u in updates) and all(p.is_leaf for p in params)


def carries_no_graph(p: torch.Tensor, u: torch.Tensor) -> bool:
    """Whether ``p`` is a weight, a leaf that requires grad, and its step with the update ``u`` is plain training."""
    return p.requires_grad and is_plain((p,), (u,))


def zeros_of(x: torch.Tensor) -> torch.Tensor:
    """Zeros like a tensor that stay connected to its graph, with a derivative of zero.

    An update without a graph marks a step of plain training.  So a transformation that waits, in a step that is
    recorded, must not return plain zeros.
    """
    zeros = torch.zeros_like(x)
    if is_tracing() or not x.requires_grad:
        return zeros
    return torch.where(torch.zeros((), dtype=torch.bool, device=x.device), x, zeros)


def detach_graph(x: torch.Tensor) -> torch.Tensor:
    """The same tensor without its graph; unlike ``detach()``, this keeps the tangent of forward mode."""
    if forward_ad._current_level < 0 or not is_inexact(x):
        return x.detach()
    if in_transform():
        with torch.no_grad():
            return x.view_as(x)
    tangent = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]
    return x.detach() if tangent is None else forward_ad.make_dual(x.detach(), tangent.detach())  # type: ignore[no-untyped-call]


def as_non_leaf(p: Any) -> Any:
    """The same parameter, or a view with a graph if the parameter would be treated as in plain training.

    If the loss is linear, gradients have no graph even with ``create_graph=True``, but a differentiable step must still
    be differentiable with respect to the parameters.
    """
    return p.view_as(p) if carries_graph(p) and is_plain((p,), ()) else p
