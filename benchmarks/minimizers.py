# SPDX-License-Identifier: Apache-2.0
"""The 35 functions of Moré, Garbow and Hillstrom: how many our solvers and SciPy's solve, and in how many evaluations.

    python benchmarks/minimizers.py

Minimizers get the sum of squares with its gradient, ``LevenbergMarquardt`` the residuals with their Jacobian, and
``Broyden`` the residuals of the 14 systems with as many equations as unknowns. A function is solved if its final value
lies within 1e-5 of a minimum of the paper, relatively if that is not 0; a system, if the norm of its residuals is below
1e-5. An evaluation is one of value and gradient, or one of the residuals. The last column is the median of our
evaluations over SciPy's where both solve.
"""

from __future__ import annotations

import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lbfgs_speed
import numpy as np
import scipy.optimize
import torch

import torchopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests' / 'solver' / 'problems'))
import more_garbow_hillstrom

MAXITER, TOL = 2000, 1e-8
Outcome = tuple[bool, int]
"""Whether a problem was solved, and the evaluations."""


class Counted(lbfgs_speed.Counted):
    """A function that counts its calls, also those of SciPy."""

    def value_and_grad(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """For SciPy."""
        leaf = torch.tensor(x, requires_grad=True)
        value = self(leaf)
        return value.item(), torch.autograd.grad(value, leaf)[0].numpy()

    def at(self, x: np.ndarray) -> np.ndarray:
        """For SciPy."""
        return self(torch.tensor(x)).numpy()


def is_minimum(problem: more_garbow_hillstrom.Problem, x: Any) -> bool:
    value = float(problem.objective(torch.as_tensor(x)))
    return any(abs(value - minimum) < 1e-5 * (minimum or 1.0) for minimum in problem.minima)


def minimized(name: str) -> Callable[[more_garbow_hillstrom.Problem], Outcome]:
    def solve(problem: more_garbow_hillstrom.Problem) -> Outcome:
        counted = Counted(problem.objective)
        found = getattr(torchopt, name)(counted, maxiter=MAXITER, tol=TOL).run(problem.start)
        return is_minimum(problem, found.params), counted.count

    return solve


def by_scipy(method: str, **more: Any) -> Callable[[more_garbow_hillstrom.Problem], Outcome]:
    def solve(problem: more_garbow_hillstrom.Problem) -> Outcome:
        counted = Counted(problem.objective)
        options = {'gtol': TOL, 'maxiter': MAXITER, **more}
        start = problem.start.numpy()
        found = scipy.optimize.minimize(counted.value_and_grad, start, jac=True, method=method, options=options)
        return is_minimum(problem, found.x), counted.count

    return solve


def levenberg_marquardt(problem: more_garbow_hillstrom.Problem) -> Outcome:
    options: dict[str, Any] = {'solver': 'qr', 'stop_criterion': 'madsen-nielsen', 'xtol': TOL, 'gtol': TOL}
    found = torchopt.LevenbergMarquardt(problem.residual, maxiter=MAXITER, **options).run(problem.start)
    return is_minimum(problem, found.params), int(found.state.num_fun_eval)


def scipy_lm(problem: more_garbow_hillstrom.Problem) -> Outcome:
    counted, jacobian = Counted(problem.residual), torch.func.jacfwd(problem.residual)
    found = scipy.optimize.least_squares(
        counted.at, problem.start.numpy(), lambda x: jacobian(torch.tensor(x)).numpy(), method='lm', xtol=TOL, ftol=TOL
    )
    return is_minimum(problem, found.x), counted.count


def is_root(problem: more_garbow_hillstrom.Problem, x: Any) -> bool:
    return bool(torch.linalg.vector_norm(problem.residual(torch.as_tensor(x))) < 1e-5)


def broyden(problem: more_garbow_hillstrom.Problem) -> Outcome:
    found = torchopt.Broyden(problem.residual, tol=1e-6, maxiter=500).run(problem.start)
    return is_root(problem, found.params), int(found.state.num_fun_eval)


def broyden1(problem: more_garbow_hillstrom.Problem) -> Outcome:
    counted, options = Counted(problem.residual), {'maxiter': 500, 'fatol': 1e-6}
    try:
        x = scipy.optimize.root(counted.at, problem.start.numpy(), method='broyden1', options=options).x
    except ValueError:  # values that are not finite
        return False, counted.count
    return is_root(problem, x), counted.count


PAIRS = {
    ('`LBFGS`', '`L-BFGS-B`'): (minimized('LBFGS'), by_scipy('L-BFGS-B', ftol=0.0, maxfun=20 * MAXITER)),
    ('`BFGS`', '`BFGS`'): (minimized('BFGS'), by_scipy('BFGS')),
    ('`NonlinearCG`', '`CG`'): (minimized('NonlinearCG'), by_scipy('CG')),
    ('`LevenbergMarquardt`', '`lm`'): (levenberg_marquardt, scipy_lm),
    ('`Broyden`', '`broyden1`'): (broyden, broyden1),
}


def main() -> None:
    """Print a row for each pair of solvers, and the names of what ours do not solve."""
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    print('| ours, SciPy | solved by ours | by SciPy | evaluations |')
    print('|---|---|---|---|')
    for (name, other), pair in PAIRS.items():
        chosen = more_garbow_hillstrom.problems()
        if pair[0] is broyden:
            chosen = [problem for problem in chosen if problem.number in more_garbow_hillstrom.SQUARE]
        rows = [(problem.name, *(solve(problem) for solve in pair)) for problem in chosen]
        solved = [sum(row[k][0] for row in rows) for k in (1, 2)]
        ratio = statistics.median(a[1] / b[1] for _, a, b in rows if a[0] and b[0])
        print(f'| {name}, {other} | {solved[0]} of {len(rows)} | {solved[1]} | {ratio:.2f} |', flush=True)
        for which, k in (('not solved', 1), ('not solved by SciPy', 2)):
            print(f'  {which}:', ', '.join(row[0] for row in rows if not row[k][0]) or 'none', file=sys.stderr)


if __name__ == '__main__':
    main()
