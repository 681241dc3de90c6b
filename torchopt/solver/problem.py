# SPDX-License-Identifier: Apache-2.0
"""The objective of a descent as a function of vectors: of tensors, of arrays, or of a batch of vectors in one array."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchopt import tree
from torchopt.columns import (
    SMALLEST_SQUARE,
    as_number,
    batch_size,
    beside,
    dot,
    from_column,
    has_array,
    lengths,
    to_column,
)
from torchopt.dtypes import is_inexact
from torchopt.levels import is_readable, runs_directly, without_wrappers
from torchopt.norms import norm_in_double
from torchopt.numerics import as_scalar_like
from torchopt.scalars import is_symbolic, larger, numbers, settled, where
from torchopt.solver.objective import Objective, Vectors
from torchopt.solver.samples import SomeSamples
from torchopt.solver.status import Status


class Problem:
    """The objective of a run as a function of a vector."""

    is_boxed: Any = False
    """Whether bounds tell the scale of all parameters."""

    first_status: Any = int(Status.RUNNING)
    """The status at the start."""

    unit: Any = None
    """A power of two by which values and gradients are divided, so that their squares are in range; None for one."""

    def __init__(self, objective: Objective, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.vectors = Vectors(params)
        self.objective, self.args, self.kwargs = objective, args, kwargs

    def __call__(self, x: Any) -> tuple[Any, Any, Any]:
        """The value, the gradient and the auxiliary output at a vector, in the unit of the run."""
        value, gradient, aux = self.evaluated(x)
        return self.in_unit(value), self.in_unit(gradient), aux

    def evaluated(self, x: Any) -> tuple[Any, Any, Any]:
        """The value, the gradient and the auxiliary output of the objective itself."""
        return self._with_data(x, self.args, self.kwargs)

    def _with_data(self, x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        value, gradient, aux = self.objective(self.vectors.unpack(x), *args, **kwargs)
        return value, self.vectors.pack(gradient), aux

    def in_unit(self, x: Any) -> Any:
        """A value or a gradient, divided by the unit."""
        return x if self.unit is None else x / self.unit

    def original(self, x: Any) -> Any:
        """A value or a gradient of the objective itself."""
        return x if self.unit is None else self.unit * x

    def choose_unit(self, value: Any, gradient: Any) -> None:
        """Choose the unit of a run from value and gradient at its start.

        It is a power of two below the largest slope, if that is extreme and the value does not hide its changes.  The
        largest slope becomes about 1000, for methods whose step size is at most 1 must not be bound by that.
        """
        value, slope = self.sizes(value, gradient)
        info = torch.finfo(self.vectors.dtype)
        limit = info.max**0.4
        small = (slope < 1.0 / limit) & (value < 1.0 / limit)
        extreme = settled((slope > 0.0) & (slope < math.inf) & (small | (slope > limit)))
        if extreme is False:
            return
        of: Any = torch if isinstance(slope, Tensor) else np
        power = of.exp2(of.floor(of.log2(where(extreme, slope, 1.0))) - 9.0)
        unit = where(extreme, larger(power, info.tiny), 1.0)
        self.unit = unit if isinstance(unit, (Tensor, np.ndarray)) else float(unit)

    def sizes(self, value: Any, gradient: Any) -> Any:
        """The size of a value, and of the largest slope, as numbers."""
        largest = torch.linalg.vector_norm(gradient.detach(), math.inf) if len(gradient) else 0.0
        return numbers(torch.as_tensor(value).detach().abs(), largest)

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Where a run computes with vectors."""
        return contextlib.nullcontext()

    def running(self, work: Any) -> Any:
        """Whether the run has not ended; one that is alone makes no step afterwards."""
        return True

    def tensor(self, x: Any) -> Tensor:
        """A vector of the run as a tensor."""
        return x

    def number(self, x: Any) -> Any:
        """A number of the run as users see it."""
        return x

    def move(self, x: Tensor, stepsize: Any, direction: Tensor) -> Tensor:
        """The point at a step size along a direction."""
        if isinstance(stepsize, float):
            return torch.add(x, direction, alpha=stepsize)
        return x + as_scalar_like(stepsize, direction) * direction

    def steepest(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The direction of steepest descent."""
        return -gradient

    def slope(self, gradient: Tensor, direction: Tensor) -> Any:
        """The slope of the objective along a direction."""
        return gradient @ direction

    def norm(self, x: Tensor) -> Any:
        """The Euclidean norm."""
        return norm_in_double(x)

    def error(self, x: Any, gradient: Any) -> Any:
        """By how much the optimality condition of the objective itself is violated."""
        return self.original(self.norm(gradient))

    def start(self, params: Any) -> Tensor:
        """The vector at which a run starts."""
        return self.vectors.pack(params, 'init_params')

    def begin(self, params: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """The vector of the start, and value, gradient and auxiliary output there.

        Raises:
            ValueError: If value or gradient is NaN or infinite, where they can be read.
        """
        x = self.start(params)
        value, gradient, aux = self(x)
        (value,) = numbers(value)
        slopes = self.tensor(gradient)
        if is_readable(value) and is_readable(slopes):  # within torch.func.grad too
            known = value if isinstance(value, float) else without_wrappers(value.detach()).item()
            if not (math.isfinite(known) and bool(torch.isfinite(without_wrappers(slopes.detach())).all())):
                raise ValueError(
                    f'The objective is {known} at init_params, or its gradient is not finite there. Start where both '
                    f'are finite.'
                )
        return x, value, gradient, aux


class HostProblem(Problem):
    """The objective of a run on arrays: on short vectors, operations of NumPy take a third of the time of torch's."""

    def __init__(self, objective: Objective, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(objective, params, args, kwargs)
        self._reports = np.geterr()

    @staticmethod
    def fits(params: Any) -> bool:
        """Whether a run from these parameters may work on arrays: nothing batches, differentiates or compiles it."""
        return _leaves_no_graph() and runs_directly() and all(map(_has_array, tree.leaves(params)))

    def evaluated(self, x: Any) -> tuple[Any, Any, Any]:
        """The value, the gradient and the auxiliary output of the objective itself."""
        with np.errstate(**self._reports):  # those of the caller, for the user's function
            value, gradient, aux = super().evaluated(torch.from_numpy(x))
        return value.item(), np.ascontiguousarray(gradient.numpy(force=True)), aux

    def sizes(self, value: float, gradient: Any) -> Any:
        """The size of a value, and of the largest slope."""
        return abs(value), float(np.abs(gradient).max(initial=0.0))

    def slope(self, gradient: Any, direction: Any) -> float:
        """The slope of the objective along a direction."""
        return float(gradient.dot(direction))

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Overflow gives infinity without a warning, as in torch."""
        return np.errstate(all='ignore')

    def tensor(self, x: Any) -> Tensor:
        """A vector of the run as a tensor."""
        return torch.from_numpy(x)

    def move(self, x: Any, stepsize: Any, direction: Any) -> Any:
        """The point at a step size along a direction."""
        return x + stepsize * direction

    def norm(self, x: Any) -> Any:
        """The Euclidean norm."""
        x = x.astype(np.float64, copy=False)
        square = float(x.dot(x))
        return math.sqrt(square) if SMALLEST_SQUARE < square < math.inf else float(lengths(x[None])[0])

    def start(self, params: Any) -> Any:
        """The vector at which a run starts."""
        return super().start(params).numpy(force=True)


class BatchProblem(Problem):
    """The objective of a batch of runs under ``torch.vmap``, whose vectors and numbers are columns.

    Vectors are the rows of an array; see :mod:`torchopt.columns`.  Runs that do not move, since they have ended or wait
    for the line search of others, are not evaluated again.
    """

    def __init__(
        self, objective: Objective, params: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tol: float
    ) -> None:
        super().__init__(objective, params, args, kwargs)
        self.size, self.tol = batch_size() or 0, tol
        self._reports = np.geterr()
        self._last: tuple[Any, Any, Any] | None = None  # vectors, values, gradients
        self._some = SomeSamples(self._with_data, args, kwargs, self.size)

    @staticmethod
    def fits(params: Any) -> bool:
        """Whether runs from these parameters may work on columns: one batch, and nothing that records."""
        return batch_size() is not None and all(map(_has_array, tree.leaves(params)))

    def evaluated(self, x: Any) -> tuple[Any, Any, Any]:
        """The values, the gradients and the auxiliary output of the objective itself at the rows of an array."""
        with np.errstate(**self._reports):
            if self._last is not None:
                moved = np.flatnonzero((x != self._last[0]).any(1))
                if not len(moved):
                    return *self._last[1:], None
                if (found := self._some(x, moved)) is not None:
                    value, gradient = (old.copy() for old in self._last[1:])
                    value[moved], gradient[moved] = found
                    self._last = x, value, gradient
                    return value, gradient, None
            value, gradient, aux = super().evaluated(from_column(x))
        value = to_column(value, self.size).astype(np.float64)
        gradient = np.ascontiguousarray(to_column(gradient, self.size))
        if not self.objective.has_aux:
            self._last = x, value, gradient
        return value, gradient, aux

    def in_unit(self, x: Any) -> Any:
        """Values or gradients, divided by the unit of each run."""
        return x if self.unit is None else x / beside(self.unit, x)

    def original(self, x: Any) -> Any:
        """Values or gradients of the objective itself."""
        return x if self.unit is None else beside(self.unit, x) * x

    def sizes(self, value: Any, gradient: Any) -> Any:
        """The sizes of values, and of the largest slopes."""
        return np.abs(value), np.abs(gradient).max(1, initial=0.0).astype(np.float64)

    def slope(self, gradient: Any, direction: Any) -> Any:
        """The slopes of the objective along directions."""
        return dot(gradient, direction)

    def arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Overflow gives infinity without a warning, as in torch."""
        return np.errstate(all='ignore')

    def running(self, work: Any) -> Any:
        """Which runs have not ended."""
        return (work.error > self.tol) & (work.status == int(Status.RUNNING))

    def tensor(self, x: Any) -> Tensor:
        """The vector of a run as a tensor."""
        return from_column(x)

    def number(self, x: Any) -> Any:
        """A number of a run as users see it."""
        return as_number(x, self.vectors.dtype)

    def move(self, x: Any, stepsize: Any, direction: Any) -> Any:
        """The points at step sizes along directions."""
        return x + beside(stepsize, x) * direction

    def norm(self, x: Any) -> Any:
        """The Euclidean norms."""
        return lengths(x)

    def start(self, params: Any) -> Any:
        """The vectors at which the runs start."""
        return to_column(super().start(params), self.size)

    def begin(self, params: Any) -> tuple[Any, Any, Any, Any]:
        """The vectors of the start, and values, gradients and auxiliary output there, which may not be finite."""
        x = self.start(params)
        return x, *self(x)


def _has_array(x: Any) -> bool:
    """Whether a leaf of the parameters has no part in a run, or its real numbers are an array too."""
    return not is_inexact(x) or has_array(x.real)


def _leaves_no_graph() -> bool:
    return not torch.is_grad_enabled() and forward_ad._current_level < 0


def may_write(x: Any) -> bool:
    """Whether a run on such a vector may write in place: nothing batches or differentiates it."""
    return not isinstance(x, Tensor) or (not is_symbolic(x) and _leaves_no_graph())
