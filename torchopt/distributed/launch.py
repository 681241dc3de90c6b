# SPDX-License-Identifier: Apache-2.0
"""Join a group of processes at the start, and leave it at the end without hanging."""

from __future__ import annotations

import atexit
import contextlib
import enum
import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.rpc as rpc

from torchopt.distributed.errors import is_late
from torchopt.distributed.loopback import prepare_rendezvous
from torchopt.distributed.ranks import barrier, default_worker_name_format, get_world_info, has_rpc, members
from torchopt.kinds import kind_of

_P = ParamSpec('_P')
_T = TypeVar('_T')

_LOCAL_SHUTDOWN = 10.0  # seconds that torch may take to end its threads
_GRACE = 5.0  # seconds that rank 0 waits so that the others can learn that all are done


def auto_init_rpc(
    worker_init_fn: Callable[[], Any] | None = None,
    worker_name_format: Callable[..., str] = default_worker_name_format,
    *,
    backend: Any = None,
    rpc_backend_options: Any = None,
    shutdown_timeout: float = 60.0,
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorator of a main function: join the RPC group before it, and leave the group when Python ends.

    Every process runs the same script under ``torchrun``; without it, a process is a group of one.  Errors are
    recorded for ``torchrun``.  When Python ends on rank 0, it waits until the main functions of all other workers have
    returned; until then they serve calls.  It does not wait for a dead worker, or longer than ``shutdown_timeout``.  A
    worker whose main function raises exits immediately, so that the launcher notices.

    RPC executes code that its peers send: use it on trusted networks only.  All sockets are bound to loopback, unless
    the launcher reports several machines, or an interface is given (``TP_SOCKET_IFNAME``).

    Args:
        worker_init_fn: Called without arguments on every worker, before the main function runs on any of them.
        worker_name_format: Called with world rank, world size, local rank and local world size; returns the name of the
            worker.  By default ``worker`` and the rank.
        backend: See ``torch.distributed.rpc.init_rpc``.
        rpc_backend_options: See there; by default TensorPipe over sockets, which uses no CPU while waiting.
        shutdown_timeout: The time in seconds for which rank 0 waits at the end for busy workers, and they for rank 0.

    Raises:
        RuntimeError: If RPC is not available or already initialized, or the address of the rendezvous is missing.
        TypeError: If the decorator is used without parentheses.

    Example:
        >>> import torchopt.distributed as todist
        >>> @todist.auto_init_rpc()
        ... def main():
        ...     return todist.remote_sync_call(max, args=(3, 4), partitioner=0)  # by this process itself
        >>> main()  # doctest: +SKIP
        4
    """
    for name, value in (('worker_init_fn', worker_init_fn), ('worker_name_format', worker_name_format)):
        if value is not None and not callable(value):
            raise TypeError(f'{name} is {kind_of(value)}; expected a function.')
    if not shutdown_timeout > 0:
        raise ValueError(f'Invalid shutdown_timeout: {shutdown_timeout}; expected a number of seconds > 0.')

    @contextlib.contextmanager
    def joined() -> Iterator[None]:
        if not rpc.is_available():
            raise RuntimeError('This torch was built without RPC. Use auto_init_process_group and map_tasks.')
        world = get_world_info()
        prepare_rendezvous(world)
        with warnings.catch_warnings():  # torch warns about its own calls
            warnings.filterwarnings('ignore', 'You are using a Backend', UserWarning)
            rpc.init_rpc(  # type: ignore[no-untyped-call]
                worker_name_format(*world),
                backend=backend,
                rank=world.rank,
                world_size=world.world_size,
                rpc_backend_options=rpc_backend_options or _quiet_options(backend),
            )
        shutdown = _Shutdown(shutdown_timeout)
        atexit.register(shutdown)
        try:
            barrier()
            if worker_init_fn is not None:
                worker_init_fn()
            barrier()
            yield
        except BaseException as error:
            shutdown.failed = not (isinstance(error, SystemExit) and not error.code)
            raise

    return _around_main('auto_init_rpc', joined)


def auto_init_process_group(
    *, backend: str | None = None, timeout: timedelta | None = None
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Decorator of a main function: join the default process group before it, and leave the group at the end.

    The counterpart of :func:`auto_init_rpc` for collectives: under ``torchrun`` every process runs the same script;
    without it, a process is a group of one.

    Args:
        backend: See ``torch.distributed.init_process_group``: ``'gloo'`` on CPUs, ``'nccl'`` on NVIDIA GPUs; by
            default, torch chooses according to the available devices.
        timeout: The time limit of a collective, by default that of torch (gloo: 30 minutes).

    Raises:
        RuntimeError: If the address of the rendezvous is missing.
        TypeError: If the decorator is used without parentheses.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> @todist.auto_init_process_group(backend='gloo')
        ... def main():
        ...     return todist.all_reduce(torch.ones(2))
        >>> main()  # doctest: +SKIP
        tensor([1., 1.])
    """

    @contextlib.contextmanager
    def joined() -> Iterator[None]:
        world = get_world_info()
        prepare_rendezvous(world)
        dist.init_process_group(backend, timeout=timeout, rank=world.rank, world_size=world.world_size)
        try:
            yield
        finally:
            # Leave also after an error: the others notice it, and Python may abort if the group still exists at exit.
            # This does not return during a collective that no other rank joins, so do not wait for long.
            leaving = threading.Thread(target=dist.destroy_process_group, name='torchopt-leave', daemon=True)
            leaving.start()
            leaving.join(_LOCAL_SHUTDOWN)

    return _around_main('auto_init_process_group', joined)


def _around_main(
    name: str, joined: Callable[[], contextlib.AbstractContextManager[None]]
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """A decorator that runs a main function within a group, and records the traceback of an error for ``torchrun``."""

    def decorate(func: Callable[_P, _T]) -> Callable[_P, _T]:
        if not callable(func):
            raise TypeError(f'{name} must be called: decorate with @{name}().')
        # Imported only here, since it loads torch's launcher.
        from torch.distributed.elastic.multiprocessing.errors import record

        @functools.wraps(func)
        def main(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            with joined():
                return func(*args, **kwargs)

        return record(main)  # type: ignore[return-value]

    return decorate


def _quiet_options(backend: Any) -> Any:
    """Options of TensorPipe that use sockets only, unless tensors may be sent between GPUs.

    Shared memory, its default on one machine, is 0.2 ms faster per answer, but then every process uses a whole core to
    poll for messages.
    """
    module: Any = rpc
    if backend not in (None, module.BackendType.TENSORPIPE):
        return None
    channels = {} if torch.cuda.is_available() else {'_channels': ['basic']}
    return module.TensorPipeRpcBackendOptions(_transports=['uv'], **channels)


class _End(enum.Enum):
    """How RPC ends: together, when torch waits for the slowest, or separately, because a worker is missing."""

    TOGETHER = enum.auto()
    ALONE = enum.auto()


class _Roll:
    """The record of rank 0 at the end: which workers are done, and which know how RPC ends."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.done: set[int] = set()
        self.acknowledged: set[int] = set()
        self.end: _End | None = None

    def report(self, rank: int) -> _End | None:
        with self.lock:
            self.done.add(rank)
            if self.end is not None:
                self.acknowledged.add(rank)
            return self.end


_roll = _Roll()


def _report_done(rank: int) -> _End | None:
    return _roll.report(rank)


def _answer() -> None:
    """Return, to show that this process is alive."""


class _Shutdown:
    """Leave the RPC group.  Torch's own shutdown waits forever for a worker that died."""

    def __init__(self, timeout: float) -> None:
        _roll.reset()  # of an earlier group in this process
        self.timeout = timeout
        self.failed = False
        self.end = _End.ALONE
        self.now, self.ended = threading.Event(), threading.Event()
        # A separate thread, since one of its calls may never return; started now, since Python cannot start threads
        # while it exits.
        threading.Thread(target=self._end_rpc, name='torchopt-end-rpc', daemon=True).start()

    def __call__(self) -> None:
        if not has_rpc():
            return  # the user has shut it down
        world = get_world_info()
        if not self.failed:
            self.end = self._await_others() if world.rank == 0 else self._await_first(world.rank, world.world_size)
        self.now.set()
        if not self.ended.wait(_LOCAL_SHUTDOWN):
            print(f'torchopt: worker {world.rank} leaves although a call is still running.', file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(self.failed))

    def _end_rpc(self) -> None:
        self.now.wait()
        try:
            rpc.shutdown(graceful=self.end is _End.TOGETHER)
        except RuntimeError as error:  # about references that others still hold; they end with the process
            print(f'torchopt: {error}', file=sys.stderr)
        self.ended.set()

    def _await_others(self) -> _End:
        """On rank 0: wait until all others are done, dead, or late."""
        others = set(members()) - {0}
        living = self._await(others, lambda: _roll.done, self.timeout)
        late = sorted(living - _roll.done)
        if late:
            print(
                f'torchopt: the main functions of workers {late} did not return within {self.timeout:g} s after that '
                f'of worker 0, which stops waiting. Increase auto_init_rpc(shutdown_timeout=...) to wait longer.',
                file=sys.stderr,
            )
        # Some may have died after they were done.
        living = {worker for worker in living - set(late) if _is_alive(worker)}
        with _roll.lock:
            _roll.end = _End.TOGETHER if living == others else _End.ALONE
        acknowledged = self._await(living, lambda: _roll.acknowledged, min(_GRACE, self.timeout))
        return _roll.end if acknowledged <= _roll.acknowledged else _End.ALONE

    def _await(self, workers: set[int], come: Callable[[], set[int]], timeout: float) -> set[int]:
        """Wait until all living workers of these have come; return the living ones."""
        living, deadline = set(workers), time.monotonic() + timeout
        while living - come() and time.monotonic() < deadline:
            living -= {worker for worker in living - come() if not _is_alive(worker)}
            time.sleep(0.02)
        return living

    def _await_first(self, rank: int, world_size: int) -> _End:
        """On all other ranks: wait until rank 0 reports that all are done, or has died."""
        heard = time.monotonic()
        while time.monotonic() < heard + self.timeout:
            try:
                end = rpc.rpc_sync(0, _report_done, (rank,), timeout=1.0 + self.timeout / 10)
                if end is not None:
                    return end
                heard = time.monotonic()
            except RuntimeError as error:
                if not is_late(error):
                    break
            # So that rank 0 receives at most about a hundred of these calls per second.
            time.sleep(0.05 + 0.01 * world_size)
        return _End.ALONE


def _is_alive(worker: int) -> bool:
    try:
        rpc.rpc_sync(worker, _answer, timeout=1.0)
    except RuntimeError as error:
        return is_late(error)
    return True
