# SPDX-License-Identifier: Apache-2.0
"""MAML on several processes learns what it learns in one, on either engine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / 'examples'
OPTIONS = ['--steps', '3', '--tasks-per-batch', '3', '--test-tasks', '3']


def run(program: str, processes: int, folder: Path, *options: str) -> dict[str, float]:
    launcher = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={processes}']
    done = subprocess.run(
        [sys.executable, *launcher, str(EXAMPLES / program), *OPTIONS, *options],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'Agg'},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'{processes} processes' in done.stdout
    losses = re.findall(r'loss=([\d.]+)', done.stderr)
    score = re.search(r'held-out alphabets: ([\d.]+)%', done.stdout)
    assert losses
    assert score
    return {'loss': float(losses[-1]), 'accuracy': float(score[1])}


def check(found: dict[str, float], alone: dict[str, float]) -> None:
    """Adam's first steps follow the signs of gradients, so that rounding shows in an answer or two."""
    assert found['loss'] == pytest.approx(alone['loss'], abs=0.011)
    assert found['accuracy'] == pytest.approx(alone['accuracy'], abs=5)


@pytest.fixture(scope='module')
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return run('distributed_maml.py', 1, tmp_path_factory.mktemp('alone'))


def test_remote_calls_learn_the_same(alone: dict[str, float], tmp_path: Path) -> None:
    check(run('distributed_maml_rpc.py', 2, tmp_path), alone)


def test_collectives_learn_the_same_and_go_on_from_a_checkpoint(alone: dict[str, float], tmp_path: Path) -> None:
    """A whole run, and one that begins where the checkpoint was written."""
    options = ['--checkpoint', str(tmp_path / 'saved'), '--checkpoint-every', '2']
    check(run('distributed_maml.py', 2, tmp_path, *options), alone)
    assert [p.name for p in (tmp_path / 'saved').iterdir()] == ['00000002']
    check(run('distributed_maml.py', 2, tmp_path, *options), alone)
