# SPDX-License-Identifier: Apache-2.0
"""Problems for JAXopt and torchopt, written once: least squares, roots and fixed points."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

STEPS = 6
"""How many single steps are compared."""


class Problem(NamedTuple):
    """A problem.

    Attributes:
        make: ``make(library, fun)`` makes the solver, of JAXopt or of ``torchopt.compat.jaxopt``.
        fun: ``fun(np)`` returns the function, written with ``jax.numpy`` or torch.
        start: Where to start.
        a: The data, in which the solution is differentiated.
        steps: Whether single steps are compared too.
    """

    make: Callable[[Any, Any], Any]
    fun: Callable[[Any], Any]
    start: Any
    a: Any
    steps: bool = True


def decay(np: Any) -> Any:
    t = [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]

    def residual(w: Any, a: Any) -> Any:
        return np.stack([w[0] * np.exp(-w[1] * s) - a * np.exp(-2.0 * np.ones_like(w[0]) * s) + 0.1 * s for s in t])

    return residual


def coupled(np: Any) -> Any:
    def fun(x: Any, a: Any) -> Any:
        return x + 0.5 * np.sin(np.flip(x, (0,))) - a

    return fun


def contraction(np: Any) -> Any:
    def fun(x: Any, a: Any) -> Any:
        return 0.9 * np.cos(x) + 0.1 * a * np.flip(x, (0,))

    return fun


def cubic(np: Any) -> Any:
    return lambda x, a: x**3 + x - a


LM: dict[str, dict[str, Any]] = {
    'cholesky': {'solver': 'cholesky', 'materialize_jac': True},
    'lu': {'solver': 'lu', 'materialize_jac': True},
    'inv': {'solver': 'inv', 'materialize_jac': True},
    'qr': {'solver': 'qr', 'materialize_jac': True},
}

PROBLEMS: dict[str, Problem] = {
    'gauss_newton': Problem(lambda lib, fun: lib.GaussNewton(fun, tol=1e-12), decay, [1.0, 1.0], 3.0),
    **{
        f'levenberg_marquardt_{name}': Problem(
            lambda lib, fun, options=options: lib.LevenbergMarquardt(
                fun, tol=1e-12, maxiter=60, damping_parameter=0.1, **options
            ),
            decay,
            [1.0, 1.0],
            3.0,
        )
        for name, options in LM.items()
    },
    'levenberg_marquardt_madsen_nielsen': Problem(
        lambda lib, fun: lib.LevenbergMarquardt(
            fun, stop_criterion='madsen-nielsen', xtol=1e-11, gtol=1e-11, maxiter=60, **LM['qr']
        ),
        decay,
        [1.0, 1.0],
        3.0,
    ),
    'broyden': Problem(lambda lib, fun: lib.Broyden(fun, tol=1e-11), coupled, [0.0, 0.0, 0.0], [1.0, 2.0, 0.5]),
    'broyden_constant_step': Problem(
        lambda lib, fun: lib.Broyden(fun, tol=1e-11, stepsize=0.7, history_size=4), coupled, [0.0, 0.0], [1.0, 2.0]
    ),
    'bisection': Problem(
        lambda lib, fun: lib.Bisection(fun, 0.0, 4.0, tol=1e-12, maxiter=80), cubic, None, 8.0, steps=False
    ),
    'fixed_point': Problem(
        lambda lib, fun: lib.FixedPointIteration(fun, tol=1e-12, maxiter=500), contraction, [1.0, 0.5], [0.3, 0.7]
    ),
    'anderson': Problem(
        lambda lib, fun: lib.AndersonAcceleration(fun, tol=1e-11, history_size=3, ridge=1e-10),
        contraction,
        [1.0, 0.5],
        [0.3, 0.7],
    ),
    'anderson_mixing': Problem(
        lambda lib, fun: lib.AndersonAcceleration(
            fun, tol=1e-11, history_size=2, mixing_frequency=2, beta=0.5, ridge=1e-8
        ),
        contraction,
        [1.0, 0.5],
        [0.3, 0.7],
    ),
    'anderson_wrapper': Problem(
        lambda lib, fun: lib.AndersonWrapper(
            lib.FixedPointIteration(fun, tol=1e-11, maxiter=300), history_size=3, ridge=1e-9
        ),
        contraction,
        [1.0, 0.5],
        [0.3, 0.7],
    ),
}
