# SPDX-License-Identifier: Apache-2.0
"""Code shared by the transformations with a line search: the problem, and the numbers in their states.

``update`` requires the parameters and the extra arguments ``value`` and ``grad``, the objective and its gradient at the
parameters, and ``value_fn``, the objective.  Other extra arguments are passed to ``value_fn``.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import elementwise, linesearch, tree
from torchopt.dtypes import is_inexact, real_dtype
from torchopt.graphs import is_plain
from torchopt.kinds import kind_of
from torchopt.levels import has_tangent, is_tracing
from torchopt.numerics import as_scalar_like
from torchopt.scalars import where
from torchopt.tree.ops import detached


class SearchProblem(NamedTuple):
    """The objective, the starting point of the search, and its direction."""

    updates: Any
    params: Any
    value: Any
    grad: Any
    fun: Callable[[Any], Any]
    plain: bool

    @classmethod
    def of(
        cls, updates: Any, params: Any, value: Any, grad: Any, value_fn: Any, extra: dict[str, Any]
    ) -> SearchProblem:
        """The problem of an update, from its arguments.

        Raises:
            TypeError: If an argument is missing, or ``value_fn`` does not accept it.
            ValueError: If trees do not match.
        """
        given = {'value': value, 'grad': grad, 'value_fn': value_fn}
        missing = [name for name, x in given.items() if x is None]
        if missing:
            raise TypeError(
                f'The extra argument {missing[0]!r} is missing. Call `update(updates, state, params, value=loss, '
                f'grad=grads, value_fn=loss_fn)` with the objective and its gradient at the parameters, and the '
                f'objective as a function. Classes such as torchopt.Optimizer do not pass them: for those take '
                f'linesearch=None, or use a solver, such as torchopt.LBFGS.'
            )
        if not callable(value_fn):
            raise TypeError(f'value_fn is {kind_of(value_fn)}; expected the objective, a function of params.')
        elementwise.check_updates(updates, params)
        tree.check_matching(grad, params, name='grad', like='params')
        _check_arguments(value_fn, extra)
        weights, found = ([x for x in tree.leaves(part) if isinstance(x, Tensor)] for part in (params, (updates, grad)))
        plain = is_plain(weights, found) and not any(map(has_tangent, [*weights, *found]))
        if plain:
            # Updates and gradients have no graph.
            params = detached(params) if any(p.requires_grad for p in weights) else params
            value = value.detach() if isinstance(value, Tensor) else value
        return cls(updates, params, value, grad, (lambda p: value_fn(p, **extra)) if extra else value_fn, plain)

    def recording(self) -> contextlib.AbstractContextManager[Any]:
        """Record no graph if none is needed."""
        return torch.no_grad() if self.plain else contextlib.nullcontext()

    def moved(self, rate: Any) -> Any:
        """The parameters after a step."""
        return linesearch.move_along(self.params, rate, self.updates)

    def value_at(self, params: Any) -> Any:
        """The objective."""
        value = self.fun(params)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f'a tensor of shape {tuple(value.shape)}' if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f'value_fn returned {shape}; expected a tensor of one element. Return its mean or its sum.'
            )
        return value

    def value_and_gradient(self, params: Any) -> tuple[Any, Any]:
        """The objective and its gradient."""
        return linesearch.value_and_gradient(self.fun, params, differentiable=not self.plain)

    def start_grad(self) -> Any:
        """The gradient at the starting point; zero for leaves whose gradient was not given."""
        return tree.map(lambda p, g: torch.zeros_like(p) if g is None else g, self.params, self.grad)

    def scaled(self, rate: Any) -> Any:
        """The updates times the step size; zero if the step size is zero, also for infinite updates."""

        def scale(u: Tensor) -> Tensor:
            return torch.zeros_like(u) if taken is False else where(taken, as_scalar_like(rate, u) * u, 0.0)

        taken = rate != 0.0
        return tree.map(scale, self.updates)


def _check_arguments(value_fn: Callable[..., Any], extra: dict[str, Any]) -> None:
    """Require that the objective accepts all extra arguments."""
    if not extra or is_tracing():
        return
    parameters = inspect.signature(value_fn).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = sorted(extra.keys() - parameters.keys())
    if unknown:
        raise TypeError(
            f'Unexpected keyword arguments: value_fn does not accept the extra arguments {unknown} of update; it has '
            f'{list(parameters)}. Leave them out, or add them to value_fn.'
        )


def number_dtype(params: Any) -> torch.dtype:
    """The real dtype of the first leaf, the dtype of the numbers in the state."""
    found = [x for x in tree.leaves(params) if is_inexact(x)]
    return real_dtype(found[0].dtype) if found else torch.get_default_dtype()


def stored(x: Any, dtype: torch.dtype) -> Tensor:
    """A number for the state, a tensor on the CPU if the value is known on the host."""
    return x.to(dtype) if isinstance(x, Tensor) else torch.scalar_tensor(x, dtype=dtype, device='cpu')


def counted(steps: Any) -> Tensor:
    """A number of steps for the state."""
    return steps if isinstance(steps, Tensor) else torch.scalar_tensor(steps, dtype=torch.int64, device='cpu')


def report(name: str, problem: SearchProblem, slope: Any, stepsize: Any, error: Any) -> None:
    """Print why a search failed."""
    value, slope, stepsize, error = (float(x) for x in (problem.value, slope, stepsize, error))
    print(f'{name}: no step size meets the conditions. At the parameters the value is {value:g}, the slope {slope:g}.')
    if not slope < 0.0:
        print('  The updates are not a descent direction: the slope must be negative. Check the sign of their scale.')
    if error == math.inf:
        print('  The objective is NaN or infinite at all trial steps.')
    else:
        print(f'  Took the step size {stepsize:g}; the last trial step violates the decrease condition by {error:g}.')
