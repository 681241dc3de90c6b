# SPDX-License-Identifier: Apache-2.0
"""The process of one peer: it reads requests and writes answers, each a line of JSON.

python benchmarks/worker.py PEER MODULE THREADS DEVICE
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

WARM_UP = 0.005  # seconds, in which the threads of the previous peer go to sleep


class Worker:
    def __init__(self, module: str, threads: int, device: str) -> None:
        # XLA chooses the size of its thread pool by the cores that the process may use; for torch it is set below.
        if hasattr(os, 'sched_setaffinity') and device == 'cpu':
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        self.synchronize: Callable[[], Any] = lambda: None
        if not module.endswith('_jit'):  # JAX's
            import torch
            import torch_problems

            torch.set_num_threads(threads)
            torch_problems.DEVICE = torch.device(device)
            if device == 'cuda':
                self.synchronize = torch.cuda.synchronize
        self.build = importlib.import_module(f'peers.{module}').cases
        self.cases: dict[str, Any] = {}

    def versions(self) -> dict[str, str]:
        found = {'python': platform.python_version()}
        for name in ('torch', 'torchopt', 'optree', 'numpy', 'higher', 'jax', 'jaxlib', 'optax', 'jaxopt'):
            with suppress(metadata.PackageNotFoundError):
                if name in sys.modules:
                    found[name] = getattr(sys.modules[name], '__version__', None) or metadata.version(name)
        return found

    def prepare(self, workload: str) -> dict[str, Any]:
        """Build all contestants of a workload, and return fingerprints of their results."""
        from workloads import WORKLOADS

        self.cases.clear()
        gc.collect()
        found, failed = {}, {}
        for variant, make in self.build(WORKLOADS[workload]).items():
            try:
                case = make()
                found[variant] = fingerprint(case.check()) if case.check else None
                if case.run:
                    self.cases[variant] = case
            except Exception as error:
                failed[variant] = f'{type(error).__name__}: {error}'
        return {'fingerprints': found, 'contestants': list(self.cases), 'failed': failed}

    def measure(self, variant: str, seconds: float) -> list[float]:
        """Run for about this time after a short warm-up, and return the seconds of every run."""
        case = self.cases[variant]
        before = case.before or (lambda: None)
        gc.collect()
        gc.disable()
        try:
            self._repeat(case.run, before, WARM_UP)
            return self._repeat(case.run, before, seconds)
        finally:
            gc.enable()

    def _repeat(self, run: Callable[[], Any], before: Callable[[], Any], seconds: float) -> list[float]:
        times, synchronize, clock = [], self.synchronize, time.perf_counter
        end = clock() + seconds
        while not times or clock() < end:
            before()
            synchronize()
            start = clock()
            result = run()
            synchronize()
            times.append(clock() - start)
            del result
        return times

    def memory(self, variant: str) -> dict[str, float] | None:
        count = self.cases[variant].memory
        return count and count()


def fingerprint(arrays: list[Any]) -> list[float]:
    """The root mean square and eight elements of each array, which suffice to detect a wrong result."""
    import numpy as np

    marks: list[float] = []
    for x in arrays:
        flat = np.asarray(x.cpu() if hasattr(x, 'cpu') else x, dtype=np.float32).ravel()
        marks += [
            float(np.linalg.norm(flat)) / flat.size**0.5,
            *flat[np.linspace(0, flat.size - 1, 8).astype(int)].tolist(),
        ]
    return marks


def main() -> None:
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)
    _, peer, module, threads, device = sys.argv
    sys.path.insert(0, str(Path(__file__).parent))
    worker = Worker(module, int(threads), device)
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        try:
            answer = {'result': getattr(worker, verb)(*arguments)}
        except Exception as error:
            answer = {'error': f'{peer}, {verb}: {type(error).__name__}: {error}'}
        print(json.dumps(answer), file=answers)


if __name__ == '__main__':
    main()
