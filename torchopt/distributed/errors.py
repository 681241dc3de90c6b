# SPDX-License-Identifier: Apache-2.0
"""Errors in other processes, and their transfer to the caller."""

from __future__ import annotations

import pickle
import re
import traceback
from typing import NamedTuple


class WorkerError(RuntimeError):
    """Another process could not execute a request.

    An exception raised by the function is raised again unchanged in the caller, or replaced by this class if it cannot
    be pickled.  This is also the base class of the errors for workers that do not answer.

    Attributes:
        worker: The rank of the worker; None if unknown, as in a collective.

    Example:
        >>> import torchopt
        >>> issubclass(torchopt.distributed.WorkerDiedError, torchopt.distributed.WorkerError)
        True
    """

    def __init__(self, message: str, worker: int | None = None) -> None:
        super().__init__(message)
        self.worker = worker

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:
        """Pickle with the rank."""
        return type(self), (str(self), self.worker)


class WorkerDiedError(WorkerError, ConnectionError):
    """The connection to a worker broke, because its process or machine stopped.

    Example:
        >>> import torchopt
        >>> issubclass(torchopt.distributed.WorkerDiedError, ConnectionError)
        True
    """


class WorkerTimeoutError(WorkerError, TimeoutError):
    """A worker did not answer in time; the request may still be running there.

    Example:
        >>> import torchopt
        >>> issubclass(torchopt.distributed.WorkerTimeoutError, TimeoutError)
        True
    """


class RemoteTraceback(Exception):
    """The cause of an exception that another process raised: its traceback there, as text.

    Example:
        >>> import torchopt
        >>> print(torchopt.distributed.RemoteTraceback('on worker 1:', 'ZeroDivisionError'))
        on worker 1:
        ZeroDivisionError
    """

    def __str__(self) -> str:
        """One argument per line."""
        return '\n'.join(str(a) for a in self.args)


class Failure(NamedTuple):
    """An exception in a form that can be sent to another process."""

    worker: int
    summary: str
    traceback: str
    pickled: bytes | None

    @classmethod
    def of(cls, error: BaseException, worker: int) -> Failure:
        """Convert an exception; the text is used if it cannot be pickled."""
        summary = ''.join(traceback.format_exception_only(type(error), error)).strip()
        text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
        try:
            pickled = pickle.dumps(error)
            again = pickle.loads(pickled)  # exceptions with their own constructor may fail only on loading
        except Exception:
            again, pickled = None, None
        return cls(worker, summary, text, pickled if isinstance(again, Exception) else None)

    def exception(self) -> Exception:
        """The exception of the same type, with the traceback of the other process as its cause."""
        error: Exception | None = None
        if self.pickled is not None:
            try:
                error = pickle.loads(self.pickled)
            except Exception:  # its class does not exist in this process
                error = None
        if error is None:
            error = WorkerError(f'The function failed on worker {self.worker}: {self.summary}', self.worker)
        error.__cause__ = RemoteTraceback(f'Traceback on worker {self.worker}:', self.traceback)
        return error


# Only the text distinguishes torch's errors.
_LATE = re.compile(r'RPCErr:1:|timed? ?out', re.IGNORECASE)
_BROKEN = re.compile(
    r'closed by peer|reset by peer|broken pipe|connection (refused|closed|aborted)|remote process exited|'
    r'\beof\b|socket closed|failed to connect|pipe closed|not connected|aborted',
    re.IGNORECASE,
)


def is_late(error: BaseException) -> bool:
    """Whether an error of torch is a timeout."""
    return _LATE.search(str(error)) is not None


def translate_call(error: BaseException, worker: int, timeout: float) -> WorkerError:
    """Convert an error of an RPC.  It concerns the connection, since exceptions of the function arrive as answers."""
    if is_late(error):
        limit = f'{timeout:g} s' if timeout > 0 else 'the default time of RPCs'
        return WorkerTimeoutError(
            f'Worker {worker} did not answer within {limit}. If the call is only slow, pass a longer timeout=...; '
            f'0 means no limit.',
            worker,
        )
    return WorkerDiedError(
        f'The connection to worker {worker} is broken, so its process or machine has stopped: {error}. For a function '
        f'without side effects, retries=... repeats the call on another worker.',
        worker,
    )


def translate_collective(error: BaseException) -> BaseException:
    """Convert an error of a collective; an error that is not the death of a process is kept."""
    if is_late(error):
        return WorkerTimeoutError(
            f'A collective did not end in time, so a process is slow, stuck, or took another path: {error}. Let every '
            f'process of the group make the same calls in the same order; if one is only slow, raise the timeout.'
        )
    if _BROKEN.search(str(error)):
        return WorkerDiedError(
            f'The connection to another process broke during a collective: {error}. The group cannot be used any more: '
            f'end this process too and start again from the last checkpoint, as torchrun --max-restarts does.'
        )
    return error
