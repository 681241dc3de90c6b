# SPDX-License-Identifier: Apache-2.0
"""A function and its vector-Jacobian product as two graphs, the first of which keeps what the second needs.

Both come from one graph of the product, which contains the operations of the function.  The forward graph is the part
that leads to the value.  The backward graph is the rest; the results of the forward graph that it uses are kept, unless
they are views or constants, or elementwise and the compiler fuses operations: these are computed again.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from torchopt.autodiff.tape import Leaves


def picker(places: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function that takes the elements at some places of a sequence."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda x: [x[i] for i in places]


class Split:
    """The two graphs.

    Args:
        joint: The graph of ``(*x, *cotangents) -> (*value, *cotangents of x)``, without operations in place.
        arity: The number of arguments ``x``.
        values: The number of tensors in the value.
        given: The indices of the values that have cotangents.
        compiler: Compiles a graph for example inputs.
        inputs: Examples of ``x``.
        fuses: Whether the compiler fuses elementwise operations.
    """

    def __init__(
        self,
        joint: fx.GraphModule,
        arity: int,
        values: int,
        given: Sequence[int],
        compiler: Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]],
        inputs: Sequence[Tensor],
        *,
        fuses: bool,
    ) -> None:
        self.joint, self.compiler, self.values, self.given = joint, compiler, values, list(given)
        self.of_given = picker(self.given)
        places = joint.graph.find_nodes(op='placeholder')
        self.x, self.cotangents = places[:arity], dict(zip(given, places[arity:]))
        results = joint.graph.find_nodes(op='output')[0].args[0]
        self.value, self.pulled = list(results[:values]), list(results[values:])
        forward = _ancestors(self.value)
        forward.update(n for n in joint.graph.nodes if n.target is operator.getitem and n.args[0] in forward)
        backward, self.kept = _backward_part(self.pulled, forward, fuses)
        self.backward_nodes = [n for n in joint.graph.nodes if n in backward]
        self.used = [i for i, place in enumerate(self.x) if place in self.kept]
        self.kept = [n for n in self.kept if n.op != 'placeholder']
        self.linear = _descendants(self.cotangents.values(), self.backward_nodes)
        outside = [n for n in self.kept if n not in self.value]
        sources = [self.value.index(n) if n in self.value else values + outside.index(n) for n in self.kept]
        self.keep = picker([*self.used, *(arity + j for j in sources)])
        nodes = [n for n in joint.graph.nodes if n in forward and n.op != 'placeholder']
        graph = _graph(joint, self.x, nodes, [*self.value, *outside], {})
        self.program = compiler(graph, inputs)
        self.products: dict[tuple[int, ...], Callable[..., Any]] = {}

    def forward(self, x: Sequence[Tensor]) -> tuple[Leaves, Leaves]:
        """The value, and what to keep for :meth:`backward`."""
        found = self.program(*x)
        return found[: self.values], self.keep((*x, *found))

    def backward(self, kept: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> Leaves:
        """The cotangents of ``x``, from those of the values, without the terms of missing ones."""
        some = self.of_given(cotangents)
        given = tuple(itertools.compress(self.given, map(_is_present, some)))
        arguments = [*kept, *filter(_is_present, some)]
        if given not in self.products:
            self.products[given] = self.compiler(self._backward_graph(given), arguments)
        return tuple(self.products[given](*arguments))

    def zeros(self, j: int) -> Tensor:
        """A cotangent of zeros."""
        value = self.value[j].meta['val']
        return torch.zeros(value.shape, dtype=value.dtype, device=value.device)

    def _backward_graph(self, given: Sequence[int]) -> fx.GraphModule:
        """The graph for some of the cotangents.

        It is linear in them.  So a result that depends on missing ones only is zero, and is left out.
        """
        missing = {place for j, place in self.cotangents.items() if j not in given}
        absent: set[fx.Node] = set(missing)
        for node in self.backward_nodes:
            linear = [n for n in node.all_input_nodes if n in self.linear or n in self.cotangents.values()]
            if linear and all(n in absent for n in linear):
                absent.add(node)
        places = [*(self.x[i] for i in self.used), *self.kept, *(self.cotangents[j] for j in given)]
        nodes = [n for n in self.backward_nodes if n not in absent]
        zeros = {
            n: _Zeros(n.meta['val'].shape, n.meta['val'].dtype, n.meta['val'].device)
            for n in absent
            if isinstance(n.meta.get('val'), Tensor)
        }
        return _graph(self.joint, places, nodes, self.pulled, zeros)


class _Zeros(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def _graph(
    module: fx.GraphModule,
    places: Sequence[fx.Node],
    nodes: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    zeros: dict[fx.Node, _Zeros],
) -> fx.GraphModule:
    """The graph of some of the nodes; ``zeros`` replace others."""
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    for i, place in enumerate(places):
        new[place] = graph.placeholder(f'arg_{i}')
        new[place].meta = dict(place.meta)

    def get(node: fx.Node) -> fx.Node:
        if node not in new:
            shape, dtype, device = zeros[node]
            options: Any = {'dtype': dtype, 'device': device, 'pin_memory': False}
            new[node] = graph.call_function(torch.ops.aten.full.default, (list(shape), 0), options)
            new[node].meta = dict(node.meta)
        return new[node]

    for node in nodes:
        new[node] = graph.node_copy(node, get)
    graph.output([get(n) for n in outputs])
    return fx.GraphModule(module, graph)


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _descendants(nodes: Any, among: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that are computed from others, among nodes in order."""
    found = set(nodes)
    for node in among:
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _backward_part(
    outputs: Sequence[fx.Node], forward: set[fx.Node], fuses: bool
) -> tuple[set[fx.Node], list[fx.Node]]:
    """The nodes to compute in the backward graph, and those whose values it needs, in order."""
    computed: set[fx.Node] = set()
    kept: dict[fx.Node, None] = {}
    left = list(outputs)
    while left:
        node = left.pop()
        if node in computed or node in kept:
            continue
        if node.op == 'placeholder' or (node in forward and not _is_free(node, fuses)):
            kept[node] = None
        else:
            computed.add(node)
            left += node.all_input_nodes
    return computed, [n for n in (next(iter(outputs)).graph.nodes if outputs else ()) if n in kept]


def _is_free(node: fx.Node, fuses: bool) -> bool:
    """Whether a node is a view, a constant, or elementwise if a compiler fuses operations.

    It computes these within the operations that use them, in less time than a result is written and read.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == 'get_attr'
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in node.target._schema.returns)
    if node.target in _RESHAPES:
        first = node.all_input_nodes[0]
        if len(first.users) == 1 and first.op == 'call_function' and not _is_free(first, fuses):
            return False  # it is kept instead of its argument, which nothing else uses
    if is_view or not node.all_input_nodes or node.target in _CONSTANTS:
        return True
    return fuses and (torch.Tag.pointwise in node.target.tags or node.target in _COPIES)


aten = torch.ops.aten
_is_present = functools.partial(operator.is_not, None)
_COPIES = {aten._to_copy.default, aten.clone.default}

_RESHAPES = {aten.view.default, aten._unsafe_view.default}
_CONSTANTS = {aten.empty_like.default, aten.full_like.default, aten.ones_like.default, aten.zeros_like.default}
