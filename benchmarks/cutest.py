# SPDX-License-Identifier: Apache-2.0
"""How many problems of CUTEst LBFGS and LBFGSB solve, beside SciPy's L-BFGS-B, with the same functions.

    python benchmarks/cutest.py ROWS [--smallest 2] [--largest 100] [--seconds 20] [--jax] [--picture FILE]

needs ``sif2jax``. It appends one JSON row per problem to the file ROWS, those without bounds and with the fewest
unknowns first, and skips those that the file has: a run that was stopped goes on. A solver is cut after so many seconds
of CPU time for a problem. ``--jax`` adds JAXopt's LBFGS and Optimistix's BFGS to the problems without bounds. Last,
it prints how many each solver has solved: a problem is solved if the final value lies within 1e-6, relatively, of the
best that any of the solvers found. ``--largest 0`` makes no runs, and prints only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from limits import cpu_limit

import torchopt
from torchopt.solver import Status

MAXITER, TOL = 2000, 1e-8


class Problem:
    """A problem as functions of NumPy vectors, which count evaluations."""

    def __init__(self, problem: Any) -> None:
        import jax
        from jax.flatten_util import ravel_pytree

        args = problem.args
        flat, unravel = ravel_pytree(problem.y0)
        self.start = np.asarray(flat, dtype=np.float64)
        self.count = 0
        bounds = getattr(problem, 'bounds', None)
        bounds = bounds() if callable(bounds) else bounds
        self.bounded = bounds is not None
        self.lower, self.upper = (
            (np.asarray(ravel_pytree(b)[0], dtype=np.float64) for b in bounds)
            if bounds is not None
            else (np.full(len(self.start), -np.inf), np.full(len(self.start), np.inf))
        )
        self.objective = lambda x: problem.objective(unravel(x), args)
        self._evaluate = jax.jit(jax.value_and_grad(self.objective))
        self._evaluate(self.start)  # compile outside of all limits

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        self.count += 1
        value, gradient = self._evaluate(x)
        return float(value), np.array(gradient, dtype=np.float64)


def ours(problem: Problem) -> tuple[float, str]:
    """The final value of our solver, and how it ended."""

    def fun(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = problem(x.detach().numpy())
        return torch.tensor(value, dtype=torch.float64), torch.from_numpy(gradient)

    options: dict[str, Any] = {'maxiter': MAXITER, 'tol': TOL, 'value_and_grad': True, 'implicit_diff': False}
    start = torch.from_numpy(problem.start.copy())
    with torch.no_grad():
        if problem.bounded:
            bounds = (torch.from_numpy(problem.lower), torch.from_numpy(problem.upper))
            state = torchopt.LBFGSB(fun, **options).run(start, bounds).state
        else:
            state = torchopt.LBFGS(fun, **options).run(start).state
    return float(state.value), Status(int(state.status)).name


def scipys(problem: Problem) -> tuple[float, str]:
    """The final value of SciPy's L-BFGS-B."""
    options = {'maxiter': MAXITER, 'maxfun': 20 * MAXITER, 'gtol': TOL, 'ftol': 0.0, 'maxcor': 10}
    bounds = list(zip(problem.lower, problem.upper)) if problem.bounded else None
    found = scipy.optimize.minimize(problem, problem.start, jac=True, method='L-BFGS-B', bounds=bounds, options=options)
    return float(found.fun), str(found.message)


def jaxopts(problem: Problem) -> tuple[float, str]:
    """The final value of JAXopt's LBFGS."""
    import jaxopt

    solver = jaxopt.LBFGS(problem.objective, maxiter=MAXITER, tol=TOL, implicit_diff=False)
    state = solver.run(problem.start).state
    problem.count = int(state.num_fun_eval)
    return float(state.value), f'error {float(state.error):.1e}'


def optimistixs(problem: Problem) -> tuple[float, str]:
    """The final value of Optimistix's BFGS."""
    import optimistix

    solver = optimistix.BFGS(rtol=TOL, atol=TOL)
    found = optimistix.minimise(
        lambda x, _: problem.objective(x), solver, problem.start, max_steps=MAXITER, throw=False
    )
    problem.count = int(found.stats['num_steps'])
    return float(problem.objective(found.value)), str(found.result)


def imported(kind: str) -> Any:
    """The problems of one kind.  To import the whole package takes minutes: it makes the problems of all kinds."""
    if 'sif2jax' not in sys.modules:
        found = importlib.util.find_spec('sif2jax')
        if found is None or found.submodule_search_locations is None:
            raise ImportError('This benchmark needs sif2jax: `pip install sif2jax`.')
        folder = Path(found.submodule_search_locations[0])
        for name, path in (('sif2jax', folder), ('sif2jax.cutest', folder / 'cutest')):
            package = types.ModuleType(name)
            package.__path__ = [str(path)]
            sys.modules[name] = package
    module = importlib.import_module(f'sif2jax.cutest._{kind}_minimisation')
    return getattr(module, f'{kind}_minimisation_problems')


