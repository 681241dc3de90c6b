# SPDX-License-Identifier: Apache-2.0
"""The ranks set by the launcher, and functions that run on some ranks only."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch.distributed as dist
import torch.distributed.rpc as rpc

_P = ParamSpec('_P')
_T = TypeVar('_T')


def is_available() -> bool:
    """Whether this torch was built with process groups, RPC and distributed autograd.

    Example:
        >>> import torchopt
        >>> isinstance(torchopt.distributed.is_available(), bool)
        True
    """
    return dist.is_available() and rpc.is_available()


class WorldInfo(NamedTuple):
    """The ranks of this process, and the numbers of processes.

    Attributes:
        world_rank: The number of this process among all processes, from 0.
        world_size: The number of processes.
        local_rank: The number of this process on this machine.
        local_world_size: The number of processes on this machine.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.WorldInfo(3, 12, 1, 2).worker_name
        'worker03'
    """

    world_rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def rank(self) -> int:
        """The number of this process among all processes."""
        return self.world_rank

    @property
    def worker_name(self) -> str:
        """The name of this process for RPC; before initialization, the name that it will get."""
        if has_rpc():
            return str(rpc.get_worker_info().name)
        return default_worker_name_format(*self)


def default_worker_name_format(world_rank: int, world_size: int, local_rank: int, local_world_size: int) -> str:
    """``worker`` and the rank, with leading zeros so that names sort like numbers."""
    return f'worker{world_rank:0{len(str(world_size))}d}'


@functools.cache
def get_world_info() -> WorldInfo:
    """The ranks of this process, from the environment variables that ``torchrun`` sets.

    The variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``LOCAL_WORLD_SIZE``) are read once.  Without them, there
    is one process.

    Raises:
        ValueError: If they are not valid ranks.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.get_world_info()
        WorldInfo(world_rank=0, world_size=1, local_rank=0, local_world_size=1)
    """
    rank, size = _variable('RANK', 0), _variable('WORLD_SIZE', 1)
    local_rank, local_size = _variable('LOCAL_RANK', 0), _variable('LOCAL_WORLD_SIZE', 1)
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise ValueError(
            f'The environment has RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank}, '
            f'LOCAL_WORLD_SIZE={local_size}; expected 0 <= rank < size. Launch with torchrun, which sets all four.'
        )
    return WorldInfo(rank, size, local_rank, local_size)


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name, '')
    try:
        return int(text) if text else default
    except ValueError:
        raise ValueError(f'The environment variable {name} is {text!r}; expected a number.') from None


def get_world_rank() -> int:
    """The number of this process among all processes.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.get_world_rank()
        0
    """
    return get_world_info().world_rank


get_rank = get_world_rank


def get_world_size() -> int:
    """The number of processes.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.get_world_size()
        1
    """
    return get_world_info().world_size


def get_local_rank() -> int:
    """The number of this process among those of its machine.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.get_local_rank()
        0
    """
    return get_world_info().local_rank


def get_local_world_size() -> int:
    """The number of processes on this machine.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.get_local_world_size()
        1
    """
    return get_world_info().local_world_size


def get_worker_id(id: str | int | None = None) -> int:
    """The rank of a worker of the RPC group.

    Args:
        id: The name of the worker, or None for this process.  A number is returned as it is.

    Raises:
        RuntimeError: If RPC is not initialized, or there is no worker of this name.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.get_worker_id(1)
        1
    """
    if isinstance(id, int):
        return id
    require_rpc()
    return int(rpc.get_worker_info(id).id)


def barrier(worker_names: Iterable[str] | None = None) -> None:
    """Wait until all workers of the RPC group have called this function.

    For a process group, use ``torch.distributed.barrier``.

    Args:
        worker_names: The names of the workers that wait for each other, including this process; None means all.

    Raises:
        RuntimeError: If RPC is not initialized, or a worker did not call the function in time.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.barrier()
        Traceback (most recent call last):
            ...
        RuntimeError: RPC is not initialized. Decorate the main function with torchopt.distributed.auto_init_rpc().
    """
    require_rpc()
    api: Any = rpc.api  # its barrier logs errors instead of raising them
    api._all_gather(None, None if worker_names is None else set(worker_names))


def has_rpc() -> bool:
    """Whether this process can send and receive calls."""
    api: Any = getattr(rpc, 'api', None)  # missing if torch was built without RPC
    return rpc.is_available() and bool(api._is_current_rpc_agent_set())


def members() -> list[int]:
    """The ranks of all workers of the RPC group."""
    api: Any = rpc.api
    return sorted(info.id for info in api._get_current_rpc_agent().get_worker_infos())


def require_rpc() -> None:
    """Raise if this process cannot send or receive calls."""
    if not rpc.is_available():
        raise RuntimeError('This torch was built without RPC. Use the collectives instead, such as map_tasks.')
    if not has_rpc():
        raise RuntimeError(
            'RPC is not initialized. Decorate the main function with torchopt.distributed.auto_init_rpc().'
        )


def on_rank(*ranks: int) -> Callable[[Callable[_P, _T]], Callable[_P, _T | None]]:
    """Decorator: run the function on these ranks, and return None on all others.

    The rank is read when the function is decorated.

    Args:
        *ranks: World ranks.

    Example:
        >>> import torchopt
        >>> @torchopt.distributed.on_rank(0)
        ... def log():
        ...     return 'logged'
        >>> log()
        'logged'
    """
    return _where(get_world_rank() in ranks)


def not_on_rank(*ranks: int) -> Callable[[Callable[_P, _T]], Callable[_P, _T | None]]:
    """Decorator: return None on these ranks, and run the function on all others.

    Args:
        *ranks: World ranks.

    Example:
        >>> import torchopt
        >>> @torchopt.distributed.not_on_rank(0)
        ... def log():
        ...     return 'logged'
        >>> log()
    """
    return _where(get_world_rank() not in ranks)


def _where(here: bool) -> Callable[[Callable[_P, _T]], Callable[_P, _T | None]]:
    def decorate(func: Callable[_P, _T]) -> Callable[_P, _T | None]:
        @functools.wraps(func)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _T | None:
            return func(*args, **kwargs) if here else None

        return run

    return decorate


def rank_all(func: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorator without effect, to mark functions that run on all ranks.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.rank_all(len)([1, 2])
        2
    """
    return func


def rank_zero_only(func: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Decorator: run the function on rank 0, and return None on all others.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.rank_zero_only(len)([1, 2])
        2
    """
    return on_rank(0)(func)


def rank_non_zero_only(func: Callable[_P, _T]) -> Callable[_P, _T | None]:
    """Decorator: return None on rank 0, and run the function on all others.

    Example:
        >>> import torchopt
        >>> torchopt.distributed.rank_non_zero_only(len)([1, 2])
    """
    return not_on_rank(0)(func)
