# SPDX-License-Identifier: Apache-2.0
"""Divide the arguments of a call among workers, and combine their results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.distributed.ranks import get_worker_id, has_rpc, members


class Part(tuple[int, Any, Any]):
    """``(worker, args, kwargs)``, the part of a worker; ``weight`` is its number of items."""

    weight: int

    def __new__(cls, worker: int, args: Any, kwargs: Any, weight: int = 1) -> Part:
        """Make a part."""
        self = super().__new__(cls, (worker, args, kwargs))
        self.weight = weight
        return self


class Results(list[Any]):
    """The results of the parts in order; ``weights`` are the numbers of items of the parts."""

    def __init__(self, results: Iterable[Any] = (), weights: Sequence[int] | None = None) -> None:
        super().__init__(results)
        self.weights = [1] * len(self) if weights is None else list(weights)


def share_of(count: int, parts: int) -> list[range]:
    """Divide ``count`` items into contiguous parts whose sizes differ by one at most."""
    small, rest = divmod(count, parts)
    ends = [0]
    for i in range(parts):
        ends.append(ends[-1] + small + (i < rest))
    return [range(a, b) for a, b in itertools.pairwise(ends)]


class TensorDimensionPartitioner:
    """Divide tensors along a dimension, for :func:`parallelize` and :func:`remote_async_call`.

    Every tensor in the arguments, also in trees, is divided; all must have the same size along the dimension.  0-d
    tensors and everything else (modules, numbers) are sent to every worker whole.

    Args:
        dim: The dimension; negative numbers count from the end.
        exclusive: Whether every item is a separate call; the items are assigned to the workers in turn.  By default,
            every worker gets one contiguous part, and the sizes of the parts differ by one at most.
        keepdim: Whether to keep the dimension; may be False only with ``exclusive``, where its size is one.
        workers: The ranks or names of the workers to use, by default all.

    Raises:
        ValueError: If ``keepdim`` is False without ``exclusive``, or ``workers`` is empty.

    Example:
        >>> import torch, torchopt
        >>> split = torchopt.distributed.TensorDimensionPartitioner(0, keepdim=True, workers=[0, 1, 2])
        >>> [(worker, len(args[0])) for worker, args, kwargs in split(torch.arange(8))]
        [(0, 3), (1, 3), (2, 2)]
    """

    def __init__(
        self, dim: int, *, exclusive: bool = False, keepdim: bool = False, workers: Sequence[int | str] | None = None
    ) -> None:
        if not keepdim and not exclusive:
            raise ValueError(
                'keepdim=False should be used with exclusive=True. A part with several items needs the dimension.'
            )
        if workers is not None and not list(workers):
            raise ValueError('workers is empty; expected the ranks or names of at least one, or None for all.')
        self.dim, self.exclusive, self.keepdim = dim, exclusive, keepdim
        self.workers = None if workers is None else list(workers)

    def __repr__(self) -> str:
        """The call that creates the partitioner."""
        return (
            f'TensorDimensionPartitioner({self.dim}, exclusive={self.exclusive}, keepdim={self.keepdim}, '
            f'workers={self.workers})'
        )

    def __call__(self, *args: Any, **kwargs: Any) -> list[tuple[int, Any, Any]]:
        """Divide the arguments of a call.

        Returns:
            For each part ``(worker, args, kwargs)``; without tensors, one part for this process itself.

        Raises:
            ValueError: If the tensors differ in size, or have no items.
        """
        leaves, spec = tree.flatten((args, kwargs))
        paths = [path for path, _ in tree.flatten_with_path((args, kwargs))]
        divided = [isinstance(x, Tensor) and x.dim() > 0 for x in leaves]
        sizes = {path: self._size(x, path) for x, path, yes in zip(leaves, paths, divided) if yes}
        if not sizes:
            return [Part(get_worker_id() if has_rpc() else 0, args, kwargs)]
        (first, count), *others = sizes.items()
        for path, size in others:
            if size != count:
                raise ValueError(
                    f'Batch size mismatch on dim={self.dim}: {_argument(first)} has size {count} there and '
                    f'{_argument(path)} has size {size}. Every tensor among the arguments is divided; to send a tensor '
                    f'whole, put it into a module, or write your own partitioner.'
                )
        if count == 0:
            raise ValueError(f'{_argument(first)} has size 0 on dim={self.dim}, so there is nothing to divide.')
        named = self.workers or (members() if has_rpc() else [0])
        workers = [get_worker_id(w) for w in named]
        if self.exclusive:
            parts = [(workers[i % len(workers)], range(i, i + 1)) for i in range(count)]
        else:
            parts = list(zip(workers, share_of(count, min(count, len(workers)))))
        return [self._part(worker, items, leaves, divided, spec) for worker, items in parts]

    def _part(self, worker: int, items: range, leaves: list[Any], divided: list[bool], spec: Any) -> Part:
        args, kwargs = tree.unflatten(spec, [self._items(x, items) if yes else x for x, yes in zip(leaves, divided)])
        return Part(worker, args, kwargs, len(items))

    def _items(self, x: Tensor, items: range) -> Tensor:
        if self.exclusive and not self.keepdim:
            return x.select(self.dim, items.start)
        return x.narrow(self.dim, items.start, len(items))

    def _size(self, x: Tensor, path: str) -> int:
        try:
            return x.shape[self.dim]
        except IndexError:
            raise ValueError(
                f'{_argument(path)} has shape {tuple(x.shape)}, which has no dim={self.dim} to divide it along.'
            ) from None


def _argument(path: str) -> str:
    """``[0][1]['x']`` as an argument: ``args[1]['x']``."""
    return f'args{path[3:]}' if path.startswith('[0]') else f'kwargs{path[3:]}'


def dim_partitioner(
    dim: int = 0, *, exclusive: bool = False, keepdim: bool = True, workers: Sequence[int | str] | None = None
) -> TensorDimensionPartitioner:
    """A partitioner of tensors along a dimension; the arguments are those of :class:`TensorDimensionPartitioner`.

    Example:
        >>> import torch, torchopt
        >>> split = torchopt.distributed.dim_partitioner(1, workers=[0, 1])
        >>> [args[0].shape for _, args, _ in split(torch.zeros(2, 5))]
        [torch.Size([2, 3]), torch.Size([2, 2])]
    """
    return TensorDimensionPartitioner(dim, exclusive=exclusive, keepdim=keepdim, workers=workers)


def batch_partitioner(*args: Any, **kwargs: Any) -> list[tuple[int, Any, Any]]:
    """Divide tensors along their first dimension, one contiguous part for each worker.

    Example:
        >>> import torch, torchopt
        >>> torchopt.distributed.batch_partitioner(torch.zeros(3), scale=2)
        [(0, (tensor([0., 0., 0.]),), {'scale': 2})]
    """
    return _BATCH(*args, **kwargs)


def exclusive_batch_partitioner(*args: Any, **kwargs: Any) -> list[tuple[int, Any, Any]]:
    """Divide tensors along their first dimension into single items, which are assigned to the workers in turn.

    Example:
        >>> import torch, torchopt
        >>> len(torchopt.distributed.exclusive_batch_partitioner(torch.zeros(3)))
        3
    """
    return _EXCLUSIVE_BATCH(*args, **kwargs)


_BATCH = dim_partitioner(0)
_EXCLUSIVE_BATCH = dim_partitioner(0, exclusive=True)


def mean_reducer(results: Iterable[Any]) -> Any:
    r"""The mean of the results of the workers, :math:`\sum_i n_i x_i / \sum_i n_i`.

    The weights :math:`n_i` are the numbers of items of the parts, as given by the partitioner, so that means over the
    items of each part give the mean over all items.  For a plain list, all weights are 1.

    Args:
        results: Tensors of the same shape, or trees of such.

    Raises:
        ValueError: If there are no results.

    Example:
        >>> import torch, torchopt
        >>> torchopt.distributed.mean_reducer([torch.tensor(1.0), torch.tensor(3.0)])
        tensor(2.)
    """
    results = _listed(results)
    weights = results.weights if isinstance(results, Results) else [1] * len(results)
    total = sum(weights)
    return _reduce(results, [w / total for w in weights])


def sum_reducer(results: Iterable[Any]) -> Any:
    """The sum of the results of the workers.

    Args:
        results: Tensors of the same shape, or trees of such.

    Raises:
        ValueError: If there are no results.

    Example:
        >>> import torch, torchopt
        >>> torchopt.distributed.sum_reducer([torch.tensor(1.0), torch.tensor(3.0)])
        tensor(4.)
    """
    return _reduce(_listed(results), None)


def _listed(results: Iterable[Any]) -> list[Any]:
    results = results if isinstance(results, list) else list(results)
    if not results:
        raise ValueError('There are no results to reduce: no worker got a part.')
    return results


def _reduce(results: list[Any], weights: list[float] | None) -> Any:
    def combine(*leaves: Any) -> Tensor:
        stacked = torch.stack([torch.as_tensor(x) for x in leaves])
        if weights is None:
            return stacked.sum(0)
        if not (stacked.is_floating_point() or stacked.is_complex()):
            stacked = stacked.to(torch.get_default_dtype())
        return torch.tensordot(torch.tensor(weights, dtype=stacked.dtype, device=stacked.device), stacked, 1)

    return tree.map(combine, *results)


Partitioner = Callable[..., Sequence[tuple[int | str, Any, Any]]]
Reducer = Callable[[list[Any]], Any]
