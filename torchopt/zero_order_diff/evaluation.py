# SPDX-License-Identifier: Apache-2.0
"""Evaluate a function at many points: vectorized if possible, otherwise in a loop or in other processes.

The function may use automatic differentiation inside; its result is detached from any graph, unless that is wanted.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor

from torchopt import tree
from torchopt.kinds import kind_of

logger = logging.getLogger(__name__)

Points = dict[int, Tensor]
"""Maps the index of a tensor to its replacements in all samples, a tensor of shape ``(count, *shape)``."""


class BoundObjective:
    """A function and its arguments; ``tensors`` are those of the arguments, each once, and can be replaced."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.fn = fn
        self._given = tree.Selection((args, kwargs), lambda x: isinstance(x, Tensor))
        by_id = {id(x): x for x in self._given.selected}
        self.tensors: tuple[Tensor, ...] = tuple(by_id.values())
        index = {key: i for i, key in enumerate(by_id)}
        self._indices = [index[id(x)] for x in self._given.selected]
        # The autocast settings of the caller.
        kinds = {'cpu', *(x.device.type for x in self.tensors)}
        self._autocast = [(k, torch.get_autocast_dtype(k)) for k in sorted(kinds) if torch.is_autocast_enabled(k)]

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with new tensors in place of the original ones."""
        args, kwargs = self._given.replace(tensors[i] for i in self._indices)
        return args, kwargs

    def __call__(self, tensors: Sequence[Any], *, recorded: bool = False) -> Tensor:
        """The result of the function, a 0-d tensor; without its graph unless ``recorded``."""
        args, kwargs = self.arguments(tensors)
        with contextlib.ExitStack() as stack:
            # The function must not depend on the grad mode or the autocast settings of the backward pass.
            stack.enter_context(torch.enable_grad())
            for kind, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            value = scalar(self.fn(*args, **kwargs))
            return value if recorded else value.detach()

    def path(self, index: int) -> str:
        """The path of a tensor in the arguments, for error messages."""
        place = self._given.positions[self._indices.index(index)]
        args, kwargs = self.arguments(self.tensors)
        paths = [f'args{path}' for path, _ in tree.flatten_with_path(args)]
        paths += [f'kwargs{path}' for path, _ in tree.flatten_with_path(kwargs)]
        return paths[place]


def scalar(output: Any) -> Tensor:
    """Require that the result of an objective is a real 0-d tensor."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f'`output` must be a tensor. The function returned {kind_of(output)}; return a 0-d tensor, '
            f'for example torch.tensor(float(value)).'
        )
    if output.dim() != 0:
        raise RuntimeError(
            f'`output` must be a scalar tensor. The function returned one of shape {tuple(output.shape)}; return a '
            f'0-d tensor, for example its mean.'
        )
    if not output.is_floating_point():
        raise TypeError(
            f'`output` must be a tensor of a real floating dtype. The function returned {output.dtype}; convert it, '
            f'for example with .float() or .abs().'
        )
    return output


