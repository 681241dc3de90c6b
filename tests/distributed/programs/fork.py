# SPDX-License-Identifier: Apache-2.0
"""Run a program in several processes: `fork.py PROGRAM ARGUMENTS...`.

The processes are forked after the imports, since these take longer than the programs.
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
    """Fork a process with this rank; return 0 in the new process."""
    pid = os.fork()
    if pid == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        output = os.open(FOLDER / f'output.{rank}', os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
    return pid


def launch() -> bool:
    """Start all ranks; the parent waits for them and writes their statuses.  Return whether this process is a rank."""
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
    # Run the program in this module, so that pickled functions are found in `__main__`, even during shutdown.
    exec(compile(Path(sys.argv[0]).read_text(), sys.argv[0], 'exec'), globals())
