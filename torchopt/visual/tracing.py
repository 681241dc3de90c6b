# SPDX-License-Identifier: Apache-2.0
"""Build the drawing of the autograd graph of tensors, independent of the output format."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchopt import tree
from torchopt.kinds import described
from torchopt.tree.table import format_bytes, storage_of
from torchopt.visual import functions
from torchopt.visual.autograd_graph import AutogradGraph, walk
from torchopt.visual.functions import describe_tensor, function_name, get_fn_name, leaf_of, tensor_label
from torchopt.visual.inner_steps import InnerStep, find_inner_steps
from torchopt.visual.model import Cluster, Edge, Model, Node
from torchopt.visual.naming import collect_names
from torchopt.visual.state_names import name_states


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a drawing: arguments of :func:`torchopt.visual.make_dot`, in its order."""

    show_attrs: bool = False
    show_saved: bool = False
    max_attr_chars: int = 50
    show_accumulate: bool = True
    show_steps: bool = True
    max_nodes: int | None = None
    measure: bool = True

    def __post_init__(self) -> None:
        if _integer('max_attr_chars', self.max_attr_chars) < 0:
            raise ValueError(f'max_attr_chars: {self.max_attr_chars} is negative. Pass at least 3.')
        if self.max_nodes is not None and _integer('max_nodes', self.max_nodes) < 2:
            raise ValueError(
                f'max_nodes: {self.max_nodes} is too small for a node and a summary of the others. '
                f'Pass at least 2, or None for no limit.'
            )


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f'{name}: {described(value)}. Pass an integer.') from None


def trace(var: Any, params: Any, options: Options) -> Model:
    """Make the drawing of the autograd graph of tensors."""
    outputs = _outputs(var)
    names = collect_names(params)
    bases: list[Tensor] = []
    known = {id(tensor) for _, tensor in outputs}
    for _, tensor in outputs:
        while tensor._is_view() and tensor._base is not None and id(tensor._base) not in known:
            tensor = tensor._base
            known.add(id(tensor))
            bases.append(tensor)
    tensors = [tensor for _, tensor in outputs] + bases
    graph = walk([t.grad_fn for t in tensors if t.grad_fn is not None], names)
    name_states(graph)
    painter = _Painter(graph, options)
    painter.paint(outputs, bases)
    model = painter.model()
    return model if options.max_nodes is None else _limited(model, options.max_nodes)


def _outputs(var: Any) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    for path, leaf in tree.flatten_with_path(var):
        if leaf is None:
            continue
        if not isinstance(leaf, Tensor):
            raise TypeError(f'var{path}: {described(leaf)}. Pass a tensor or a tree of tensors.')
        if id(leaf) not in seen:
            seen.add(id(leaf))
            found.append((path, leaf))
    if not found:
        raise ValueError('var: it contains no tensor. Pass a tensor or a tree of tensors, such as the outer loss.')
    return found


def _path_name(path: str) -> str | None:
    """A readable name made from a path: ``['loss']`` becomes ``loss``; None if there is none."""
    return path[2:-2] if path.startswith("['") and path.count('[') == 1 else path.lstrip('.') if '.' in path else None


