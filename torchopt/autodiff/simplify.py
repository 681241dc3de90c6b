# SPDX-License-Identifier: Apache-2.0
"""Simplify a recorded graph: fewer operations with the same value, up to rounding.

The graph of a derivative has many operations that move no data: views of the same shape, transposes of transposes,
zeros that are added.  Equal operations are merged, and a product of matrices that is added to something else becomes
one operation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from torchopt._C.call import Order

aten = torch.ops.aten
Rule = Callable[[fx.Node], 'fx.Node | None']


def simplify(graph: fx.Graph) -> tuple[fx.Graph, list[bool]]:
    """A simpler graph with the values of a graph without operations in place.

    Args:
        graph: The graph; its nodes have example values.

    Returns:
        The new graph; and for each result whether it must be copied, since it would share memory with an argument, or
        with another result, with which it did not before.
    """
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    results: Any = new.find_nodes(op='output')[0].args[0]
    owners = [memory(node) for node in results]
    may_move = not any(node.target in _OF_STRIDES for node in new.nodes)
    if may_move:
        _apply(new, _UNCHANGED)
    _merge(new)
    new.eliminate_dead_code()
    if may_move:  # after the removal of nodes, since a product is fused with the only node that uses it
        _apply(new, _FUSED)
        _apply(new, _LAYERS)
        new.eliminate_dead_code()
    results = new.find_nodes(op='output')[0].args[0]
    return new, _copied([memory(node) for node in results], owners)


def memory(node: fx.Node) -> fx.Node:
    """The node whose memory a value shares."""
    while (viewed := _viewed(node)) is not None:
        node = viewed
    return node


def _viewed(node: fx.Node) -> fx.Node | None:
    if isinstance(node.target, torch._ops.OpOverload) and any(
        r.alias_info is not None for r in node.target._schema.returns
    ):
        return node.all_input_nodes[0]
    if node.target is operator.getitem and _viewed(node.all_input_nodes[0]) is not None:
        return node.all_input_nodes[0]
    return None


def _copied(now: list[fx.Node], before: list[fx.Node]) -> list[bool]:
    first: dict[fx.Node, fx.Node] = {}
    return [(n.op == 'placeholder' and n is not b) or first.setdefault(n, b) is not b for n, b in zip(now, before)]


def _apply(graph: fx.Graph, table: dict[Any, Rule]) -> None:
    for node in list(graph.nodes):
        rule = table.get(node.target) if node.op == 'call_function' else None
        if rule is not None:
            with graph.inserting_before(node):
                other = rule(node)
            if other is not None:
                node.replace_all_uses_with(other)
                graph.erase_node(node)


def _merge(graph: fx.Graph) -> None:
    """Compute equal operations once."""
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == 'call_function':
            earlier = known.setdefault((node.target, _key(node.args), _key(node.kwargs)), node)
            if earlier is not node:
                node.replace_all_uses_with(earlier)
                graph.erase_node(node)


def _key(x: Any) -> Any:
    """A key for arguments, in which 1, 1.0 and True differ."""
    if isinstance(x, (list, tuple)):
        return tuple(map(_key, x))
    if isinstance(x, dict):
        return tuple((k, _key(y)) for k, y in x.items())
    return x if isinstance(x, fx.Node) else (type(x), repr(x))


def _made(like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new operation with the shape and dtype of another."""
    node = like.graph.call_function(target, args, kwargs)
    node.meta = {'val': like.meta['val']}
    return node


def _alike(x: fx.Node, y: Any) -> bool:
    """Whether a value has the shape and dtype of another."""
    return isinstance(y, fx.Node) and x.meta['val'].shape == y.meta['val'].shape and _dtype(x) == _dtype(y)


def _dtype(node: fx.Node) -> torch.dtype:
    found: torch.dtype = node.meta['val'].dtype
    return found


def _without(node: fx.Node) -> fx.Node | None:
    """The argument, if the operation does not change it."""
    first: Any = node.args[0]
    return first if _alike(node, first) else None


def _transpose(node: fx.Node) -> fx.Node | None:
    first: Any = node.args[0]
    return first.args[0] if first.target is aten.t.default else None


