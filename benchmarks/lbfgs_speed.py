# SPDX-License-Identifier: Apache-2.0
"""The time of LBFGS, and of lbfgs by steps, beside ``torch.optim.LBFGS`` (strong Wolfe) and SciPy's L-BFGS-B.

``python benchmarks/lbfgs_speed.py`` prints the CPU time of a run on one thread, the best and the median of some, the
evaluations of each, and the quartiles of the ratios by turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

import torchopt

TOL, MEMORY, ROUNDS = 1e-6, 10, 15


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


def ours(fun: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """One run of torchopt."""
    torchopt.LBFGS(fun, tol=TOL, maxiter=5000, history_size=MEMORY).run(start)


def by_steps(fun: Callable[[Tensor], Tensor], start: Tensor) -> None:
    """The same by the transformation."""
    optimizer, x = torchopt.lbfgs(memory_size=MEMORY), start
    state, value_and_grad = optimizer.init(x), torchopt.transform.value_and_grad_from_state(fun)
    while True:
        value, grad = value_and_grad(x, state=state)
        if float(grad.norm()) < TOL:
            return
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=fun)
        x = torchopt.apply_updates(x, updates)


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


def main() -> None:
    """Measure, the solvers by turns."""
    torch.set_num_threads(1)
    for name, (fun, start) in problems().items():
        times: dict[str, list[float]] = {}
        counts = {}
        for _ in range(ROUNDS):
            for solve in (ours, by_steps, torch_optim, scipys):
                counted = Counted(fun)
                begin = time.process_time()
                solve(counted, start)
                times.setdefault(solve.__name__, []).append(time.process_time() - begin)
                counts[solve.__name__] = counted.count
        for solver, found in times.items():
            best, median = 1e3 * min(found), 1e3 * float(np.median(found))
            print(f'{name}: {solver}: {best:.1f} ms at best, {median:.1f} in the median, {counts[solver]} evaluations')
        for solver in ('ours', 'by_steps'):
            for other in ('torch_optim', 'scipys'):
                quartiles = np.quantile(np.array(times[solver]) / np.array(times[other]), [0.25, 0.5, 0.75])
                print('{}: {} / {}: {:.2f}, {:.2f}, {:.2f}'.format(name, solver, other, *quartiles))


if __name__ == '__main__':
    main()
