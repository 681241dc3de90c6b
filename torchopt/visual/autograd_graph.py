# SPDX-License-Identifier: Apache-2.0
"""The nodes of autograd behind some tensors, with numbers, and the fused steps among them.

Nothing here recurses, so that a graph may be as deep as memory allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from torchopt.visual.fused_step import FusedStep, fused_step
from torchopt.visual.naming import Names

__all__ = ['AutogradGraph', 'walk']


@dataclasses.dataclass(eq=False)
class AutogradGraph:
    """Nodes of autograd with numbers, those nearest to the outputs first.

    Attributes:
        functions: The nodes.
        inputs: For each node the number of the node behind each argument (None for one without graph), and which result
            of that node the argument is.
        order: The numbers of the nodes, arguments before functions.
        names: Names of leaves and results.
        steps: The fused steps among the nodes, and their derivatives.
        index: For each fused step that is no derivative, which step of its loop it is, from 1.
        before: For each of these but the first ones the step before it in its loop.
    """

    functions: list[Any]
    inputs: list[list[tuple[int | None, int]]]
    order: list[int]
    names: Names
    steps: dict[int, FusedStep] = dataclasses.field(default_factory=dict)
    index: dict[int, int] = dataclasses.field(default_factory=dict)
    before: dict[int, int] = dataclasses.field(default_factory=dict)

    def arguments(self, s: int) -> Iterator[tuple[str, int, tuple[int, int]]]:
        """For each argument of a fused step that has a graph: its role, its leaf, and the result that it is."""
        for argument, (source, i) in enumerate(self.inputs[s]):
            role = self.steps[s].role(argument)
            if role is not None and source is not None:
                yield (*role, (source, i))


def walk(roots: Iterable[Any], names: Names) -> AutogradGraph:
    """Visit all nodes of autograd behind some nodes, breadth first.

    Args:
        roots: The nodes to begin with, the ``grad_fn`` of outputs.
        names: The names that the user gave; not changed.
    """
    functions: list[Any] = []
    numbers: dict[Any, int] = {}
    inputs: list[list[tuple[int | None, int]]] = []

    def number(fn: Any) -> int:
        if fn not in numbers:
            numbers[fn] = len(functions)
            functions.append(fn)
        return numbers[fn]

    for root in roots:
        number(root)
    for fn in functions:  # grows while it is visited
        inputs.append([(None if source is None else number(source), i) for source, i in fn.next_functions])
    own = dataclasses.replace(names, leaves={**names.leaves}, results={**names.results}, shown={*names.shown})
    graph = AutogradGraph(functions, inputs, _arguments_first(inputs), own)
    _find_steps(graph)
    return graph


def _arguments_first(inputs: list[list[tuple[int | None, int]]]) -> list[int]:
    users: list[list[int]] = [[] for _ in inputs]
    waiting = [0] * len(inputs)
    for f, pairs in enumerate(inputs):
        for source, _ in pairs:
            if source is not None:
                users[source].append(f)
                waiting[f] += 1
    ready = [f for f, count in enumerate(waiting) if count == 0]
    for f in ready:
        for user in users[f]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    return ready


def _find_steps(graph: AutogradGraph) -> None:
    last: list[int | None] = [None] * len(graph.functions)  # the latest step behind each node
    for f in graph.order:
        behind = [s if s in graph.index else last[s] for s, _ in graph.inputs[f] if s is not None]
        last[f] = max((s for s in behind if s is not None), key=lambda s: graph.index[s], default=None)
        step = fused_step(graph.functions[f])
        if step is not None:
            graph.steps[f] = step
            if step.is_forward:
                previous = last[f]
                graph.index[f] = 1 if previous is None else graph.index[previous] + 1
                if previous is not None:
                    graph.before[f] = previous
