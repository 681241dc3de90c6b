# SPDX-License-Identifier: Apache-2.0
"""What a worker does when it is called: it runs the function, keeps the graph, and differentiates it when asked.

Torch's own distributed autograd is not used for it: its backward pass waits for every tensor that was ever sent, also
for those whose gradient nobody needs or whose worker is gone; it forgets the parameters of modules; and it knows no
second derivatives.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed.rpc as rpc
from torch import Tensor

from torchopt.distributed.errors import Failure
from torchopt.distributed.message import Message, as_leaf, pack, unpack
from torchopt.graphs import leaves_of

__all__ = ['Answer', 'differentiate', 'execute']


class Graph(NamedTuple):
    """A graph that somebody else may still differentiate: from leaves to what was sent back."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    lock: threading.Lock


class Answer(NamedTuple):
    """What a worker sends back.

    Attributes:
        message: The result; None after a failure.
        graph: The number of the graph that was kept, or None.
        failure: What the function raised.
    """

    message: Message | None
    graph: int | None
    failure: Failure | None


_graphs: dict[int, Graph] = {}
_numbers = itertools.count()


def _forget(numbers: Sequence[int]) -> None:
    for number in numbers:
        _graphs.pop(number, None)


def _keep(graph: Graph) -> int:
    number = next(_numbers)
    _graphs[number] = graph
    return number


def _failed(error: BaseException) -> Answer:
    return Answer(None, None, Failure.of(error, rpc.get_worker_info().id))


def execute(request: Message, differentiable: bool, released: Sequence[int]) -> Answer:
    """Run ``function(*args, **kwargs)``, the object in the request.

    Args:
        request: Its tensors that require grad are the inputs of the graph.
        differentiable: Whether the caller records a graph; otherwise what is sent back is detached.
        released: Numbers of graphs that are not needed any more.
    """
    try:
        _forget(released)
        (function, args, kwargs), parts = unpack(request)
        inputs = [x for x in parts if isinstance(x, Tensor) and x.requires_grad]
        before = {id(x): (number, x._version) for number, x in enumerate(inputs)}
        result = function(*args, **kwargs)
        outputs: list[Tensor] = []

        def classify(x: Tensor) -> tuple[str, Any]:
            number, version = before.get(id(x), (None, None))
            if number is not None and version == x._version:
                return 'input', number  # the caller has it, graph and all
            if x.grad_fn is None:
                return as_leaf(x)
            if differentiable:
                outputs.append(x)
                return 'output', x.detach()
            return 'frozen leaf', x.detach()

        try:
            message, _ = pack(result, classify)
        except Exception as error:
            raise TypeError(
                f'What the function returned, a {type(result).__name__}, cannot be sent back: {error}. Return tensors, '
                f'numbers, or objects that can be pickled.'
            ) from error
        return Answer(message, _keep(Graph(inputs, outputs, threading.Lock())) if outputs else None, None)
    except BaseException as error:
        return _failed(error)


def differentiate(number: int, request: Message, create_graph: bool, released: Sequence[int]) -> Answer:
    """The product of the cotangents of a graph's outputs with its Jacobian, for each input; None where it is zero.

    The request is a list with a cotangent, or None, for each output.
    Leaves of the worker's own get theirs in ``.grad``, as in any backward pass.
    """
    try:
        _forget(released)
        graph = _graphs[number]
        cotangents, _ = unpack(request)
        if create_graph:
            return _differentiate_again(graph, [None if c is None else c.requires_grad_() for c in cotangents])
        pairs = [(x, c) for x, c in zip(graph.outputs, cotangents) if c is not None]
        with graph.lock:
            _clear(graph.inputs)
            torch.autograd.backward([x for x, _ in pairs], [c for _, c in pairs], retain_graph=True)
            message, _ = pack([x.grad for x in graph.inputs])
            _clear(graph.inputs)
        return Answer(message, None, None)
    except BaseException as error:
        return _failed(error)


def _clear(leaves: Sequence[Tensor]) -> None:
    for x in leaves:
        x.grad = None


def _differentiate_again(graph: Graph, cotangents: list[Tensor | None]) -> Answer:
    """As :func:`differentiate`, with a graph of the product: from the inputs and the cotangents to it."""
    pairs = [(x, c) for x, c in zip(graph.outputs, cotangents) if c is not None]
    sent = {id(x) for x in graph.inputs}
    own = [x for x in leaves_of(x for x, _ in pairs) if id(x) not in sent]
    found = torch.autograd.grad(
        [x for x, _ in pairs],
        [*graph.inputs, *own],
        [c for _, c in pairs],
        create_graph=True,
        allow_unused=True,
    )
    for x, g in zip(own, found[len(graph.inputs) :]):
        if g is not None:
            x.grad = g.detach() if x.grad is None else x.grad + g.detach()
    outputs: list[Tensor] = []

    def classify(g: Tensor) -> tuple[str, Any]:
        if not g.requires_grad:
            return as_leaf(g)
        outputs.append(g)
        return 'output', g.detach()

    message, _ = pack(list(found[: len(graph.inputs)]), classify)
    inputs = [*graph.inputs, *(c for c in cotangents if c is not None)]
    return Answer(message, _keep(Graph(inputs, outputs, graph.lock)) if outputs else None, None)