def _filled(value: float) -> Rule:
    def rule(node: fx.Node) -> fx.Node:
        val = node.meta['val']
        return _made(node, aten.full.default, list(val.shape), value, dtype=val.dtype, device=val.device)

    return rule


def _sum(node: fx.Node) -> fx.Node | None:
    """The sum of transposed matrices as the transpose of their sum, and without zeros."""
    args: Any = node.args
    if node.kwargs or not isinstance(args[1], fx.Node):
        return None
    a, b = args
    for x, y in ((a, b), (b, a)):
        if y.target is aten.full.default and y.args[1] == 0 and _alike(node, x):
            return x
    if a.target is b.target is aten.t.default and a.args[0].meta['val'].shape == b.args[0].meta['val'].shape:
        inside = _made(a.args[0], aten.add.Tensor, a.args[0], b.args[0])
        return _made(node, aten.t.default, inside)
    return None


def _passed(node: fx.Node) -> fx.Node | None:
    """A cotangent of ``p + u``, which is that of the sum."""
    kernel: Any = node.args[0]
    if kernel.target is not torch.ops.torchopt.kernel.default or kernel.args[:3] != ('identity', True, Order.VJP):
        return None
    *_, leaves, _, values, _, coefs, tensors = kernel.args
    cotangents, at = tensors[2 * leaves :], node.args[1]
    if coefs is not None or None in cotangents or len(values) != 4 or list(values) != [1, 0, 1, 1]:
        return None
    first: fx.Node = cotangents[at % leaves]
    return first if _alike(node, first) else None


def _view(node: fx.Node) -> fx.Node | None:
    """A sum that drops its dimensions instead of a view that does."""
    first: Any = node.args[0]
    if (other := _without(node)) is not None:
        return other
    if first.target is aten.sum.dim_IntList and first.args[1] and first.args[2:] == (True,) and not first.kwargs:
        x, dims = first.args[:2]
        rank = x.meta['val'].dim()
        kept = [n for i, n in enumerate(x.meta['val'].shape) if i not in {d % rank for d in dims}]
        if list(node.meta['val'].shape) == kept:
            return _made(node, aten.sum.dim_IntList, x, dims)
    return None


def _sum_with_product(node: fx.Node) -> fx.Node | None:
    """``x + a @ b`` as one operation."""
    args: Any = node.args
    if node.kwargs or not isinstance(args[1], fx.Node):
        return None
    for x, y in (args, args[::-1]):
        if y.target is aten.mm.default and len(y.users) == 1 and _alike(node, y) and _dtype(x) == _dtype(y):
            return _made(node, aten.addmm.default, _row(x), *y.args)
    return None


def _layer(node: fx.Node) -> fx.Node | None:
    """``x @ w.T`` and ``x @ w.T + b`` as one operation."""
    args: Any = node.args
    *bias, x, y = args
    if node.kwargs or y.target is not aten.t.default or any(b.meta['val'].dim() != 1 for b in bias):
        return None
    return _made(node, aten.linear.default, x, y.args[0], *bias)


def _row(x: fx.Node) -> fx.Node:
    """What is expanded to a matrix: one row, if possible."""
    if x.target is aten.expand.default:
        inner: Any = x.args[0]
        if inner.target is aten.view.default and inner.args[0].meta['val'].dim() == 1:
            vector = inner.args[0]
            if tuple(inner.meta['val'].shape) == (1, *vector.meta['val'].shape):
                return vector
    return x


_OF_STRIDES = {aten.as_strided.default, aten.view.dtype, aten.view_as_complex.default, aten.view_as_real.default}
"""Operations that depend on the order of elements in memory, which simplified graphs may change."""

_UNCHANGED: dict[Any, Rule] = {
    aten.detach.default: _without,
    aten.expand.default: _without,
    aten._unsafe_view.default: _view,
    aten.view.default: _view,
    aten.t.default: _transpose,
    aten.ones_like.default: _filled(1),
    aten.zeros_like.default: _filled(0),
    aten.add.Tensor: _sum,
    operator.getitem: _passed,
}

_FUSED: dict[Any, Rule] = {aten.add.Tensor: _sum_with_product}

_LAYERS: dict[Any, Rule] = {aten.mm.default: _layer, aten.addmm.default: _layer}
