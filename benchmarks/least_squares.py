# SPDX-License-Identifier: Apache-2.0
"""How many digits solvers reach on NIST's regressions: ``python benchmarks/least_squares.py [NAME ...]``.

Each of the 18 sets has two starts. A digit is right if all parameters agree with the certified ones to it. Every solver
has one setting: at most 2000 iterations (200 for Gauss-Newton, which is done by then, or diverges), and tolerances of
1e-14. SciPy's ``lm`` is MINPACK's, with Jacobians by automatic differentiation and its scaling of variables. A run that
takes more than a minute of CPU time is cut, and counts as no digit.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from limits import cpu_limit
from torch import Tensor

import torchopt

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'tests' / 'solver' / 'problems'))
import nist_strd

LIMIT, TOL, SECONDS = 2000, 1e-14, 60.0


def levenberg_marquardt(problem: nist_strd.Regression, start: Tensor) -> Tensor:
    solver = torchopt.LevenbergMarquardt(
        problem.residual,
        maxiter=LIMIT,
        stop_criterion='madsen-nielsen',
        tol=TOL,
        xtol=TOL,
        gtol=TOL,
        solver='qr',
        geodesic=True,
    )
    return solver.run(start).params


def gauss_newton(problem: nist_strd.Regression, start: Tensor) -> Tensor:
    return torchopt.GaussNewton(problem.residual, maxiter=200, tol=TOL).run(start).params


def lbfgs(problem: nist_strd.Regression, start: Tensor) -> Tensor:
    solver = torchopt.LBFGS(lambda b: problem.residual(b).square().sum(), maxiter=LIMIT, tol=TOL)
    return solver.run(start).params


def scipy_lm(problem: nist_strd.Regression, start: Tensor) -> Tensor:
    options: dict[str, Any] = {'xtol': TOL, 'ftol': TOL, 'gtol': TOL, 'max_nfev': LIMIT, 'x_scale': 'jac'}
    return torchopt.ScipyLeastSquares(fun=problem.residual, method='lm', options=options).run(start).params


SOLVERS: dict[str, Callable[[nist_strd.Regression, Tensor], Tensor]] = {
    '`LevenbergMarquardt`': levenberg_marquardt,
    '`GaussNewton`': gauss_newton,
    '`LBFGS`': lbfgs,
    "SciPy's `lm`": scipy_lm,
}


def main() -> None:
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    print(f'| set | {" | ".join(SOLVERS)} |')
    print(f'|---|{"---|" * len(SOLVERS)}')
    solved = dict.fromkeys(SOLVERS, 0)
    for name in sys.argv[1:] or nist_strd.MODELS:
        problem, cells = nist_strd.load(name), []
        for label, solve in SOLVERS.items():
            digits = []
            for start in problem.starts:
                try:
                    with cpu_limit(SECONDS):
                        found = solve(problem, start)
                    digits.append(problem.digits(found))
                except (RuntimeError, TimeoutError, ValueError):  # values that are not finite, or cut
                    digits.append(0.0)
            solved[label] += sum(d >= 6 for d in digits)
            cells.append(', '.join(f'{d:.1f}' for d in digits))
        print(f'| {name} | {" | ".join(cells)} |', flush=True)
    print(f'| **6 digits** | {" | ".join(str(n) for n in solved.values())} |')


if __name__ == '__main__':
    main()
