# SPDX-License-Identifier: Apache-2.0
"""Measure the ratios that have targets within one process, in CPU time and by turns: for a machine that is not idle.

    python benchmarks/by_turns.py small step

The suite (``run.py``) has a process for each peer and measures the time that passes.  On a machine that others use,
only ratios of CPU times mean something, and only of measurements that follow each other closely.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import statistics
import time
from typing import Any

import torch
from environments import MODULES
from workloads import KINDS, WORKLOADS, Workload

TORCH_PEERS = ('torchopt', 'torch_optim', 'by_hand')
TURN = 6e-3  # seconds of a measurement, at least one run


def contestant(name: str, work: Workload) -> Any:
    """The function that is timed."""
    peer, _, variant = name.partition('/')
    return importlib.import_module(f'peers.{MODULES[peer]}').cases(work)[variant]().run


def ratio(ours: Any, reference: Any, rounds: int) -> tuple[float, float, float]:
    """The median over the rounds of the ratio of both times, and its quartiles."""
    both = (ours, reference)
    counts = []
    for run in both:
        for _ in range(5):
            run()
        start = time.process_time()
        run()
        counts.append(max(1, int(TURN / max(time.process_time() - start, 1e-6))))
    ratios = []
    gc.disable()
    for i in range(rounds):
        times = [0.0, 0.0]
        for k in (0, 1) if i % 2 else (1, 0):
            start = time.process_time()
            for _ in range(counts[k]):
                both[k]()
            times[k] = (time.process_time() - start) / counts[k]
        ratios.append(times[0] / times[1])
    gc.enable()
    low, median, high = statistics.quantiles(ratios, n=4)
    return median, low, high


def main() -> None:
    """Print a row for each ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kinds', nargs='+', choices=KINDS)
    parser.add_argument('--rounds', type=int, default=51)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f'load {os.getloadavg()[0]:.1f}; ratio of CPU times, median (quartiles) of {args.rounds} rounds')
    for work in WORKLOADS.values():
        target = work.target
        if work.kind not in args.kinds or target is None or target.base:
            continue
        for ours in target.ours:
            if all(name.partition('/')[0] in TORCH_PEERS for name in (ours, target.reference)):
                median, low, high = ratio(contestant(ours, work), contestant(target.reference, work), args.rounds)
                shown = f'{median:.2f} ({low:.2f} to {high:.2f})'
                print(f'{work.name:35} {ours:25} {target.reference:20} {shown:22} <= {target.limit}', flush=True)


if __name__ == '__main__':
    main()
