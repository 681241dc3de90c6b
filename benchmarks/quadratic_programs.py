# SPDX-License-Identifier: Apache-2.0
"""The Maros-Meszaros problems: how many BoxOSQP and the package osqp solve, and in what time.

    python benchmarks/quadratic_programs.py FOLDER [NAME ...] [--seconds 60]

The folder holds the problems as ``.mat`` files with P, q, A, l and u: minimize x'Px / 2 + q'x subject to l <= Ax <= u,
where a bound of 1e20 means none. A problem counts as solved if the primal residual, the dual residual and the gap
between the objectives are at most 1e-3, computed here from the solution and its multipliers. A solver that needs more
than the limit of CPU time for a problem is cut there, and the problem counts as not solved.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import osqp
import scipy.io
import scipy.sparse
import torch
from limits import cpu_limit

import torchopt

ACCURACY, TOLERANCE, STEPS = 1e-3, 1e-5, 20000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path)
    parser.add_argument('names', nargs='*', help='only problems whose names begin with one of these')
    parser.add_argument('--seconds', type=float, default=60.0, help='the limit of CPU time for a problem and a solver')
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(args.folder.glob('*.mat'), key=lambda file: file.stat().st_size)
    if args.names:
        files = [file for file in files if file.stem.startswith(tuple(args.names))]
    solved = {solve.__name__: 0 for solve in (box_osqp, osqp_package)}
    for file in files:
        problem = load(file)
        row = [f'{file.stem:10s} n={len(problem[1]):5d} m={len(problem[3]):5d}']
        for solve in (box_osqp, osqp_package):
            start = time.process_time()
            try:
                with cpu_limit(args.seconds):
                    x, y = solve(*problem)
                error = worst(x, y, *problem)
            except (TimeoutError, ValueError) as ended:  # cut, or not convex
                error, row = np.inf, [*row, str(ended)[:60]]
            seconds = time.process_time() - start
            solved[solve.__name__] += bool(error <= ACCURACY)
            row.append(f'{solve.__name__}: {error:8.1e} {seconds:6.2f} s {"ok" if error <= ACCURACY else "--"}')
        print('  '.join(row), flush=True)
    print(f'{solved} of {len(files)}')


def load(file: Path) -> tuple[Any, ...]:
    """P, q, A, l and u as dense arrays, with infinite bounds where there are none."""
    data = scipy.io.loadmat(file)
    P, q, A, l, u = (
        np.asarray(data[k].todense() if scipy.sparse.issparse(data[k]) else data[k], float) for k in 'PqAlu'
    )
    q, l, u = q.ravel(), l.ravel(), u.ravel()
    return P, q, A, np.where(l <= -1e20, -np.inf, l), np.where(u >= 1e20, np.inf, u)


def box_osqp(P: Any, q: Any, A: Any, l: Any, u: Any) -> tuple[Any, Any]:
    solver = torchopt.BoxOSQP(tol=TOLERANCE, maxiter=STEPS, eq_qp_solve='lu')
    P, q, A, l, u = map(torch.tensor, (P, q, A, l, u))
    sol = solver.run(None, (P, q), A, (l, u)).params
    return sol.primal[0].numpy(), sol.dual_eq.numpy()


def osqp_package(P: Any, q: Any, A: Any, l: Any, u: Any) -> tuple[Any, Any]:
    solver = osqp.OSQP()
    data = scipy.sparse.csc_matrix(P), q, scipy.sparse.csc_matrix(A), l, u
    solver.setup(*data, eps_abs=TOLERANCE, eps_rel=0, max_iter=STEPS, verbose=False)
    found = solver.solve(raise_error=False)
    return found.x, found.y


def worst(x: Any, y: Any, P: Any, q: Any, A: Any, l: Any, u: Any) -> float:
    """The largest of the residuals and the gap."""
    if x is None or not np.isfinite(x).all() or not np.isfinite(y).all():
        return np.inf
    Ax, up, down = A @ x, np.maximum(y, 0), np.minimum(y, 0)
    primal = np.concatenate([Ax - u, l - Ax, [0.0]]).max()
    # A multiplier of a bound that does not exist counts as a residual.
    impossible = np.concatenate([up[np.isinf(u)], -down[np.isinf(l)], [0.0]]).max()
    dual = max(np.abs(P @ x + q + A.T @ y).max(), impossible)
    gap = abs(x @ P @ x + q @ x + np.where(np.isinf(u), 0, u) @ up + np.where(np.isinf(l), 0, l) @ down)
    return max(primal, dual, gap)


if __name__ == '__main__':
    main()
