# SPDX-License-Identifier: Apache-2.0
"""The time of `import torchopt` beyond that of `import torch`, in new processes."""

from __future__ import annotations

import statistics
import subprocess
import time

from environments import HERE, NotToBeHad, python_for
from tqdm import trange

MODULES = {'torchopt': 'torchopt', 'torchopt_073': 'torchopt', 'higher': 'higher', 'optax': 'optax'}
UNDER = {'optax': 'jax'}  # the others sit on torch


def measure(peers: list[str], rounds: int, absent: dict[str, str]) -> dict[str, dict[str, float]]:
    pythons = {}
    for peer in MODULES:
        if peer in peers and peer not in absent:
            try:
                pythons[peer] = python_for(peer)
            except NotToBeHad as error:
                absent[peer] = str(error)
    below: dict[str, list[float]] = {peer: [] for peer in pythons}
    whole: dict[str, list[float]] = {peer: [] for peer in pythons}
    for i in trange(rounds + 1, desc='import', unit='round'):
        for peer, python in pythons.items():
            times = [_fresh(*python, module) for module in (UNDER.get(peer, 'torch'), MODULES[peer])]
            if i:  # the first round fills the caches of files and bytecode
                below[peer].append(times[0])
                whole[peer].append(times[1])
    return {
        peer: {
            'below': statistics.median(below[peer]),
            'whole': statistics.median(whole[peer]),
            'added': statistics.median(b - a for a, b in zip(below[peer], whole[peer])),
            'added, minima': min(whole[peer]) - min(below[peer]),
        }
        for peer in pythons
    }


def _fresh(python, variables: dict[str, str], module: str) -> float:
    start = time.perf_counter()
    subprocess.run([str(python), '-c', f'import {module}'], env=variables, cwd=HERE, check=True, capture_output=True)
    return time.perf_counter() - start
