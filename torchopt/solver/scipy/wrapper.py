# SPDX-License-Identifier: Apache-2.0
"""What the wrappers of SciPy share: vectors of NumPy for trees of tensors, and implicit derivatives."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.dtypes import widened
from torchopt.levels import beneath, eager, without_wrappers
from torchopt.solver import adjoint
from torchopt.solver.base import OptStep, Solver
from torchopt.solver.bounds import bounds_like
from torchopt.solver.objective import Vectors
from torchopt.solver.run import check_start, names_the_start, params_of


def load_optimize() -> Any:
    """The module ``scipy.optimize``.

    Raises:
        ImportError: If SciPy is not installed.
    """
    try:
        import scipy.optimize  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise ImportError('This solver needs SciPy: `pip install "torchopt[scipy]"`.') from None
    return scipy.optimize


def as_array(x: Tensor, dtype: Any) -> Any:
    """A tensor as an array of its own.

    Raises:
        NotImplementedError: If the tensor is a batch of ``torch.vmap``.
    """
    x = without_wrappers(
        x,
        unless_batch='SciPy solves one problem at a time, and cannot be mapped by torch.vmap. Loop over the problems, '
        'or use a solver of torchopt such as LBFGS, LBFGSB, LevenbergMarquardt or Broyden.',
    )
    with beneath(x):
        return np.array(widened(x.detach().cpu()).numpy(), dtype=dtype)


class Bridge:
    """Trees of tensors, like the parameters, as arrays of a dtype, which is that of the tensors if None."""

    def __init__(self, params: Any, dtype: Any) -> None:
        self.vectors, self.dtype = Vectors(params), dtype
        self.device = self.vectors.likes[0].device if self.vectors.likes else None

    def array(self, params: Any, name: str = 'the gradient') -> Any:
        """The array of a tree."""
        return as_array(self.vectors.pack(params, name), self.dtype)

    def vector(self, x: Any) -> Tensor:
        """An array as a vector."""
        return torch.as_tensor(np.asarray(x)).to(dtype=self.vectors.dtype, device=self.device, copy=True)

    def tree(self, x: Any) -> Any:
        """The tree of an array."""
        return self.vectors.unpack(self.vector(x))


@dataclasses.dataclass(eq=False)
class ScipyWrapper(Solver):
    """A solver of SciPy.

    Attributes:
        method: The name of SciPy's method; SciPy's choice if None.
        dtype: The dtype of the arrays that SciPy sees; that of the parameters if None.  Most of its
            methods need float64.
        jit: Accepted for code written for JAXopt; nothing is compiled.
        implicit_diff_solve: The linear solver for derivatives, ``solve(matvec, b)``; if None, the default of
            :func:`torchopt.implicit_diff.custom_root`.
        has_aux: Whether the function returns a pair, its value and auxiliary output, which is dropped.
    """

    method: str | None = None
    dtype: Any = np.float64
    jit: bool = True
    implicit_diff_solve: Callable[..., Any] | None = None
    has_aux: bool = False

    @abc.abstractmethod
    def _solve(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        """Run SciPy's solver."""

    @eager
    def run(self, init_params: Any, *args: Any, **kwargs: Any) -> OptStep:
        """Solve the problem.

        Args:
            init_params: Where to start, a tree of tensors of floating dtypes, or the :class:`OptStep` of another run.
            *args: Data of the problem, passed on to its function.
            **kwargs: Data of the problem, by name.

        Returns:
            The parameters, which are differentiable in the data and in tensors that the function closes over; and what
            SciPy reports.

        Raises:
            ImportError: If SciPy is not installed.
            NotImplementedError: Under ``torch.vmap``.
        """
        init_params = params_of(init_params)
        check_start(init_params)
        load_optimize()
        condition, reference = self.optimality_condition, self.reference_signature
        with names_the_start(reference, condition, init_params, *args, **kwargs):
            given = (init_params, *args)
            return OptStep(
                *adjoint.implicit(self._solve, condition, reference, self.implicit_diff_solve, given, kwargs)
            )


def required(name: str, value: Any) -> Callable[..., Any]:
    """A function that the constructor must be given."""
    if value is None:
        raise TypeError(f'Missing {name}; pass {name}=, a function of the parameters.')
    checks.function(name, value)
    return value


def with_limit(options: dict[str, Any] | None, name: str, maxiter: int | None) -> dict[str, Any]:
    """SciPy's options, with the limit of iterations under the name that the method has for it.

    Raises:
        ValueError: If it is given twice.
    """
    options = dict(options or {})
    if maxiter is None:
        return options
    checks.integer('maxiter', maxiter, 0)
    for given in {'maxiter', name} & set(options):
        raise ValueError(f'Invalid options: {given!r} is the argument maxiter of the solver. Pass it there.')
    return {**options, name: maxiter}


def into_box(params: Any, lower: Any, upper: Any) -> Any:
    """The nearest parameters in the box, whose bounds are trees like the parameters."""
    return tree.map(lambda p, low, high: torch.minimum(torch.maximum(p, low), high), params, lower, upper)


def box_residual(params: Any, gradient: Any, bounds: Any) -> Any:
    """What a step along the negative gradient, projected to the box, changes: zero at a constrained minimum."""
    return tree.sub(into_box(tree.sub(params, gradient), *bounds_like(bounds, params)), params)
