# SPDX-License-Identifier: Apache-2.0
"""Failures of collectives, one case for each run: `collective_faults.py CASE`."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta

import torch
from found import error_of, save
from torch import Tensor

import torchopt.distributed as todist

CASE = sys.argv[1]
SHORT = timedelta(seconds=1)
W = torch.ones(2, requires_grad=True)


def linear(w: Tensor, x: float) -> Tensor:
    return (w * x).sum()


def die_or_wait(w: Tensor, x: float) -> Tensor:
    """Kill the last rank while the others are in the collective, or before they enter it."""
    if todist.get_rank() == todist.get_world_size() - 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    return linear(w, x)


def late(w: Tensor, x: float) -> Tensor:
    if todist.get_rank() == 1:
        time.sleep(4)
    return linear(w, x)


@todist.auto_init_process_group(backend='gloo', timeout=timedelta(seconds=60))
def main() -> None:
    tasks = [1.0, 2.0, 3.0]
    todist.map_tasks(linear, tasks, W)  # connect all ranks
    if CASE == 'killed':
        save({'error': error_of(lambda: todist.map_tasks(die_or_wait, tasks, W, timeout=timedelta(seconds=20)))})
        os._exit(0)  # the group is broken; its destruction by torch is not tested here
    if CASE == 'killed in all_reduce':
        if todist.get_rank() == todist.get_world_size() - 1:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        save({'error': error_of(lambda: todist.all_reduce(W.detach(), timeout=timedelta(seconds=20)))})
        os._exit(0)
    if CASE == 'late':
        save({'error': error_of(lambda: todist.map_tasks(late, tasks, W, timeout=SHORT))})
        time.sleep(4)
        os._exit(0)
    if CASE == 'fails outside':
        if todist.get_rank() == 0:
            raise ValueError('rank 0 fails')
        save({'error': error_of(lambda: todist.map_tasks(linear, tasks, W, timeout=timedelta(seconds=20)))})
        os._exit(0)
    raise ValueError(CASE)


if __name__ == '__main__':
    main()
