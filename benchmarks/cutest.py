# SPDX-License-Identifier: Apache-2.0
"""How many problems of CUTEst LBFGS and LBFGSB solve, beside SciPy's L-BFGS-B, with the same functions.

``python benchmarks/cutest.py [--bounded] [--smallest 2] [--largest 100]`` needs ``sif2jax``. A problem is solved if the
final value lies within 1e-6, relatively, of the best that any of the solvers found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from typing import Any

import jax
import numpy as np
import scipy.optimize
import sif2jax
import torch
from jax.flatten_util import ravel_pytree

import torchopt
from torchopt.solver import Status

jax.config.update('jax_enable_x64', True)
torch.set_num_threads(1)

MAXITER, TOL = 2000, 1e-8


class Problem:
    """A problem as functions of NumPy vectors, which count evaluations."""

    def __init__(self, problem: Any) -> None:
        y0, args = problem.y0, problem.args
        flat, unravel = ravel_pytree(y0)
        self.start = np.asarray(flat, dtype=np.float64)
        self.count = 0
        bounds = getattr(problem, 'bounds', None)
        bounds = bounds() if callable(bounds) else bounds
        lower, upper = (
            (np.asarray(ravel_pytree(b)[0], dtype=np.float64) for b in bounds)
            if bounds is not None
            else (np.full(len(self.start), -np.inf), np.full(len(self.start), np.inf))
        )
        self.lower, self.upper = lower, upper
        self._evaluate = jax.jit(jax.value_and_grad(lambda x: problem.objective(unravel(x), args)))

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.count += 1
        value, gradient = self._evaluate(x)
        return float(value), np.array(gradient, dtype=np.float64)


def ours(problem: Problem, bounded: bool) -> tuple[float, str]:
    """The final value of our solver, and how it ended."""

    def fun(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = problem(x.detach().numpy())
        return torch.tensor(value, dtype=torch.float64), torch.from_numpy(gradient)

    options: dict[str, Any] = {'maxiter': MAXITER, 'tol': TOL, 'value_and_grad': True, 'implicit_diff': False}
    start = torch.from_numpy(problem.start.copy())
    with torch.no_grad():
        if bounded:
            bounds = (torch.from_numpy(problem.lower), torch.from_numpy(problem.upper))
            state = torchopt.LBFGSB(fun, **options).run(start, bounds).state
        else:
            state = torchopt.LBFGS(fun, **options).run(start).state
    return float(state.value), Status(int(state.status)).name


def scipys(problem: Problem, bounded: bool) -> tuple[float, str]:
    """The final value of SciPy's L-BFGS-B."""
    options = {'maxiter': MAXITER, 'maxfun': 20 * MAXITER, 'gtol': TOL, 'ftol': 0.0, 'maxcor': 10}
    bounds = list(zip(problem.lower, problem.upper)) if bounded else None
    found = scipy.optimize.minimize(problem, problem.start, jac=True, method='L-BFGS-B', bounds=bounds, options=options)
    return float(found.fun), str(found.message)


def main() -> None:
    """Run all problems, and print the counts."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--bounded', action='store_true')
    parser.add_argument('--smallest', type=int, default=2)
    parser.add_argument('--largest', type=int, default=100)
    parser.add_argument('--first', type=int, default=0)
    parser.add_argument('--step', type=int, default=1, help='take every so many problems')
    parser.add_argument('--seconds', type=float, default=math.inf, help='stop after so many seconds')
    options = parser.parse_args()
    problems = sif2jax.bounded_minimisation_problems if options.bounded else sif2jax.unconstrained_minimisation_problems
    begin, solved, evaluations, count = time.time(), {'torchopt': 0, 'scipy': 0}, {'torchopt': 0, 'scipy': 0}, 0
    for given in problems[options.first :: options.step]:
        if time.time() - begin > options.seconds:
            break
        size = sum(x.size for x in jax.tree_util.tree_leaves(given.y0))
        if not options.smallest <= size <= options.largest:
            continue
        problem, found = Problem(given), {}
        for name, solve in (('torchopt', ours), ('scipy', scipys)):
            problem.count = 0
            value, ending = math.inf, ''
            with contextlib.suppress(ValueError):  # a start that is not finite
                value, ending = solve(problem, options.bounded)
            found[name] = (value if not math.isnan(value) else math.inf, problem.count, ending)
        best = min(value for value, _, _ in found.values())
        count += 1
        for name, (value, used, _) in found.items():
            solved[name] += value <= best + 1e-6 * max(1.0, abs(best))
            evaluations[name] += used
        print(json.dumps({'problem': type(given).__name__, 'n': size, **found}), flush=True)
    print(json.dumps({'problems': count, 'solved': solved, 'evaluations': evaluations}))


if __name__ == '__main__':
    main()
