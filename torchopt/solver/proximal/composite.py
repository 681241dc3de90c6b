# SPDX-License-Identifier: Apache-2.0
"""What proximal methods have in common: step sizes, differences of trees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchopt import tree
from torchopt.columns import as_number, batch_size, dot, has_array, lengths, to_column
from torchopt.dtypes import is_inexact
from torchopt.numerics import zero_count
from torchopt.scalars import larger, numbers, settled, where


def stepsize_at(stepsize: Any, count: Any) -> Any:
    """A step size, or what a schedule says for a step."""
    value = stepsize(count) if callable(stepsize) else stepsize
    return numbers(value)[0]


def count_and_error(params: Any) -> tuple[Tensor, Tensor]:
    """The number of steps and the error before the first step: zero and infinity."""
    like = next((x for x in tree.leaves(params) if isinstance(x, Tensor)), torch.zeros(()))
    dtype = torch.promote_types(like.dtype.to_real(), torch.float32)
    return zero_count(like.device), torch.full((), torch.inf, dtype=dtype, device=like.device)


def plus(x: Any, scalar: Any, y: Any) -> Any:
    """``x + scalar * y`` of trees."""
    if isinstance(x, Tensor):
        return x + _fit(scalar, x) * y
    return tree.map(lambda a, b: a + _fit(scalar, a) * b, x, y)


def minus(x: Any, y: Any) -> Any:
    """``x - y`` of trees."""
    return x - y if isinstance(x, Tensor) else tree.map(torch.sub, x, y)


class Measure:
    """Numbers that a solver reads off tensors and trees: floats where they can be read, else 0-d tensors."""

    def number(self, x: Any) -> Any:
        """The number of a 0-d tensor."""
        return numbers(x)[0]

    def norm(self, x: Any) -> Any:
        """The 2-norm of a tree."""
        return numbers(tree.wide_norm(x))[0]

    def square(self, x: Any) -> Any:
        """The squared 2-norm of a tree."""
        return numbers(tree.wide_norm(x, squared=True))[0]

    def inner(self, x: Any, y: Any) -> Any:
        """The inner product of two trees; of complex ones, as pairs of real numbers."""
        return numbers(tree.vdot(x, y).real)[0]

    def tensor(self, x: Any, like: Any) -> Any:
        """A number as the functions of users take it; ``like`` is a tree whose dtype it has."""
        return x


class BatchMeasure(Measure):
    """The same as columns, with a number for each sample of a batch."""

    def __init__(self, size: int) -> None:
        self.size = size

    @staticmethod
    def fitting(params: Any) -> Measure:
        """What measures a run from these parameters: columns if there is one batch, and nothing that records."""
        size = batch_size()
        return BatchMeasure(size) if size is not None and all(map(has_array, tree.leaves(params))) else Measure()

    def number(self, x: Any) -> Any:
        """The numbers of a 0-d tensor."""
        return to_column(x, self.size).astype(np.float64) if isinstance(x, Tensor) else x

    def _rows(self, x: Any) -> Any:
        """The leaves as one array with a row for each sample."""
        leaves = [to_column(leaf, self.size).reshape(self.size, -1) for leaf in tree.leaves(x)]
        return leaves[0] if len(leaves) == 1 else np.concatenate([np.empty((self.size, 0)), *leaves], 1)

    def norm(self, x: Any) -> Any:
        """The 2-norms of a tree."""
        return lengths(self._rows(x))

    def square(self, x: Any) -> Any:
        """The squared 2-norms of a tree."""
        rows = self._rows(x)
        return dot(rows, rows)

    def inner(self, x: Any, y: Any) -> Any:
        """The inner products of two trees."""
        return dot(self._rows(x), self._rows(y))

    def tensor(self, x: Any, like: Any) -> Any:
        """A column as the tensor of a sample."""
        return as_number(x, tree.leaves(like)[0].dtype) if isinstance(x, np.ndarray) else x


PLAIN = Measure()
"""The measures of a run by itself."""


def defined(error: Any, value: Any) -> Any:
    """The error, NaN where the objective, a number, is not finite."""
    return where(abs(value) < math.inf, error, math.nan)


def violation(
    step: Callable[[Any, Any, Any], Any], x: Any, gradient: Any, size: Any = 1.0, measure: Measure = PLAIN
) -> Any:
    """The length of a step over its size, which is at least so large that rounding does not hide the step.

    ``step(x, gradient, size)`` returns the next point; at a solution, ``x`` for every size.
    """
    length, slope = measure.norm(x), measure.norm(gradient)
    size = larger(size, where(slope > 0, length / where(slope > 0, slope, 1.0), 0.0))
    found = measure.norm(minus(step(x, gradient, size), x)) / size
    return where(found > 8.0 * _precision(x) * slope, found, 0.0)


def confirmed(
    error: Any,
    tol: Any,
    step: Callable[[Any, Any, Any], Any],
    x: Any,
    gradient: Any,
    size: Any,
    measure: Measure = PLAIN,
) -> Any:
    """The error of a step, unless that is within the tolerance only because rounding hides the step."""
    near = settled(error <= tol)
    if near is False:
        return error
    hidden = settled(near & (_precision(x) * measure.norm(x) > tol * size))
    if hidden is False:
        return error
    return where(hidden, larger(error, violation(step, x, gradient, size, measure)), error)


def measures_of(
    objective: Callable[..., Any], step: Callable[[Any, Any, Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Any], tuple[Any, Any, Any]]:
    """The measures of :func:`torchopt.solver.unbounded.recognizing_no_bound`."""

    def measures(params: Any) -> tuple[Any, Any, Any]:
        value, gradient, _ = objective(params, *args, **kwargs)
        return PLAIN.number(value), PLAIN.norm(params), violation(step, params, gradient)

    return measures


def _precision(x: Any) -> float:
    return max((torch.finfo(leaf.dtype).eps for leaf in tree.leaves(x) if is_inexact(leaf)), default=0.0)


def _fit(scalar: Any, x: Tensor) -> Any:
    if isinstance(scalar, np.ndarray):
        return as_number(scalar, x.dtype)
    return scalar.to(x.dtype) if isinstance(scalar, Tensor) else scalar
