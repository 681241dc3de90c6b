# SPDX-License-Identifier: Apache-2.0
"""Remote calls: values, gradients and errors are those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.job import check, run

PAIRS = [
    'a mean over 8 items of 3 workers',
    'meta-gradients',
    'along another dimension',
    'a tree for each item',
    'second derivatives',
    'several outputs',
    'what is no tensor',
    'graph of a graph',
    'differentiated twice over',
    'arguments come back as they were',
    'written arguments come back as copies',
    'our own share is done apart from us',
    'what several shares hold is one thing in each',
    'a trained module',
    'parameters of a worker',
    'parameters of a worker alone',
    'without a graph',
    'in a context of distributed autograd',
    'strided, empty, 0-d, complex and half tensors',
    'the sum of nothing',
    'graphs that are left on a worker',
    'after a backward pass nothing is kept',
]
# For each error its type, and what its text and the text of its cause say.
ERRORS = {
    'the exception of the function': ('KeyError', 'this key', 'Traceback on worker 1'),
    'an exception that cannot be pickled': ('WorkerError', 'PickyError: ab', 'in fail_picky'),
    'a result that cannot be pickled': ('TypeError', 'cannot be sent back', 'Traceback on worker 1'),
    'a lambda': ('TypeError', 'cannot be sent to another process', ''),
    'a partitioner': ('TypeError', 'Invalid partitioner: 1.5', ''),
    'an unknown name': ('RuntimeError', 'nobody', ''),
    'no parts': ('ValueError', 'no parts', ''),
    'retries': ('ValueError', 'retries', ''),
    'func': ('TypeError', 'func is an int', ''),
    'sizes': ('ValueError', r'args[1] has size 3 there and args[2] has size 2', ''),
    'a reducer': ('ZeroDivisionError', 'division', ''),
    'torch.func': ('RuntimeError', 'torch.func', ''),
    'a failing gradient': ('ZeroDivisionError', 'in the gradient', 'Traceback on worker 1'),
}


@pytest.fixture(scope='module')
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return check(run('calls.py', 3, tmp_path_factory.mktemp('calls')))


def test_the_tables_are_whole(found: list[dict[str, Any]]) -> None:
    assert set(found[0]['pairs']) == set(PAIRS)
    assert set(found[0]['errors']) == set(ERRORS)


@pytest.mark.parametrize('name', PAIRS)
def test_calls_equal_one_process(found: list[dict[str, Any]], name: str) -> None:
    got, expected = found[0]['pairs'][name]
    compare(got, expected)


def compare(got: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for a, b in zip(got, expected):
            compare(a, b)
    else:
        assert got == expected


@pytest.mark.parametrize('name', ERRORS)
def test_errors(found: list[dict[str, Any]], name: str) -> None:
    kind, text, cause = ERRORS[name]
    error = found[0]['errors'][name]
    assert error['type'] == kind
    assert text in error['text']
    assert cause in error['cause']


def test_the_world(found: list[dict[str, Any]]) -> None:
    assert found[0]['info'] == {'init': [[0], [1], [2]], 'names': [0, 1, 2], 'own name': 'worker0'}
    assert [f['rank'] for f in found[1:]] == [1, 2]
    assert [f['only zero'] for f in found[1:]] == [None, None]
