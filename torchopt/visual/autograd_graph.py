# SPDX-License-Identifier: Apache-2.0
"""The autograd graph of some tensors, with numbered nodes, and its fused optimizer steps.

Nothing here is recursive, so that a graph may be as deep as memory allows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from torchopt.visual.fused_step import FusedStep, fused_step
from torchopt.visual.naming import Names


@dataclasses.dataclass(eq=False)
class AutogradGraph:
    """Numbered nodes of an autograd graph, in breadth-first order from the outputs.

    Attributes:
        functions: The nodes.
        inputs: For each argument of each node, the number of the node that computed it (None if it has no graph), and
            the index of the result.
        order: The numbers of the nodes in topological order, arguments before functions.
        names: The names of leaves and results.
        steps: The fused steps and their derivatives, by node number.
        index: The position of each fused step in its loop, from 1; derivatives have none.
        before: The previous step of the loop, for each fused step except the first of a loop.
    """

    functions: list[Any]
    inputs: list[list[tuple[int | None, int]]]
    order: list[int]
    names: Names
    steps: dict[int, FusedStep] = dataclasses.field(default_factory=dict)
    index: dict[int, int] = dataclasses.field(default_factory=dict)
    before: dict[int, int] = dataclasses.field(default_factory=dict)

    def arguments(self, s: int) -> Iterator[tuple[str, int, tuple[int, int]]]:
        """For each argument of a fused step that has a graph: its role, its leaf, and its node and result index."""
        for argument, (source, i) in enumerate(self.inputs[s]):
            role = self.steps[s].role(argument)
            if role is not None and source is not None:
                yield (*role, (source, i))


def walk(roots: Iterable[Any], names: Names) -> AutogradGraph:
    """Visit an autograd graph from its roots in breadth-first order; ``names`` does not change."""
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
    for fn in functions:  # the list grows during the iteration
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
    last: list[int | None] = [None] * len(graph.functions)  # the latest step on which each node depends
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
