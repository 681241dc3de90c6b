# SPDX-License-Identifier: Apache-2.0
"""Run a recorded graph as a Python function of its operations, without a compiler.

The function is the simplified graph, written as straight-line Python.  Operations on constants are computed once.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from torchopt._C.recorded import direct
from torchopt.autodiff.simplify import memory, simplify

aten = torch.ops.aten


def replay(module: fx.GraphModule, _: Sequence[Tensor] = ()) -> Callable[..., list[Tensor]]:
    """A function that runs a graph without operations in place.

    Args:
        module: The graph; its nodes have example values.

    Returns:
        The function, which must be called without grad mode.
    """
    graph, copied = simplify(module.graph)
    writer = _Writer(module)
    lines = [writer.line(node) for node in graph.nodes]
    source = '\n'.join(line for line in lines if line)
    output = graph.find_nodes(op='output')[0]
    results = [writer.text(x) + '.clone()' * (c or x in writer.constants) for x, c in zip(output.args[0], copied)]
    names = ', '.join(node.name for node in graph.find_nodes(op='placeholder'))
    exec(f'def run({names}):\n{source}\n    return [{", ".join(results)}]', writer.scope)
    run: Callable[..., list[Tensor]] = writer.scope['run']
    return run


class _Writer:
    """Writes operations as Python.

    Attributes:
        constants: The values of the nodes that depend on no argument.
        scope: The objects that the program refers to by name.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.constants: dict[fx.Node, Any] = {}
        self.scope: dict[str, Any] = {}
        self.names: dict[int, str] = {}

    def line(self, node: fx.Node) -> str:
        """A statement for a node; empty if it needs none."""
        if node.op == 'get_attr':
            self.constants[node] = functools.reduce(getattr, str(node.target).split('.'), self.module)
        if node.op != 'call_function':
            return ''
        if all(n in self.constants for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.constants.__getitem__)
            with torch.no_grad():
                self.constants[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            return ''
        last = [n.name for n in node.all_input_nodes if n not in self.constants and _is_last(node, n)]
        free = f'; {" = ".join(last)} = None' if last else ''
        return f'    {node.name} = {self._call(node)}{free}'

    def _call(self, node: fx.Node) -> str:
        args: Sequence[Any] = node.args
        if node.target is operator.getitem:
            return f'{self.text(args[0])}[{args[1]}]'
        if node.target in _IN_PLACE and not node.kwargs and self._may_write(node):
            return f'{self.text(args[0])}.{_IN_PLACE[node.target]}({", ".join(map(self.text, args[1:]))})'
        function: Any = node.target
        if function is torch.ops.torchopt.kernel.default:
            function, args = direct(*args)
        else:
            function = _fast(function)
        given = [self.text(x) for x in args] + [f'{k}={self.text(x)}' for k, x in node.kwargs.items()]
        return f'{self._name(function)}({", ".join(given)})'

    def _may_write(self, node: fx.Node) -> bool:
        """Whether an operation may write its result into its first argument, which nothing else uses."""
        x, *others = node.args
        if not isinstance(x, fx.Node) or not isinstance(x.target, torch._ops.OpOverload) or x in others:
            return False
        is_new = torch.Tag.pointwise in x.target.tags or x.target in _PRODUCTS
        is_free = x not in self.constants and memory(x) is x and len(x.users) == 1
        shape, dtype = x.meta['val'].shape, x.meta['val'].dtype
        fits = shape == node.meta['val'].shape and all(
            isinstance(y, fx.Node) and y.meta['val'].dtype == dtype for y in (node, *others)
        )
        return is_new and is_free and fits

    def text(self, x: Any) -> str:
        """An argument."""
        if isinstance(x, fx.Node):
            return self._name(self.constants[x]) if x in self.constants else x.name
        if isinstance(x, (list, tuple)):
            return '(' + ''.join(f'{self.text(y)}, ' for y in x) + ')'
        return repr(x) if x is None or type(x) in (bool, int, str) else self._name(x)

    def _name(self, x: Any) -> str:
        name = self.names.setdefault(id(x), f'_{len(self.names)}')
        self.scope[name] = x  # which keeps the object, and so its id
        return name


def _is_last(node: fx.Node, argument: fx.Node) -> bool:
    """Whether an argument is not used after this operation."""
    return node == max(argument.users)


def _fast(target: Any) -> Any:
    """The function of an operation that takes the least time to call."""
    if not isinstance(target, torch._ops.OpOverload):
        return target
    if target in _FUNCTIONS:
        return _FUNCTIONS[target]
    space, _, name = target._schema.name.partition('::')
    return getattr(torch._C._VariableFunctions, name) if space == 'aten' and name in _NAMES else target._op


_PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default}

_IN_PLACE = {aten.add.Tensor: 'add_', aten.addmm.default: 'addmm_'}

_FUNCTIONS: dict[Any, Any] = {
    aten.add.Tensor: torch.add,
    aten.addmm.default: torch.addmm,
    aten.linear.default: torch._C._nn.linear,
    aten.sub.Tensor: torch.sub,
    aten.view.default: torch.reshape,  # strides may differ from those of the recording
    aten._unsafe_view.default: torch.reshape,
}

_NAMES = {
    *('abs', 'amax', 'amin', 'bmm', 'cat', 'clamp', 'clone', 'convolution', 'cos', 'cumsum', 'div', 'eq', 'erf'),
    *('exp', 'expm1', 'ge', 'gt', 'index_select', 'le', 'log', 'log1p', 'logical_and', 'logical_not', 'lt', 'maximum'),
    *('mean', 'minimum', 'mm', 'mul', 'ne', 'neg', 'permute', 'pow', 'reciprocal', 'relu', 'rsqrt', 'rsub', 'select'),
    *('sigmoid', 'sign', 'sin', 'sqrt', 'squeeze', 'stack', 'sum', 't', 'tanh', 'transpose', 'unsqueeze', 'where'),
}
"""Operations whose Python functions take the same arguments, in half the time of the operators."""
