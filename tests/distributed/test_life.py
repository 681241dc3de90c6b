# SPDX-License-Identifier: Apache-2.0
"""From the launch to the end: torchrun, sockets, faults of collectives, and going on after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.distributed.job import KILLED, PROGRAMS, check, read, run

pytestmark = pytest.mark.long

LOOPBACK = {'0100007F', '00000000000000000000000001000000'}  # 127.0.0.1 and ::1


@pytest.mark.skipif(not Path('/proc/self/net/tcp').exists(), reason='only Linux lists the sockets of a process there')
@pytest.mark.parametrize('engine', ['rpc', 'collectives'])
def test_sockets_are_bound_to_loopback(tmp_path: Path, engine: str) -> None:
    """Also that of the store at which the ranks meet, which torch would bind to every interface."""
    first, *others = check(run('sockets.py', 2, tmp_path, engine))
    assert len(first['addresses']) > len(others[0]['addresses']) > 0
    for one in (first, *others):
        assert set(one['addresses']) <= LOOPBACK


@pytest.mark.parametrize('processes', [2, 3])
@pytest.mark.parametrize('case', ['killed', 'killed in all_reduce'])
def test_a_rank_that_dies_in_a_collective(tmp_path: Path, case: str, processes: int) -> None:
    found = check(run('collective_faults.py', processes, tmp_path, case), killed=(processes - 1,))
    for one in found[:-1]:
        assert one['error']['type'] == 'WorkerDiedError'
        assert 'last checkpoint' in one['error']['text']
        assert one['error']['seconds'] < 20


def test_a_rank_that_is_late(tmp_path: Path) -> None:
    found = check(run('collective_faults.py', 2, tmp_path, 'late'))
    assert found[0]['error']['type'] == 'WorkerTimeoutError'
    assert 0.9 < found[0]['error']['seconds'] < 4


def test_the_others_hear_of_a_rank_that_fails_outside(tmp_path: Path) -> None:
    first, other = run('collective_faults.py', 2, tmp_path, 'fails outside')
    assert first.status != 0  # which a launcher sees
    assert 'ValueError: rank 0 fails' in first.output
    assert other.found['error']['type'] == 'WorkerDiedError'


def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    """Parameters, moments, schedules and the keys of random numbers, of a class and of a chain of functions."""
    whole = check(run('checkpoint.py', 2, tmp_path / 'whole', str(tmp_path / 'a'), '-1'))
    cut = run('checkpoint.py', 2, tmp_path / 'cut', str(tmp_path / 'b'), '4')
    assert cut[1].status == KILLED
    assert cut[0].status != 0
    resumed = check(run('checkpoint.py', 2, tmp_path / 'resumed', str(tmp_path / 'b'), '-1'))
    for one, other in zip(resumed, whole):
        assert (one['first'], other['first']) == (4, 0)
        torch.testing.assert_close(one['weights'], other['weights'], rtol=0, atol=0)
        torch.testing.assert_close(one['params'], other['params'], rtol=0, atol=0)


def test_torchrun(tmp_path: Path) -> None:
    """A program of the other tests, launched as a user would."""
    ranks = 3
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={ranks}']
    done = subprocess.run(
        [*command, str(PROGRAMS / 'calls.py')],
        env={**os.environ, 'FOUND': str(tmp_path), 'OMP_NUM_THREADS': '1'},
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = read(tmp_path, 0)['pairs']
    assert len(pairs) > 10
    assert all(read(tmp_path, rank) for rank in range(ranks))
