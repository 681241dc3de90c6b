# SPDX-License-Identifier: Apache-2.0
"""Call functions on other workers; the results are differentiable as if computed in this process."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch.futures import Future

from torchopt import checks
from torchopt.distributed.call import Limits, call, prepare
from torchopt.distributed.partition import Partitioner, Reducer, Results, batch_partitioner, mean_reducer
from torchopt.distributed.ranks import get_worker_id, require_rpc
from torchopt.kinds import kind_of
from torchopt.levels import in_transform

_P = ParamSpec('_P')
_T = TypeVar('_T')
_DEFAULT_TIMEOUT = -1.0  # for torch, the default of the RPC group


def remote_async_call(
    func: Callable[..., Any],
    *,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    partitioner: int | str | Partitioner | None = None,
    reducer: Reducer | None = None,
    timeout: float = _DEFAULT_TIMEOUT,
    retries: int = 0,
) -> Future[Any]:
    """Call a function on other workers, without waiting for it.

    The result is part of the autograd graph: a backward pass, also one with ``create_graph=True``, continues on the
    workers.  Gradients reach every tensor among the arguments that requires grad, including parameters of modules;
    parameters that live on a worker get their gradient there, in ``.grad``.  A worker keeps its graph until the graph
    here is freed.  All workers of one call differentiate at the same time, one call after another.

    Modules and other objects are sent as copies: in-place changes by the function stay on the worker.  Under
    ``torch.no_grad()`` no graph is kept.

    Args:
        func: A function that every worker can import.
        args: Its arguments.
        kwargs: Its keyword arguments.
        partitioner: The rank or the name of a worker, which gets all arguments; or a function of the arguments that
            returns a list of ``(worker, args, kwargs)``, with None for no arguments; None divides all tensors along
            their first dimension.
        reducer: A function of the list of results.
        timeout: The time limit of each worker in seconds, for the function and separately for its gradient; 0 means no
            limit, and the default is that of the RPC group (60 s).  For the part of this process there is a limit only
            if ``timeout`` is given.
        retries: How often another worker retries a part if its worker died or timed out.  Only for functions without
            side effects.

    Returns:
        A future of the list of results, or of the result of ``reducer``.  ``wait()`` raises the exception of the
        function (its cause is the traceback of the worker), :class:`WorkerDiedError` or :class:`WorkerTimeoutError`.

    Raises:
        RuntimeError: If RPC is not initialized, or the call is inside a ``torch.func`` transform.
        TypeError: If the function or an argument cannot be sent, or ``partitioner`` has a wrong type.
        ValueError: If ``retries`` is negative, or the partitioner cannot divide the arguments.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> future = todist.remote_async_call(torch.add, args=(torch.ones(2), 1.0), partitioner=1)  # doctest: +SKIP
        >>> future.wait()  # doctest: +SKIP
        [tensor([2., 2.])]
    """
    require_rpc()
    if in_transform():
        raise RuntimeError(
            'torch.func cannot transform a remote call, since other workers do not know the transform. Transform the '
            'called function, or differentiate with torch.autograd.'
        )
    if not callable(func):
        raise TypeError(f'func is {kind_of(func)}; expected a function.')
    if not isinstance(retries, int) or retries < 0:
        raise ValueError(f'Invalid retries: {retries!r}; expected an int >= 0.')
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    parts = _divide(partitioner, args, kwargs)
    weights = [getattr(part, 'weight', 1) for part in parts]
    shares = prepare(
        func, [(get_worker_id(worker), () if a is None else tuple(a), dict(k or {})) for worker, a, k in parts]
    )

    def reduce(found: list[Any]) -> Any:
        results = Results(found, weights)
        return results if reducer is None else reducer(results)

    return call(shares, Limits(timeout, retries), reduce)


def _divide(partitioner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Any, Any, Any]]:
    if partitioner is None:
        partitioner = batch_partitioner
    if isinstance(partitioner, (int, str)) and not isinstance(partitioner, bool):
        return [(partitioner, args, kwargs)]
    if not callable(partitioner):
        raise TypeError(
            f'Invalid partitioner: {partitioner!r}; expected the rank or name of a worker, a function that returns a '
            f'list of (worker, args, kwargs), or None.'
        )
    parts = list(partitioner(*args, **kwargs))
    if not parts:
        raise ValueError('The partitioner returned no parts; expected at least one (worker, args, kwargs).')
    return parts


def remote_sync_call(
    func: Callable[..., Any],
    *,
    args: tuple[Any, ...] | None = None,
    kwargs: dict[str, Any] | None = None,
    partitioner: int | str | Partitioner | None = None,
    reducer: Reducer | None = None,
    timeout: float = _DEFAULT_TIMEOUT,
    retries: int = 0,
) -> Any:
    """Call a function on other workers and wait for the results.

    Arguments and errors are those of :func:`remote_async_call` and of ``wait()``.

    Returns:
        The list of results, or the result of ``reducer``.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> todist.remote_sync_call(torch.add, args=(torch.ones(2), 1.0), partitioner=1)  # doctest: +SKIP
        [tensor([2., 2.])]
    """
    return remote_async_call(
        func, args=args, kwargs=kwargs, partitioner=partitioner, reducer=reducer, timeout=timeout, retries=retries
    ).wait()


class _Undecorated:
    """The undecorated function, for a worker that imports the name and gets the decorated one."""

    def __init__(self, decorated: Callable[..., Any]) -> None:
        self.decorated = decorated
        self.__qualname__ = getattr(decorated, '__qualname__', repr(decorated))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.decorated.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        return _Undecorated, (self.decorated,)


def _sendable(func: Callable[..., Any], decorated: Callable[..., Any]) -> Callable[..., Any]:
    """An object that a worker can import: the function, or a wrapper if the decorator has replaced its name."""
    found: Any = sys.modules.get(func.__module__)
    for name in func.__qualname__.split('.'):
        found = getattr(found, name, None)
    return func if found is func else _Undecorated(decorated)


def _parallel(
    wait: bool, partitioner: int | str | Partitioner | None, reducer: Reducer | None, timeout: float, retries: int
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    if partitioner is None and reducer is None:
        reducer = mean_reducer

    def decorate(func: Callable[..., Any]) -> Callable[..., Any]:
        checks.function('func', func, 'If the decorator stands without parentheses, write @parallelize().')

        @functools.wraps(func)
        def run(*args: Any, **kwargs: Any) -> Any:
            future = remote_async_call(
                _sendable(func, run),
                args=args,
                kwargs=kwargs,
                partitioner=partitioner,
                reducer=reducer,
                timeout=timeout,
                retries=retries,
            )
            return future.wait() if wait else future

        return run

    return decorate


def parallelize_async(
    partitioner: int | str | Partitioner | None = None,
    reducer: Reducer | None = None,
    timeout: float = _DEFAULT_TIMEOUT,
    *,
    retries: int = 0,
) -> Callable[[Callable[_P, _T]], Callable[_P, Future[Any]]]:
    """Decorator like :func:`parallelize`; a call returns a future.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> @todist.parallelize_async(todist.batch_partitioner, todist.mean_reducer)
        ... def loss(x):
        ...     return x.square().mean()
        >>> loss(torch.arange(8.0)).wait()  # doctest: +SKIP
        tensor(17.5000)
    """
    return _parallel(False, partitioner, reducer, timeout, retries)


def parallelize(
    partitioner: int | str | Partitioner | None = None,
    reducer: Reducer | None = None,
    timeout: float = _DEFAULT_TIMEOUT,
    *,
    retries: int = 0,
) -> Callable[[Callable[_P, _T]], Callable[_P, Any]]:
    """Decorator: a call of the function divides its arguments among workers, and waits for the results.

    Args:
        partitioner: See :func:`remote_async_call`.
        reducer: See there; :func:`mean_reducer` if both are None.
        timeout: See there.
        retries: See there.

    Example:
        >>> import torch, torchopt.distributed as todist
        >>> @todist.parallelize(todist.batch_partitioner, todist.mean_reducer)
        ... def loss(x):
        ...     return x.square().mean()
        >>> loss(torch.arange(8.0))  # doctest: +SKIP
        tensor(17.5000)
    """
    return _parallel(True, partitioner, reducer, timeout, retries)


parallelize_sync = parallelize
