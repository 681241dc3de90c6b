# SPDX-License-Identifier: Apache-2.0
"""A call of a function on several workers at once, as one node of the autograd graph."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed.rpc as rpc
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.futures import Future

from torchopt.distributed import worker
from torchopt.distributed.errors import WorkerDiedError, WorkerError, translate_call
from torchopt.distributed.message import Message, copied, differentiable, pack, pack_each, unpack
from torchopt.distributed.ranks import members
from torchopt.levels import apply_function


class Limits(NamedTuple):
    """The time limit in seconds (0: none, negative: RPC's default), and how often another worker may retry."""

    timeout: float
    retries: int


class Share(NamedTuple):
    """The request for one worker, and the tensors in it that require grad."""

    worker: int
    request: Message
    inputs: list[Tensor]


def prepare(func: Callable[..., Any], parts: Sequence[tuple[int, tuple[Any, ...], dict[str, Any]]]) -> list[Share]:
    """Pack the request for each worker, from its arguments.

    Raises:
        TypeError: If the function or an argument cannot be sent.
    """
    held = [{id(x): x for x in (*args, *kwargs.values())} for _, args, kwargs in parts]
    common = [x for number, x in held[0].items() if all(number in other for other in held)] if len(held) > 1 else []
    try:
        packed = pack_each([(func, args, kwargs) for _, args, kwargs in parts], common)
    except Exception as error:
        name = getattr(func, '__qualname__', None) or repr(func)
        raise TypeError(
            f'func={name} with its arguments cannot be sent to another process: {error}. Define functions and classes '
            f'at the top level of a module that every worker can import; lambdas and local functions cannot be sent.'
        ) from error
    return [
        Share(worker, request, differentiable(originals)) for (worker, _, _), (request, originals) in zip(parts, packed)
    ]


def call(shares: Sequence[Share], limits: Limits, reduce: Callable[[list[Any]], Any]) -> Future[Any]:
    """Execute the requests on all workers at the same time.

    Returns:
        A future of ``reduce(results)``, with the list of results.  Tensors of the results that depend on our inputs
        have a graph if gradients are enabled.
    """
    record = torch.is_grad_enabled()
    promise: Future[Any] = _future()
    answers: dict[int, tuple[int, worker.Answer]] = {}
    lock = threading.Lock()
    failed = False

    def receive(number: int, found: tuple[int, worker.Answer] | BaseException) -> None:
        nonlocal failed
        with lock:
            if failed:
                return
            error = found if isinstance(found, BaseException) else None
            if error is None:
                answers[number] = found  # type: ignore[assignment]
                if len(answers) < len(shares):
                    return
                try:
                    with torch.set_grad_enabled(record):
                        result = reduce(_assemble(shares, [answers[i] for i in range(len(shares))], limits))
                except Exception as wrong:
                    error = wrong
            failed = error is not None
        if error is None:
            promise.set_result(result)
        else:
            promise.set_exception(error)

    for number in _own_last([share.worker for share in shares]):
        _execute(shares[number], record, limits, functools.partial(receive, number))
    return promise


def _own_last(workers: Sequence[int]) -> list[int]:
    """The order in which to start the calls: that of this process last, since it would delay the others."""
    try:
        own = rpc.get_worker_info().id
    except RuntimeError:  # RPC has ended: the first call raises
        own = -1
    return sorted(range(len(workers)), key=lambda number: workers[number] == own)


def _future() -> Future[Any]:
    # A future rejects tensors on devices with which it was not created.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return Future(devices=list(devices) or None)


def _execute(share: Share, record: bool, limits: Limits, then: Callable[[Any], None]) -> None:
    """Call ``then`` with the worker and its answer, or with an exception."""

    def attempt(to: int, left: int) -> None:
        try:
            if left and to in _dead:
                to = _survivor(to)
            future = _ask(to, worker.execute, (share.request, record), limits.timeout)
            future.add_done_callback(lambda f: answered(f, to, left))
        except RuntimeError as error:
            lost(error, to, left)
        except Exception as error:  # pass every error to the future
            then(error)

    def answered(future: Future[worker.Answer], to: int, left: int) -> None:
        try:
            answer = future.wait()
        except RuntimeError as error:
            lost(error, to, left)
        except Exception as error:
            then(error)
        else:
            _late.discard(to)
            then((to, answer) if answer.failure is None else answer.failure.exception())

    def lost(error: RuntimeError, to: int, left: int) -> None:
        typed = _translate(error, to, limits)
        if left == 0:
            then(typed)
            return
        try:
            survivor = _survivor(to)
        except WorkerError:
            then(typed)
        else:
            attempt(survivor, left - 1)

    attempt(share.worker, limits.retries)


_dead: set[int] = set()
_late: set[int] = set()  # those that did not answer the last request in time
_turns = itertools.count()


def _survivor(failed: int) -> int:
    """A worker other than the one that failed, if possible one that was not late.

    They are chosen in turn, so that the retries are distributed evenly.
    """
    alive = [worker for worker in members() if worker not in _dead | {failed}]
    if not alive:
        raise WorkerDiedError(f'No worker is left to repeat the call of worker {failed}.', failed)
    workers = [worker for worker in alive if worker not in _late] or alive
    return workers[next(_turns) % len(workers)]


def _translate(error: RuntimeError, to: int, limits: Limits) -> WorkerError:
    typed = error if isinstance(error, WorkerError) else translate_call(error, to, limits.timeout)
    (_dead if isinstance(typed, WorkerDiedError) else _late).add(to)
    return typed


# --- The graph ----------------------------------------------------------------------------------

_released: defaultdict[int, deque[int]] = defaultdict(deque)


class _Handle:
    """A graph that a worker keeps for this process as long as this object exists."""

    def __init__(self, worker: int, number: int) -> None:
        self.worker, self.number = worker, number

    def __del__(self) -> None:
        # Do not send anything from a destructor, which may run at any time: the next call sends the number.
        _released[self.worker].append(self.number)


def _ask(to: int, what: Callable[..., worker.Answer], args: tuple[Any, ...], timeout: float) -> Future[worker.Answer]:
    released: list[int] = []
    with contextlib.suppress(IndexError):  # until it is empty, since other threads may add to it
        while True:
            released.append(_released[to].popleft())
    if to == rpc.get_worker_info().id and timeout <= 0:
        return _here(what, (*args, released))
    future: Future[worker.Answer] = rpc.rpc_async(to, what, (*args, released), timeout=timeout)
    return future


def _here(what: Callable[..., worker.Answer], args: tuple[Any, ...]) -> Future[worker.Answer]:
    """Execute the request for this process like RPC, but without sending it over the network."""
    future: Future[Any] = _future()
    arrived = [copied(x) if isinstance(x, Message) else x for x in args]

    def run() -> None:
        try:
            answer = what(*arrived)
            found = answer if answer.message is None else answer._replace(message=copied(answer.message))
        except Exception as error:  # pass every error to the future, such as no memory for the copy
            future.set_exception(error)
        else:
            future.set_result(found)

    # A separate thread, since modes of this thread (no_grad, autocast, a default device) must not affect the function.
    threading.Thread(target=run, name='torchopt-own-share', daemon=True).start()
    return future


class _Kept(NamedTuple):
    """The part of a node that one worker keeps; ``request`` can recreate it on another worker."""

    handle: _Handle | None
    inputs: int
    outputs: int
    request: Message | None


class _Session:
    """The workers of a node of the graph, and their limits."""

    def __init__(self, kept: list[_Kept], limits: Limits) -> None:
        self.kept, self.limits = kept, limits

    def differentiate(self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradients of the inputs, with a graph if gradients are enabled."""
        record = torch.is_grad_enabled()
        shares = []
        of_inputs, of_outputs = iter(inputs), iter(cotangents)
        for kept in self.kept:
            own = list(itertools.islice(of_inputs, kept.inputs))
            given = list(itertools.islice(of_outputs, kept.outputs))
            needed = kept.handle is not None and any(c is not None for c in given)
            request = pack([None if c is None else c.detach() for c in given])[0] if needed else None
            shares.append((own, given, request))
        futures: dict[int, Any] = {}
        for i in _own_last([-1 if kept.handle is None else kept.handle.worker for kept in self.kept]):
            if (request := shares[i][2]) is not None:
                futures[i] = self._start(self.kept[i], request, record)
        answers: list[tuple[int, worker.Answer] | None] = []
        for i, (kept, (_, _, request)) in enumerate(zip(self.kept, shares)):
            answers.append(None if request is None else self._finish(kept, futures[i], request, record))
        packed = [
            Share(0, Message(b'', [], []), [*own, *(c for c in given if c is not None)]) for own, given, _ in shares
        ]
        lists = _assemble(packed, answers, self.limits._replace(retries=0))
        return [g for (own, _, _), found in zip(shares, lists) for g in (found or [None] * len(own))]

    def _start(self, kept: _Kept, sent: Message, record: bool) -> Any:
        assert kept.handle is not None
        try:
            args = (kept.handle.number, sent, record)
            return _ask(kept.handle.worker, worker.differentiate, args, self.limits.timeout)
        except RuntimeError as error:
            return error

    def _finish(self, kept: _Kept, future: Any, sent: Message, record: bool) -> tuple[int, worker.Answer]:
        """Wait for a gradient; if its worker is lost, retry the call on other workers, as often as allowed."""
        assert kept.handle is not None
        to, left = kept.handle.worker, self.limits.retries
        while True:
            try:
                if isinstance(future, RuntimeError):
                    raise future
                answer = future.wait()
                break
            except RuntimeError as error:
                typed = _translate(error, to, self.limits)
                if left == 0 or kept.request is None:
                    raise typed from None
                to, left = _survivor(to), left - 1
                kept, future = self._again(kept, to, sent, record)
        _late.discard(to)
        if answer.failure is not None:
            raise answer.failure.exception()
        return to, answer

    def _again(self, kept: _Kept, to: int, sent: Message, record: bool) -> tuple[_Kept, Any]:
        """Execute the call again on another worker, and ask that one for the gradient."""
        try:
            answer = _ask(to, worker.execute, (kept.request, True), self.limits.timeout).wait()
        except RuntimeError as error:
            return kept, error
        if answer.failure is not None:
            raise answer.failure.exception()
        assert answer.graph is not None
        kept = kept._replace(handle=_Handle(to, answer.graph))
        return kept, self._start(kept, sent, record)


errors_of_gradients: deque[Exception] = deque(maxlen=8)
"""The last errors; the engine of distributed autograd passes on only their texts."""


class _Remote(torch.autograd.Function):
    """The node from our inputs to the results of the workers."""

    @staticmethod
    def forward(ctx: Any, session: _Session, outputs: list[Tensor], anchor: Tensor, *inputs: Tensor) -> Any:
        ctx.session = weakref.ref(session)
        ctx.save_for_backward(anchor, *inputs)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        _, *inputs = ctx.saved_tensors
        try:
            return None, None, None, *ctx.session().differentiate(inputs, cotangents)
        except Exception as error:
            errors_of_gradients.append(error)
            raise


def _assemble(
    shares: Sequence[Share], answers: Sequence[tuple[int, worker.Answer] | None], limits: Limits
) -> list[Any]:
    """The results, connected to our inputs by one node; None if there is no answer."""
    kept, outputs = [], []
    for share, found in zip(shares, answers):
        own: list[Tensor] = []
        handle = None
        if found is not None:
            to, answer = found
            assert answer.message is not None
            own = [x for kind, x in zip(answer.message.kinds, answer.message.parts) if kind == 'output']
            handle = None if answer.graph is None else _Handle(to, answer.graph)
        outputs += own
        kept.append(_Kept(handle, len(share.inputs), len(own), share.request if limits.retries else None))
    connected: Iterable[Tensor] = ()
    if outputs:
        session = _Session(kept, limits)
        # The session is attached to the saved tensors, so that a backward pass that does not retain the graph also
        # releases the graphs of the workers.  The anchor makes this a node even if none of our inputs requires grad,
        # since workers may have their own parameters.
        anchor = torch.empty(0, requires_grad=True)
        with saved_tensors_hooks(lambda x: (session, x), lambda held: held[1]):
            connected = apply_function(
                _Remote, session, outputs, anchor, *(x for share in shares for x in share.inputs)
            )
    stream = iter(connected)
    results: list[Any] = []
    for share, found in zip(shares, answers):
        if found is None:
            results.append(None)
            continue
        arrive = {'input': share.inputs.__getitem__, 'output': lambda _: next(stream)}
        results.append(unpack(found[1].message, arrive)[0])  # type: ignore[arg-type]
    return results
