# SPDX-License-Identifier: Apache-2.0
"""The time of L-BFGS beside ``torch.optim.LBFGS`` (strong Wolfe) and SciPy's L-BFGS-B, on one thread.

``python benchmarks/lbfgs_speed.py --rounds 15`` prints the CPU time of a run, the best of all, the evaluations of each,
and the ratios of the solver ``torchopt.LBFGS``, and of the transformation ``torchopt.lbfgs()`` step by step, to both
peers: medians (quartiles) over rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

import torchopt

TOL, MEMORY = 1e-6, 10


class Counted:
    """A function that counts its calls."""

    def __init__(self, fun: Callable[[Tensor], Tensor]) -> None:
        self.fun, self.count = fun, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.fun(x)


def problems() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """L2-regularized logistic regression (500 samples, 100 features), and the 100-dimensional Rosenbrock function."""
    torch.manual_seed(0)
    x, true = torch.randn(500, 100, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
    y = torch.sign(x @ true + 0.5 * torch.randn(500, dtype=torch.float64))

    def logistic(w: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-y * (x @ w)).mean() + 0.5e-3 * (w @ w)

    def rosenbrock(x: Tensor) -> Tensor:
        return (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).sum()

    far = torch.tensor([-1.2, 1.0] * 50, dtype=torch.float64)
    return {'logistic regression': (logistic, torch.zeros(100, dtype=torch.float64)), 'Rosenbrock': (rosenbrock, far)}


def evaluations(fun: Callable[[Tensor], Tensor], start: Tensor, count: int) -> None:
    """As many values and gradients, without a solver: the bound for solvers that evaluate the function by torch."""
    for _ in range(count):
        leaf = start.detach().requires_grad_()
        torch.autograd.grad(fun(leaf), leaf)


def solver(fun: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """One run of torchopt."""
    torchopt.LBFGS(fun, tol=TOL, maxiter=5000, history_size=MEMORY).run(start)


def step_by_step(fun: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """Steps of the transformation, as with Optax."""
    optimizer = torchopt.lbfgs(memory_size=MEMORY)
    value_and_grad = torchopt.transform.value_and_grad_from_state(fun)
    params, state = start, optimizer.init(start)
    while True:
        value, grad = value_and_grad(params, state=state)
        if float(grad.norm()) < TOL:
            return
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=fun)
        params = torchopt.apply_updates(params, updates)


def torch_optim(fun: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """One run of torch.optim."""
    x = start.clone().requires_grad_()
    options: dict[str, Any] = {'max_iter': 5000, 'max_eval': 100000, 'tolerance_grad': 0.0, 'tolerance_change': 0.0}
    optimizer = torch.optim.LBFGS([x], line_search_fn='strong_wolfe', history_size=MEMORY, **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = fun(x)
        value.backward()  # type: ignore[no-untyped-call]
        if x.grad is not None and float(x.grad.norm()) < TOL:
            raise StopIteration
        return value

    try:
        optimizer.step(closure)
    except StopIteration:
        return


def scipys(fun: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """One run of SciPy, until the largest element of the gradient is as small as its norm is in the others."""

    def value_and_grad(x: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(x).requires_grad_()
        value = fun(leaf)
        return value.item(), torch.autograd.grad(value, leaf)[0].numpy()

    options = {'gtol': TOL / 5, 'ftol': 0.0, 'maxcor': MEMORY, 'maxiter': 5000, 'maxfun': 100000}
    scipy.optimize.minimize(value_and_grad, start.numpy(), jac=True, method='L-BFGS-B', options=options)


SOLVERS = (solver, step_by_step, torch_optim, scipys)


def main() -> None:
    """Measure, by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f'load {os.getloadavg()[0]:.1f}')
    for name, (fun, start) in problems().items():
        times: dict[str, list[float]] = {}
        counts: dict[str, int] = {}
        for solve in SOLVERS:  # not measured: imports, caches
            solve(fun, start)
        gc.disable()
        for _ in range(rounds):
            for solve in SOLVERS:
                counted = Counted(fun)
                begin = time.process_time()
                solve(counted, start)
                times.setdefault(solve.__name__, []).append(time.process_time() - begin)
                counts[solve.__name__] = counted.count
            begin = time.process_time()
            evaluations(fun, start, counts['solver'])
            times.setdefault('evaluations', []).append(time.process_time() - begin)
        gc.enable()
        counts['evaluations'] = counts['solver']
        for contestant, found in times.items():
            print(f'{name}: {contestant}: {1e3 * min(found):.1f} ms, {counts[contestant]} evaluations')
        for ours in ('solver', 'step_by_step'):
            for peer in ('torch_optim', 'scipys'):
                ratios = [a / b for a, b in zip(times[ours], times[peer])]
                low, median, high = statistics.quantiles(ratios, n=4)
                print(f'{name}: {ours} / {peer}: {median:.2f} ({low:.2f} to {high:.2f})')


if __name__ == '__main__':
    main()
