# SPDX-License-Identifier: Apache-2.0
"""Run a program in several processes: `fork.py PROGRAM ARGUMENTS...`.

The processes are forked after the packages are imported, which takes longer than all that the programs do.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed.elastic.multiprocessing.errors
import torch.distributed.rpc  # noqa: F401

import torchopt  # noqa: F401

FOLDER = Path(os.environ['FOUND'])


def start(rank: int) -> int:
    """Fork a process that takes this rank; in it, return 0."""
    pid = os.fork()
    if pid == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        output = os.open(FOLDER / f'output.{rank}', os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
    return pid


def launch() -> bool:
    """Start all ranks, wait for them and note their statuses; return whether this is one of them."""
    children = []
    for rank in range(int(os.environ['WORLD_SIZE'])):
        pid = start(rank)
        if pid == 0:
            return True
        children.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    (FOLDER / 'statuses').write_text(json.dumps(statuses))
    return False


if launch():
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    # In this very module, so that what is sent by name is found in `__main__`, also while Python ends.
    exec(compile(Path(sys.argv[0]).read_text(), sys.argv[0], 'exec'), globals())
