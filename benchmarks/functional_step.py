# SPDX-License-Identifier: Apache-2.0
"""Compare a functional Adam step in plain torch with a hand-written one.

The hand-written step has one list comprehension over the leaves for each equation of the paper.  Both run in one
process, interleaved, on one thread; the figures are medians and minima over the repeats, and the ratio is the median
of the ratios of consecutive runs.

    python benchmarks/functional_step.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import torchopt

CONV_NET = [(16, 1, 3, 3), *[(16,)] * 3, *[(16, 16, 3, 3), *[(16,)] * 3] * 3, (5, 64), (5,), ()]
TREES = {
    '200 tensors of 64x64': [(64, 64)] * 200,
    'conv net, 19 small tensors': CONV_NET,
    '8 tensors of 1024x1024': [(1024, 1024)] * 8,
}
LR, B1, B2, EPS = 1e-3, 0.9, 0.999, 1e-8


def by_hand(grads: list[Any], mu: list[Any], nu: list[Any], t: int) -> tuple[list[Any], ...]:
    """Adam, one equation of the paper per line."""
    mu = [B1 * m + (1 - B1) * g for m, g in zip(mu, grads)]
    nu = [B2 * v + (1 - B2) * g**2 for v, g in zip(nu, grads)]
    mu_hat = [m / (1 - B1**t) for m in mu]
    nu_hat = [v / (1 - B2**t) for v in nu]
    return [-LR * m / (v.sqrt() + EPS) for m, v in zip(mu_hat, nu_hat)], mu, nu


def tuned_by_hand(grads: list[Any], mu: list[Any], nu: list[Any], t: int) -> tuple[list[Any], ...]:
    """Adam with the fewest out-of-place torch operations."""
    c1, c2 = 1 - B1**t, 1 - B2**t
    mu = [torch.add(m * B1, g, alpha=1 - B1) for m, g in zip(mu, grads)]
    nu = [torch.add(v * B2, g * g, alpha=1 - B2) for v, g in zip(nu, grads)]
    return [m * (-LR / c1) / ((v / c2).sqrt() + EPS) for m, v in zip(mu, nu)], mu, nu


def measure(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Run the functions in turn until the time is up; return the seconds of every run."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for f in functions.values():
        f()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(times))]) < 5:
        for name, f in functions.items():
            start = time.perf_counter()
            f()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--seconds', type=float, default=10.0, help='time for each tree')
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    print(f'torch {torch.__version__}, 1 thread, {seconds:g} s a tree; microseconds, median (minimum)')
    for title, shapes in TREES.items():
        params = [torch.randn(shape) for shape in shapes]
        grads = [torch.randn(shape) for shape in shapes]
        tx = torchopt.adam(LR, (B1, B2), EPS, use_accelerated_op=False)
        state = tx.init(params)
        mu, nu = state[0].mu, state[0].nu
        times = measure(
            {
                'by hand': lambda grads=grads, mu=mu, nu=nu: by_hand(grads, mu, nu, 1),
                'by hand, tuned': lambda grads=grads, mu=mu, nu=nu: tuned_by_hand(grads, mu, nu, 1),
                'torchopt.adam': lambda grads=grads, tx=tx, state=state: tx.update(grads, state),
            },
            seconds,
        )
        print(f'\n{title}, {len(times["by hand"])} runs')
        for name, runs in times.items():
            ratio = statistics.median(a / b for a, b in zip(times['torchopt.adam'], runs))
            fastest = min(times['torchopt.adam']) / min(runs)
            print(
                f'  {name:16s} {1e6 * statistics.median(runs):9.1f} ({1e6 * min(runs):9.1f})'
                f'   torchopt takes {ratio:.2f}x of it ({fastest:.2f}x at the minima)'
            )


if __name__ == '__main__':
    main()
