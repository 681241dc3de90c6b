# SPDX-License-Identifier: Apache-2.0
"""Workers that die, hang or raise: typed errors, repeated calls, and an end in bounded time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.job import KILLED, check, run

pytestmark = pytest.mark.long

DIED, LATE = 'WorkerDiedError', 'WorkerTimeoutError'


def faults(case: str, folder: Path, *, killed: tuple[int, ...] = ()) -> dict[str, Any]:
    return check(run('faults.py', 3, folder, case), killed=killed)[0]


@pytest.mark.parametrize(
    ('case', 'kind', 'base', 'killed'),
    [
        ('killed in a call', DIED, 'ConnectionError', (1,)),
        ('killed before backward', DIED, 'ConnectionError', (1,)),
        ('killed before backward, within a context', DIED, 'ConnectionError', (1,)),
        ('late', LATE, 'TimeoutError', ()),
        ('a call that never ends', LATE, 'TimeoutError', ()),
        ('killed before backward, late when repeated', LATE, 'TimeoutError', (1,)),
    ],
)
def test_typed_errors(tmp_path: Path, case: str, kind: str, base: str, killed: tuple[int, ...]) -> None:
    """Every error names the worker, is of its type, comes long before torch's own limits, and all processes end."""
    found = faults(case, tmp_path, killed=killed)
    error = found['error']
    assert error['type'] == kind
    assert error['worker'] in ((0, 2) if 'when repeated' in case else (1,))
    assert {base, 'WorkerError', 'RuntimeError'} <= set(error['bases'])
    assert f'orker {error["worker"]}' in error['text']
    assert error['seconds'] < 20
    if case == 'killed in a call':
        assert found['later']['type'] == DIED
    if case in ('killed before backward', 'killed before backward, late when repeated'):
        assert found['grad'] is None  # nothing was added in part


@pytest.mark.parametrize(
    ('case', 'killed'),
    [
        ('killed in a call, repeated', (1,)),
        ('killed before backward, repeated', (1,)),
        ('all others killed, repeated here', (1, 2)),
        ('late, repeated', ()),
    ],
)
def test_repeated_calls_give_the_same_numbers(tmp_path: Path, case: str, killed: tuple[int, ...]) -> None:
    found = faults(case, tmp_path, killed=killed)
    assert found
    for got, expected in found.values():
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_the_others_end_when_rank_0_fails(tmp_path: Path) -> None:
    first, *others = run('faults.py', 3, tmp_path, 'rank 0 fails')
    assert first.status != 0  # which a launcher sees
    assert 'ValueError: rank 0 fails' in first.output
    assert [p.status for p in others] == [0, 0]


def test_the_others_end_when_rank_0_dies(tmp_path: Path) -> None:
    first, *others = run('faults.py', 3, tmp_path, 'rank 0 dies')
    assert first.status == KILLED
    assert [p.status for p in others] == [0, 0]


def test_a_main_function_that_does_not_return_is_left_behind(tmp_path: Path) -> None:
    first, *others = run('faults.py', 3, tmp_path, 'a main function that does not return')
    assert first.found['reached']
    assert [p.status for p in (first, *others)] == [0, 0, 0]
    assert 'the main functions of workers [1] did not return within 3 s' in first.output