def problems(smallest: int, largest: int, done: set[str]) -> Iterator[tuple[str, int, Any]]:
    """Name, number of unknowns, and the problem; those without bounds first, and the smallest first."""
    import jax

    jax.config.update('jax_enable_x64', True)
    for kind in ('unconstrained', 'bounded'):
        given = imported(kind)
        sized = []
        for problem in given:
            if type(problem).__name__ not in done:
                size = sum(np.size(x) for x in jax.tree_util.tree_leaves(problem.y0))
                sized.append((size, type(problem).__name__, problem))
        sized.sort(key=lambda found: found[:2])
        yield from ((name, size, problem) for size, name, problem in sized if smallest <= size <= largest)


def row(name: str, size: int, given: Any, solvers: dict[str, Callable[..., Any]], seconds: float) -> dict[str, Any]:
    """What each solver reached: the value, the evaluations, the CPU time and the ending."""
    problem = Problem(given)
    found: dict[str, Any] = {'problem': name, 'n': size, 'bounded': problem.bounded}
    for label, solve in solvers.items():
        if problem.bounded and label in ('jaxopt', 'optimistix'):
            continue
        problem.count, begin = 0, time.process_time()
        try:
            with cpu_limit(seconds):
                value, ending = solve(problem)
        except (TimeoutError, ValueError, RuntimeError) as refused:  # cut, or a start that is not finite
            value, ending = math.inf, str(refused)[:80]
        value = value if math.isfinite(value) else math.inf
        found[label] = [value, problem.count, round(time.process_time() - begin, 3), ending]
    return found


def is_solved(found: dict[str, Any], label: str) -> bool:
    """Whether a solver came as far as the best of all."""
    best = min(of[0] for of in found.values() if isinstance(of, list))
    return math.isfinite(best) and found[label][0] <= best + 1e-6 * max(1.0, abs(best))


def summary(rows: list[dict[str, Any]]) -> None:
    """Print how many problems each solver solved, and the median of our evaluations over those of the others."""
    for bounded in (False, True):
        chosen = [found for found in rows if found['bounded'] == bounded]
        labels = dict.fromkeys(label for found in chosen for label, of in found.items() if isinstance(of, list))
        for label in labels:
            had = [found for found in chosen if label in found]
            both = [f for f in had if is_solved(f, label) and is_solved(f, 'torchopt')]
            ratio = float(np.median([f['torchopt'][1] / max(f[label][1], 1) for f in both])) if both else math.nan
            cut = sum('CPU time' in f[label][3] for f in had)
            print(
                f'{"bounded" if bounded else "unconstrained"}: {label} solved {sum(is_solved(f, label) for f in had)} '
                f'of {len(had)} ({cut} cut); evaluations of torchopt over its: median {ratio:.2f}'
            )


def picture(rows: list[dict[str, Any]], file: Path) -> None:
    """Performance profiles: the share of problems solved within so many times the evaluations of the best solver."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for ax, bounded in zip(axes, (False, True)):
        chosen = [found for found in rows if found['bounded'] == bounded]
        for label, name in (('torchopt', 'LBFGSB' if bounded else 'LBFGS'), ('scipy', 'SciPy, L-BFGS-B')):
            ratios = []
            for found in chosen:
                solved = [of[1] for key, of in found.items() if isinstance(of, list) and is_solved(found, key)]
                ratios.append(found[label][1] / max(min(solved), 1) if is_solved(found, label) else math.inf)
            grid = np.geomspace(1.0, 16.0, 300)
            ax.plot(grid, [np.mean(np.array(ratios) <= t) for t in grid], label=name)
        ax.set_xscale('log', base=2)
        ax.set_xlabel('evaluations over those of the best solver')
        ax.set_title(f'CUTEst, {"with" if bounded else "without"} bounds: {len(chosen)} problems', fontsize=10)
        ax.legend(loc='lower right')
    axes[0].set_ylabel('share of problems solved')
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    """Run the problems that are missing, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('rows', type=Path, help='a file of JSON lines, which grows')
    parser.add_argument('--smallest', type=int, default=2)
    parser.add_argument('--largest', type=int, default=100)
    parser.add_argument('--seconds', type=float, default=20.0, help='the limit of CPU time for a problem and a solver')
    parser.add_argument('--jax', action='store_true', help="add JAXopt's LBFGS and Optimistix's BFGS")
    parser.add_argument('--names', nargs='*', help='only these problems')
    parser.add_argument('--picture', type=Path, help='where to draw performance profiles')
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()] if options.rows.exists() else []
    solvers: dict[str, Callable[[Problem], tuple[float, str]]] = {'torchopt': ours, 'scipy': scipys}
    if options.jax:
        solvers |= {'jaxopt': jaxopts, 'optimistix': optimistixs}
    if options.largest:
        for name, size, given in problems(options.smallest, options.largest, {found['problem'] for found in rows}):
            if options.names and name not in options.names:
                continue
            rows.append(row(name, size, given, solvers, options.seconds))
            with options.rows.open('a') as out:
                out.write(json.dumps(rows[-1]) + '\n')
            print(json.dumps(rows[-1]), flush=True)
    summary(rows)
    if options.picture:
        picture(rows, options.picture)


if __name__ == '__main__':
    main()
