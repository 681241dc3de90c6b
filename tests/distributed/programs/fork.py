# SPDX-License-Identifier: Apache-2.0
"""Run programs in several processes, each described by a line of JSON on the standard input.

The processes are forked after the imports, since these take longer than the programs.
For each job, this process prints two lines: the process id of its launcher, which leads a process group of all ranks,
and the exit status of the launcher.  It ends with its input.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # torch.optim and torch.distributed import it when they are first used
import torch.distributed.elastic.multiprocessing.errors
import torch.distributed.rpc  # noqa: F401

import torchopt  # noqa: F401


def write_to(path: Path) -> None:
    """Write the standard output and errors of this process to a file."""
    output = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)


def enter(job: dict[str, Any]) -> None:
    """Make this process the launcher of a job."""
    os.setsid()
    os.environ.clear()
    os.environ.update(job['environment'])
    os.chdir(job['folder'])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    write_to(Path(job['folder']) / 'output')
    sys.argv[:] = job['command']


def start(rank: int, folder: Path) -> int:
    """Fork a process with this rank; return 0 in the new process."""
    pid = os.fork()
    if pid == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        write_to(folder / f'output.{rank}')
    return pid


def launch(folder: Path) -> None:
    """Start all ranks, and return in them only; the launcher waits for them and writes their statuses."""
    children = []
    for rank in range(int(os.environ['WORLD_SIZE'])):
        pid = start(rank, folder)
        if pid == 0:
            return
        children.append(pid)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    (folder / 'statuses').write_text(json.dumps(statuses))
    os._exit(0)


def serve() -> None:
    """Run jobs one after the other; return in their ranks only."""
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            enter(job)
            launch(Path(job['folder']))
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    sys.exit()


serve()
sys.path.insert(0, str(Path(sys.argv[0]).parent))
# Run the program in this module, so that pickled functions are found in `__main__`, even during shutdown.
exec(compile(Path(sys.argv[0]).read_text(), sys.argv[0], 'exec'), globals())
