# SPDX-License-Identifier: Apache-2.0
"""Assign the nodes of a graph to the steps of inner loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torchopt.visual.autograd_graph import AutogradGraph
from torchopt.visual.functions import leaf_of


@dataclasses.dataclass(eq=False)
class InnerStep:
    """One step of an inner loop: one or more fused nodes (groups of parameters), and the nodes that only they use.

    Attributes:
        index: The number of the step in its loop, from 1.
        loop: The number of the loop, from 1.
        members: The numbers of the autograd nodes that belong to it.
    """

    index: int
    loop: int
    members: list[int]


def find_inner_steps(graph: AutogradGraph, roots: Iterable[int]) -> list[InnerStep]:
    """Find the nodes that belong to each inner step, given the numbers of the nodes of the outputs.

    A node belongs to a step if all paths from it reach that step before any other step and before the outputs; leaves
    belong to no step.  Two fused nodes are one step (two groups of parameters) if both use the same function of the
    parameters of both.  Two steps from the same parameters are alternatives, such as the tasks of MAML.
    """
    forward = [s for s in graph.order if s in graph.index]
    if not forward:
        return []
    bit = {s: 1 << i for i, s in enumerate(forward)}
    outside = 1 << len(forward)
    serves = [0] * len(graph.functions)  # the steps that each node reaches first, as a bit set
    for root in roots:
        serves[root] |= outside
    for f in reversed(graph.order):
        mine = bit.get(f) or serves[f]
        for source, _ in graph.inputs[f]:
            if source is not None:
                serves[source] |= mine
    group = _merge(graph, forward, bit, serves)
    found: dict[int, InnerStep] = {}
    loops = 0
    for s in forward:
        if group[s] not in found:
            before = graph.before.get(s)
            loops += before is None
            loop = loops if before is None else found[group[before]].loop
            found[group[s]] = InnerStep(graph.index[s], loop, [])
    by_bit = {bit[s]: found[group[s]] for s in forward}
    for f in graph.order:
        reached = bit.get(f) or serves[f]
        if reached & outside or leaf_of(graph.functions[f]) is not None:
            continue
        owners = {id(by_bit[b]): by_bit[b] for b in _bits(reached)}
        if len(owners) == 1:
            next(iter(owners.values())).members.append(f)
    # A step without other nodes needs no frame: its gradients are constant, or also used outside.
    framed = [step for step in found.values() if len(step.members) > 1]
    return sorted(framed, key=lambda step: (step.loop, step.index))


def _merge(graph: AutogradGraph, forward: list[int], bit: dict[int, int], serves: list[int]) -> dict[int, int]:
    """For each fused node, the first fused node of the same step."""
    group = {s: s for s in forward}
    if len({graph.index[s] for s in forward}) == len(forward):
        return group
    sources = {s: frozenset(place for role, _, place in graph.arguments(s) if role == 'params') for s in forward}
    marks: dict[tuple[int, int], int] = {}
    for s, places in sources.items():
        for place in places:
            marks[place] = marks.get(place, 0) | bit[s]
    depends = [0] * len(graph.functions)  # the steps on whose parameters each node depends, as a bit set
    of_bit = {bit[s]: s for s in forward}
    seen: set[int] = set()
    for f in graph.order:
        for source, i in graph.inputs[f]:
            if source is not None:
                depends[f] |= depends[source] | marks.get((source, i), 0)
        both = serves[f] & depends[f]
        if both & (both - 1) == 0 or both in seen or f in bit:
            continue
        seen.add(both)
        candidates = [of_bit[b] for b in _bits(both) if b in of_bit]
        for k, a in enumerate(candidates):
            for b in candidates[k + 1 :]:
                if graph.index[a] == graph.index[b] and sources[a].isdisjoint(sources[b]):
                    first, second = sorted((group[a], group[b]), key=forward.index)
                    group = {s: first if g == second else g for s, g in group.items()}
    return group


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low)
        mask ^= low
    return found
