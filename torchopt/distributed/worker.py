# SPDX-License-Identifier: Apache-2.0
"""The code that runs on a worker: run the function, keep the graph, and differentiate it on request.

It does not use torch's distributed autograd, whose backward pass waits for every tensor that was sent, even if its
gradient is not needed or its worker has died; which ignores the parameters of modules; and which has no second
derivatives.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed.autograd as torch_autograd
import torch.distributed.rpc as rpc
from torch import Tensor

from torchopt.distributed.errors import Failure
from torchopt.distributed.message import Message, as_leaf, differentiable, pack, unpack
from torchopt.distributed.reference import Reference
from torchopt.graphs import leaves_of, nodes_of
from torchopt.kinds import kind_of


class Graph(NamedTuple):
    """A graph that another process may differentiate, from leaves to the results that were sent back."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    lock: threading.Lock


class Answer(NamedTuple):
    """The answer of a worker.

    Attributes:
        message: The result; None after a failure.
        graph: The number of the graph that the worker keeps, or None.
        failure: The exception that the function raised, or None.
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


def execute(request: Message, record: bool, released: Sequence[int]) -> Answer:
    """Run ``function(*args, **kwargs)``, the object in the request, and drop the graphs that were released.

    The inputs of the graph are the tensors of the request that require grad; without ``record``, there is no graph.
    """
    try:
        _forget(released)
        fetch = functools.partial(_fetch, record=record)
        (function, args, kwargs), parts = unpack(request, {'reference': lambda rref: Reference(rref, fetch)})
        inputs = differentiable(parts)
        before = {id(x): (number, x._version) for number, x in enumerate(inputs)}
        result = function(*args, **kwargs)
        outputs: list[Tensor] = []

        def classify(x: Tensor) -> tuple[str, Any]:
            number, version = before.get(id(x), (None, None))
            if number is not None and version == x._version:
                return 'input', number  # the caller has this tensor with its graph
            if x.grad_fn is None:
                return as_leaf(x)
            if record:
                outputs.append(x)
                return 'output', x.detach()
            return 'frozen leaf', x.detach()

        try:
            message, _ = pack(result, classify)
        except Exception as error:
            raise TypeError(
                f'The result of the function, {kind_of(result)}, cannot be sent back: {error}. Return tensors, '
                f'numbers, or objects that can be pickled.'
            ) from error
        _refuse_calls_of_torch(outputs)
        return Answer(message, _keep(Graph(inputs, outputs, threading.Lock())) if outputs else None, None)
    except BaseException as error:
        return _failed(error)


def _refuse_calls_of_torch(outputs: Sequence[Tensor]) -> None:
    """Raise if the result depends on calls that torch's distributed autograd has recorded: they get no gradient."""
    current: Any = torch_autograd
    try:
        current._current_context()
    except RuntimeError:  # there is no context, so nothing was recorded
        return
    if any('RecvRpcBackward' in node.name() for node in nodes_of(outputs)):
        raise RuntimeError(
            'The function called torch.distributed.rpc within a context of distributed autograd (to_here() of an RRef '
            'that is not among its arguments, or rpc_sync), and its result depends on the answer, to which gradients '
            'cannot flow. Pass the RRef as an argument, or call with torchopt.distributed.remote_sync_call.'
        )


def _fetch(rref: Any, timeout: float, *, record: bool) -> Any:
    """The value of an ``RRef`` that another process owns and that was sent without its value."""
    answer: Answer = rpc.rpc_sync(rref.owner(), lend, (rref, record), timeout=timeout)
    if answer.failure is not None:
        raise answer.failure.exception()
    assert answer.message is not None
    return unpack(answer.message)[0]


def lend(rref: Any, record: bool) -> Answer:
    """A copy of the value of an ``RRef`` that this process owns, for a call whose graph does not include it.

    If the caller records a graph, a value that requires grad is an error, since its gradients would be lost.
    """
    try:
        value = rref.local_value()

        def classify(x: Tensor) -> tuple[str, Any]:
            if record and x.requires_grad:
                raise RuntimeError(
                    f'The value of an RRef, {kind_of(value)} on worker {rref.owner().id}, contains tensors '
                    f'that require grad, to which this call cannot return gradients. Pass an RRef of the module or of '
                    f'the tensors, from the process that owns them; or call the function on their owner '
                    f'(partitioner={rref.owner().id}), or under torch.no_grad().'
                )
            return as_leaf(x)

        return Answer(pack(value, classify)[0], None, None)
    except BaseException as error:
        return _failed(error)


def differentiate(number: int, request: Message, create_graph: bool, released: Sequence[int]) -> Answer:
    """The vector-Jacobian product of a graph for each of its inputs; None if it is zero.

    The request is a list with a cotangent, or None, for each output.  Leaves of the worker get their gradients in
    ``.grad``, as in any backward pass.
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
    """Like :func:`differentiate`, with a graph from the inputs and the cotangents to the product."""
    pairs = [(x, c) for x, c in zip(graph.outputs, cotangents) if c is not None]
    sent = {id(x) for x in graph.inputs}
    own = [x for x in leaves_of(x for x, _ in pairs) if id(x) not in sent]
    found = torch.autograd.grad(
        [x for x, _ in pairs], [*graph.inputs, *own], [c for _, c in pairs], create_graph=True, allow_unused=True
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