class Evaluator:
    """Evaluates a function at many points.

    Args:
        vectorize: Whether to use ``torch.func.vmap``; None tries it, and uses a loop after the first failure.
        executor: An executor that evaluates the samples.
        portable: For processes, a picklable function, and whether the undecorated function is its ``__wrapped__``.
    """

    def __init__(
        self, vectorize: bool | None, executor: Executor | None, portable: Callable[[], tuple[Any, bool]]
    ) -> None:
        self._vectorize = vectorize
        self._executor = executor
        self._portable = portable

    def at(self, objective: BoundObjective, tensors: Sequence[Tensor]) -> Tensor:
        """The value at one point; the function must not change the tensors."""
        with _unchanged(objective, tensors):
            return objective([x.detach() for x in tensors]).clone()

    def around(
        self,
        objective: BoundObjective,
        tensors: Sequence[Tensor],
        points: list[Points],
        count: int,
        advance: Callable[[int], None] | None = None,
    ) -> Tensor:
        """The values at ``count`` samples of each of several points, a tensor of shape ``(count, len(points))``.

        ``advance`` is called with the number of evaluations that are done.
        """
        tensors = [x.detach() for x in tensors]
        with _unchanged(objective, tensors):
            if self._executor is not None:
                return self._submit(self._executor, objective, tensors, points, count, advance)
            return self._here(objective, objective.fn, tensors, points, count, advance)

    def recorded(
        self, objective: BoundObjective, tensors: Sequence[Tensor], points: list[Points], count: int
    ) -> Tensor:
        """The same values with a graph, computed in this process."""
        with _unchanged(objective, tensors):
            return self._here(functools.partial(objective, recorded=True), objective.fn, list(tensors), points, count)

    def _here(
        self,
        objective: Callable[[Sequence[Any]], Tensor],
        fn: Any,
        tensors: list[Tensor],
        points: list[Points],
        count: int,
        advance: Callable[[int], None] | None = None,
    ) -> Tensor:
        if self._vectorize is not False:
            try:
                found = torch.stack([_vmap(objective, tensors, p, count) for p in points], 1)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                if self._vectorize:
                    raise
                logger.info('%r cannot be vectorized; it is evaluated in a loop: %s', fn, error)
                self._vectorize = False
            else:
                if advance is not None:
                    advance(found.numel())
                return found
        values = _each((objective(_row(tensors, p, i)) for i in range(count) for p in points), advance)
        return torch.stack([v.to(values[0]) for v in values]).reshape(count, len(points))

    def _submit(
        self,
        executor: Executor,
        objective: BoundObjective,
        tensors: list[Tensor],
        points: list[Points],
        count: int,
        advance: Callable[[int], None] | None,
    ) -> Tensor:
        rows = [_row(tensors, p, i) for i in range(count) for p in points]
        if isinstance(executor, ProcessPoolExecutor):
            # Send bytes, since torch would use a file descriptor per tensor.
            fn = self._portable()
            payloads = [pickle.dumps((fn, *objective.arguments(row))) for row in rows]
            outputs = _each((scalar(pickle.loads(x)) for x in executor.map(_remote, payloads)), advance)
        else:
            outputs = _each(executor.map(objective, rows), advance)
        return torch.stack([v.to(outputs[0]) for v in outputs]).reshape(count, len(points))


def _each(values: Iterable[Tensor], advance: Callable[[int], None] | None) -> list[Tensor]:
    """The values as a list; ``advance`` is called with the number of each."""
    found = []
    for value in values:
        found.append(value)
        if advance is not None:
            advance(len(found))
    return found


def _vmap(objective: Callable[[Sequence[Any]], Tensor], tensors: list[Tensor], points: Points, count: int) -> Tensor:
    batched = [points.get(i, x) for i, x in enumerate(tensors)]
    in_dims = tuple(0 if i in points else None for i in range(len(tensors)))
    # Random numbers of the function, such as dropout, differ between samples, as in a loop.
    mapped: Tensor = torch.func.vmap(lambda *xs: objective(xs), in_dims=in_dims, randomness='different')(*batched)
    return mapped


def _row(tensors: list[Tensor], points: Points, i: int) -> list[Tensor]:
    return [points[j][i] if j in points else x for j, x in enumerate(tensors)]


def _remote(payload: bytes) -> bytes:
    """The evaluation of one sample in another process."""
    (fn, wrapped), args, kwargs = pickle.loads(payload)
    output = (fn.__wrapped__ if wrapped else fn)(*args, **kwargs)
    return pickle.dumps(output.detach().cpu() if isinstance(output, Tensor) else output)


@contextlib.contextmanager
def _unchanged(objective: BoundObjective, tensors: Sequence[Tensor]) -> Iterator[None]:
    """Raise if the function writes to its input."""
    before = [None if x.is_inference() else x._version for x in tensors]
    yield
    for i, (x, version) in enumerate(zip(tensors, before)):
        if version is not None and x._version != version:
            raise RuntimeError(
                f'The function changed its input {objective.path(i)} in place, so each sample would use the result of '
                f'the previous one. Let it work on a copy: x = x.clone().'
            )