class _Painter:
    """Converts autograd nodes to boxes and arrows."""

    def __init__(self, graph: AutogradGraph, options: Options) -> None:
        self.graph, self.options = graph, options
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.of_tensor: dict[int, int] = {}
        self.of_function: dict[int, int] = {}
        self.of_state: dict[tuple[int, int], int] = {}
        self.cluster: dict[int, int] = {}
        self.storages: list[dict[tuple[str, int], int]] = [{} for _ in graph.functions]
        self.kept: list[Tensor] = []  # keeps tensors alive, so that their ids stay unique
        self.numbers = {fn: f for f, fn in enumerate(graph.functions)}

    def add(self, kind: str, label: str, tooltip: str, cluster: int | None = None, saved_bytes: int = 0) -> int:
        self.nodes.append(Node(f'n{len(self.nodes)}', kind, label, tooltip, cluster, saved_bytes))
        return len(self.nodes) - 1

    def join(self, tail: int, head: int, kind: str = 'flow', label: str = '', tooltip: str = '') -> None:
        self.edges.append(Edge(f'n{tail}', f'n{head}', kind, label, tooltip))

    def paint(self, outputs: Sequence[tuple[str, Tensor]], bases: Sequence[Tensor]) -> None:
        graph, numbers = self.graph, self.numbers
        self.inner_steps: list[InnerStep] = []
        self.ends = {numbers[t.grad_fn] for _, t in outputs if t.grad_fn is not None}
        for path, tensor in outputs:
            self.add_tensor('output', tensor, _path_name(path))
        for tensor in bases:
            self.add_tensor('base', tensor, None)
        tensors = [tensor for _, tensor in outputs] + list(bases)
        roots = [numbers[t.grad_fn] for t in tensors if t.grad_fn is not None]
        if self.options.show_steps:
            self.inner_steps = find_inner_steps(graph, roots)
        for c, step in enumerate(self.inner_steps):
            self.cluster.update(dict.fromkeys(step.members, c))
        for f in range(len(graph.functions)):
            self.add_function(f)
        for f in range(len(graph.functions)):
            self.add_arguments(f)
        for tensor in tensors:
            here = self.of_tensor[id(tensor)]
            if tensor.grad_fn is not None:
                self.join(self.source(numbers[tensor.grad_fn], tensor.output_nr), here)
            if tensor._is_view() and tensor._base is not None:
                self.join(self.of_tensor[id(tensor._base)], here, 'view', tooltip='is a view of')

    def add_tensor(self, kind: str, tensor: Tensor, otherwise: str | None) -> int:
        self.kept.append(tensor)
        name = self.graph.names.of(tensor) or otherwise
        tooltip = f'{name}\n{describe_tensor(tensor)}' if name else describe_tensor(tensor)
        self.of_tensor[id(tensor)] = self.add(kind, tensor_label(name, tensor.shape), tooltip)
        return self.of_tensor[id(tensor)]

    def add_function(self, f: int) -> None:
        fn, options = self.graph.functions[f], self.options
        variable = leaf_of(fn)
        if variable is not None:
            if options.show_accumulate:
                self.of_function[f] = self.add('function', get_fn_name(fn, False, 3), 'adds up the gradient of a leaf')
            leaf = self.of_tensor.get(id(variable))
            if leaf is None:
                leaf = self.add_tensor('leaf', variable, None)
            if options.show_accumulate:
                self.join(leaf, self.of_function[f])
            else:
                self.of_function[f] = leaf
            return
        cluster = self.cluster.get(f)
        facts, size = self.saved_facts(f)
        results = functions.results(fn)
        step = self.graph.steps.get(f)
        names = self.graph.names
        name = names.results.get((fn, 0))
        if f in self.ends and (fn, 0) not in names.by_node:
            name = None  # the box of the output has it
        if step is not None:
            index = self.graph.index.get(f)
            title = f'{step.title} {index}' if index is not None else step.title
            label = f'{step.title}\n{step.leaves} {"leaf" if step.leaves == 1 else "leaves"}'
            here = self.add('step', label, '\n'.join([title, *step.facts(), *facts]), cluster, size)
        else:
            shapes = [f'result: {tensor_label(None, r.shape)} {str(r.dtype).removeprefix("torch.")}' for r in results]
            shapes = shapes if len(shapes) <= 8 else [*shapes[:7], f'and {len(shapes) - 7} more results']
            tooltip = '\n'.join([function_name(fn), *shapes, *facts])
            if name is not None and len(results) <= 1:
                label = tensor_label(name, results[0].shape) if results else name
                here = self.add('named', label, f'{name}\n{tooltip}', cluster, size)
            else:
                label = get_fn_name(fn, options.show_attrs, options.max_attr_chars)
                here = self.add('function', label, tooltip, cluster, size)
        self.of_function[f] = here
        self.add_states(f, here, results, cluster)
        if options.show_saved:
            self.add_saved(f, here, cluster)

    def add_states(self, f: int, function: int, results: Sequence[Any], cluster: int | None) -> None:
        """Add boxes for the results that the user has named, if a function has several results."""
        fn = self.graph.functions[f]
        if f not in self.graph.steps and len(results) <= 1:
            return
        for i, result in enumerate(results):
            if (fn, i) in self.graph.names.shown:
                name = self.graph.names.results[fn, i]
                dtype = str(result.dtype).removeprefix('torch.')
                label = tensor_label(name, result.shape)
                here = self.add('state', label, f'{name}\n{tensor_label(None, result.shape)} {dtype}', cluster)
                self.of_state[f, i] = here
                self.join(function, here)

    def saved_facts(self, f: int) -> tuple[list[str], int]:
        if not self.options.measure:
            return [], 0
        lines, sizes = [], 0
        for name, tensor in functions.saved_tensors(self.graph.functions[f]):
            self.kept.append(tensor)
            storage, size = storage_of(tensor)
            self.storages[f][storage] = size
            sizes += tensor.numel() * tensor.element_size()
            lines.append(f'saved {name}: {describe_tensor(tensor)}')
        if len(lines) > 8:
            lines = [*lines[:7], f'and {len(lines) - 7} more']
        if lines:
            lines.append(f'saved: {format_bytes(sizes)}')
        return lines, sizes

    def add_saved(self, f: int, function: int, cluster: int | None) -> None:
        for name, tensor in functions.saved_tensors(self.graph.functions[f]):
            label = tensor_label(self.graph.names.of(tensor) or name, tensor.shape)
            here = self.add('saved', label, f'saved {name}\n{describe_tensor(tensor)}', cluster)
            self.join(function, here, 'saved')

    def source(self, f: int, result: int) -> int:
        return self.of_state.get((f, result), self.of_function[f])

    def add_arguments(self, f: int) -> None:
        graph, head = self.graph, self.of_function[f]
        step = graph.steps.get(f)
        if step is None:
            for source, i in graph.inputs[f]:
                if source is not None:
                    self.join(self.source(source, i), head, tooltip=self.result_name(source, i))
            return
        bundles: dict[int, tuple[list[str], list[str]]] = {}  # one arrow from each source to a fused step
        for argument, (source, i) in enumerate(graph.inputs[f]):
            if source is None:
                continue
            roles, lines = bundles.setdefault(self.source(source, i), ([], []))
            role = step.role(argument)
            if role is not None and role[0] not in roles:
                roles.append(role[0])
            lines.append(self.result_name(source, i) or (f'{role[0]}[{role[1]}]' if role else f'argument {argument}'))
        for tail, (roles, lines) in bundles.items():
            lines = lines if len(lines) <= 12 else [*lines[:11], f'and {len(lines) - 11} more']
            between = self.nodes[tail].kind == 'step'
            self.join(tail, head, label=', '.join(roles) if between else '', tooltip='\n'.join(lines))

    def result_name(self, source: int, i: int) -> str:
        if source not in self.graph.steps:
            return ''
        return self.graph.names.results.get((self.graph.functions[source], i), '')

    def model(self) -> Model:
        total: dict[tuple[str, int], int] = {}
        for storages in self.storages:
            total.update(storages)
        clusters = [self.frame(step) for step in self.inner_steps]
        size = sum(total.values()) if self.options.measure else None
        return Model(self.nodes, self.edges, clusters, len(self.graph.functions), size)

    def frame(self, step: InnerStep) -> Cluster:
        storages: dict[tuple[str, int], int] = {}
        for f in step.members:
            storages.update(self.storages[f])
        size = sum(storages.values())
        several = len({s.loop for s in self.inner_steps}) > 1
        words = [f'inner step {step.index}' + (f' of loop {step.loop}' if several else '')]
        words.append(f'{len(step.members)} functions')
        if self.options.measure:
            words.append(f'{format_bytes(size)} saved')
        return Cluster(step.index, step.loop, ' · '.join(words), len(step.members), size)


def _limited(model: Model, max_nodes: int) -> Model:
    """Keep the nodes nearest to the outputs, and replace the others by one box."""
    if len(model.nodes) <= max_nodes:
        return model
    kept, rest = list(model.nodes[: max_nodes - 1]), model.nodes[max_nodes - 1 :]
    size = sum(node.saved_bytes for node in rest)
    more = Node(
        'more',
        'more',
        f'{len(rest):,} more nodes',
        f'{len(rest):,} nodes are left out: max_nodes={max_nodes}\nthey saved {format_bytes(size)}',
    )
    ids = {node.id for node in kept}
    edges = []
    dashed: dict[tuple[str, str], int] = {}
    for edge in model.edges:
        if edge.tail in ids and edge.head in ids:
            edges.append(edge)
        elif edge.tail in ids or edge.head in ids:
            ends = (edge.tail, more.id) if edge.tail in ids else (more.id, edge.head)
            dashed[ends] = dashed.get(ends, 0) + 1
    edges += [
        Edge(tail, head, 'more', tooltip=f'{count} {"edge" if count == 1 else "edges"}')
        for (tail, head), count in dashed.items()
    ]
    return dataclasses.replace(model, nodes=[*kept, more], edges=edges)
