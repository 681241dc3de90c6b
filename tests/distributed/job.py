# SPDX-License-Identifier: Apache-2.0
"""Start a program in several processes on loopback, wait for them with a timeout, and read their results."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

PROGRAMS = Path(__file__).parent / 'programs'
KILLED = -signal.SIGKILL


class Process(NamedTuple):
    """The exit status, the output and the results of a process."""

    status: int
    output: str
    found: dict[str, Any]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return int(s.getsockname()[1])


@functools.cache
def server() -> subprocess.Popen[bytes]:
    """A process that has imported torch and forks the processes of all tests; it ends with its input, when we end."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / 'fork.py')],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,  # so that `select` sees every line that was not read
    )


def answer(limit: float) -> int | None:
    """The next number that the server prints, or None if it prints nothing within ``limit`` seconds."""
    output = server().stdout
    assert output is not None
    return int(output.readline()) if select.select([output], [], [], limit)[0] else None


def run(program: str | Path, processes: int, folder: Path, *arguments: str, limit: float = 150) -> list[Process]:
    """Run a program; fail if it does not end within ``limit`` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith('TORCHELASTIC')},
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(free_port()),
        'WORLD_SIZE': str(processes),
        'LOCAL_WORLD_SIZE': str(processes),
        'OMP_NUM_THREADS': '1',
        'FOUND': str(folder),
    }
    job = {'command': [str(PROGRAMS / program), *arguments], 'environment': environment, 'folder': str(folder)}
    requests = server().stdin
    assert requests is not None
    requests.write(json.dumps(job).encode() + b'\n')
    launcher = answer(60)  # the first answer comes after the imports
    assert launcher is not None, 'the process that forks others did not start'
    status = answer(limit)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher, signal.SIGKILL)
    if status is None:
        answer(limit)
        outputs = [path.read_text(errors='replace')[-3000:] for path in sorted(folder.glob('output*'))]
        pytest.fail(f'{program} did not end within {limit} s:\n' + '\n----\n'.join(outputs))
    assert status == 0, (folder / 'output').read_text(errors='replace')
    statuses = json.loads((folder / 'statuses').read_text())
    return [
        Process(status, (folder / f'output.{rank}').read_text(errors='replace'), read(folder, rank))
        for rank, status in enumerate(statuses)
    ]


def read(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / f'found.{rank}'
    return torch.load(path, weights_only=False) if path.exists() else {}


def check(processes: list[Process], *, killed: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Require that all processes succeeded, except those that were killed on purpose; return their results."""
    for rank, process in enumerate(processes):
        expected = KILLED if rank in killed else 0
        assert process.status == expected, f'rank {rank} ended with {process.status}:\n{process.output[-5000:]}'
    return [process.found for process in processes]
