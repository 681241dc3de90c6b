# SPDX-License-Identifier: Apache-2.0
"""MAML on several processes learns what it learns in one, on either engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed import job
from tests.examples.omniglot import write_omniglot

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / 'examples'
OPTIONS = ['--steps', '3', '--tasks-per-batch', '3', '--test-tasks', '3']


def result(processes: int, output: str) -> dict[str, float]:
    assert f'{processes} processes' in output
    losses = re.findall(r'loss=([\d.]+)', output)
    score = re.search(r'held-out alphabets: ([\d.]+)%', output)
    assert losses
    assert score
    return {'loss': float(losses[-1]), 'accuracy': float(score[1])}


def run(program: str, data: Path, folder: Path, *options: str) -> dict[str, float]:
    """Run an example in two processes."""
    processes = job.run(EXAMPLES / program, 2, folder, *OPTIONS, '--data', str(data), *options)
    job.check(processes)
    return result(2, processes[0].output)


def check(found: dict[str, float], alone: dict[str, float]) -> None:
    """Adam's first steps follow the signs of gradients, so that rounding shows in an answer or two."""
    assert found['loss'] == pytest.approx(alone['loss'], abs=0.011)
    assert found['accuracy'] == pytest.approx(alone['accuracy'], abs=5)


@pytest.fixture(scope='module')
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('omniglot')
    write_omniglot(folder, 5, drawings=18)
    return folder


@pytest.fixture(scope='module')
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """One process, as a user would launch it."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=1']
    done = subprocess.run(
        [*command, str(EXAMPLES / 'distributed_maml.py'), *OPTIONS, '--data', str(data)],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'},
        cwd=tmp_path_factory.mktemp('alone'),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return result(1, done.stdout)


def test_remote_calls_learn_the_same(alone: dict[str, float], data: Path, tmp_path: Path) -> None:
    check(run('distributed_maml_rpc.py', data, tmp_path), alone)


def test_collectives_learn_the_same_and_go_on_from_a_checkpoint(
    alone: dict[str, float], data: Path, tmp_path: Path
) -> None:
    """A whole run, and one that begins where the checkpoint was written."""
    options = ['--checkpoint', str(tmp_path / 'saved'), '--checkpoint-every', '2']
    check(run('distributed_maml.py', data, tmp_path / 'whole', *options), alone)
    assert [p.name for p in (tmp_path / 'saved').iterdir()] == ['00000002']
    check(run('distributed_maml.py', data, tmp_path / 'continued', *options), alone)
