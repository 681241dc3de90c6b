# SPDX-License-Identifier: Apache-2.0
"""Names of the moments of optimizers, derived from the names of the parameters.

Users name parameters.  A fused step knows the parameter of each of its arguments and results, so its moments are named
``step1.mu['fc.weight']``, for example, after the first step.
"""

from __future__ import annotations

from torchopt.visual.autograd_graph import AutogradGraph
from torchopt.visual.functions import leaf_of
from torchopt.visual.fused_step import without_step


def name_states(graph: AutogradGraph) -> None:
    """Name the results of all fused steps, and the initial moments."""
    paths: dict[int, list[str]] = {}
    for s in graph.order:
        if s in graph.index:
            paths[s] = _paths(graph, s, paths)
            _name_first_moments(graph, s, paths[s])
            _name_siblings(graph, s, paths[s])
            step, fn = graph.steps[s], graph.functions[s]
            for column, role in enumerate(step.results):
                for k, path in enumerate(paths[s]):
                    place = (fn, column * step.leaves + k)
                    graph.names.results.setdefault(place, f'step{graph.index[s]}.{role}{path}')


def _paths(graph: AutogradGraph, s: int, known: dict[int, list[str]]) -> list[str]:
    """For each leaf of a step, the name of its parameter, or else its number."""
    found = [f'[{k}]' for k in range(graph.steps[s].leaves)]
    for role, k, (source, i) in graph.arguments(s):
        if role not in ('coefficients', 'gradients'):
            if role == 'params':
                found[k] = _path(graph, source, i, known) or found[k]
            elif source in known:
                found[k] = known[source][i % len(known[source])]
    return found


def _path(graph: AutogradGraph, source: int, i: int, known: dict[int, list[str]]) -> str | None:
    """The name of a parameter, from its own name or from the steps that computed it; None if unknown."""
    fn = graph.functions[source]
    leaf = leaf_of(fn)
    name = graph.names.of(leaf) if leaf is not None else graph.names.results.get((fn, i))
    if name is not None and source not in known:
        return f'[{without_step(name)!r}]'
    # The result of a step, or the sum of a parameter and an update that a step computed.
    for step, result in ((source, i), *graph.inputs[source]):
        if step in known and result < len(known[step]):
            return known[step][result]
    return None


def _name_first_moments(graph: AutogradGraph, s: int, paths: list[str]) -> None:
    names = graph.names
    for role, k, (source, _) in graph.arguments(s):
        leaf = leaf_of(graph.functions[source])
        if leaf is not None and role not in ('coefficients', 'gradients', 'params') and id(leaf) not in names.leaves:
            names.leaves[id(leaf)] = (f'step{graph.index[s] - 1}.{role}{paths[k]}', leaf)


def _name_siblings(graph: AutogradGraph, s: int, paths: list[str]) -> None:
    """Name all parameters after a step if one of them has a name.

    A ModuleState stores names by node, and all parameters that a fused step computed have the same node.
    """
    fn, names = graph.functions[s], graph.names
    named = [k for k in range(len(paths)) if (fn, k) in names.by_node]
    if len(named) != 1 or not graph.steps[s].call.onto_params:
        return
    own, name = paths[named[0]], names.results[fn, named[0]]
    if not own.startswith("['") or not name.endswith(own[2:-2]):
        return
    prefix = name.removesuffix(own[2:-2])
    for k, path in enumerate(paths):
        if path.startswith("['"):
            names.results.setdefault((fn, k), prefix + path[2:-2])
            names.shown.add((fn, k))
