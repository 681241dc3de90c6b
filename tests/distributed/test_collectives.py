# SPDX-License-Identifier: Apache-2.0
"""Collectives and shared tasks: values and derivatives of every order are those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.job import check, run

PAIRS = [
    'tasks',
    'fewer tasks than ranks',
    'own tasks, unevenly',
    'with graphs',
    'training',
    'what tasks return beside the loss',
    'every derivative of tasks',
    'every derivative of all_reduce',
    'parameters that depend on each other',
    'parameters that depend on each other, first order',
    'a tensor that occurs twice',
    'parameters after an inner step',
    'parameters after an inner step, with graphs',
    'torch.func.grad',
    'torch.func.hessian',
    'torch.func.jacfwd',
    'torch.func.vmap of grad',
    'a tree of all kinds',
    'gradients of mixed dtypes',
    'a group',
    'without a graph',
]
# For each error its type, what its text says, and whether it is that of another rank on those that did not fail.
ERRORS = {
    'a task that fails': ('KeyError', 'task 3', True),
    'a task that cannot be had': ('OSError', 'no such task', True),
    'a loss that is none': ('TypeError', 'scalar', False),
    'no tasks': ('ValueError', 'no tasks', False),
    'other tasks': ('ValueError', 'number of tasks differs', False),
    'nothing to train': ('ValueError', 'requires grad', False),
    'second order': ('RuntimeError', 'create_graph=True', False),
    'torch.func': ('RuntimeError', 'all_reduce(fn(replicate(params)', False),
    'reduction': ('ValueError', 'reduction', False),
    'op': ('ValueError', "'sum' or 'mean'", False),
    'mean of integers': ('ValueError', 'integers', False),
    'no tensor': ('TypeError', "values['a'] is a float", False),
}


@pytest.fixture(scope='module', params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return check(run('collectives.py', request.param, tmp_path_factory.mktemp('collectives')))


def test_all_that_was_found_is_tested(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert set(one['pairs']) == set(PAIRS)
        assert set(one['errors']) == {*ERRORS, 'warnings'}


@pytest.mark.parametrize('name', PAIRS)
def test_equal_to_one_process(found: list[dict[str, Any]], name: str) -> None:
    for one in found:
        got, expected = one['pairs'][name]
        torch.testing.assert_close(
            got, expected, rtol=1e-10 if name != 'gradients of mixed dtypes' else 1e-2, atol=1e-12
        )


@pytest.mark.parametrize('name', ERRORS)
def test_every_rank_raises(found: list[dict[str, Any]], name: str) -> None:
    kind, text, elsewhere = ERRORS[name]
    for one in found:
        error = one['errors'][name]
        assert error['type'] == kind
        assert text in error['text']
    if elsewhere:  # the last rank had the task
        assert all(f'Traceback on worker {len(found) - 1}' in one['errors'][name]['cause'] for one in found[:-1])


def test_a_lost_gradient_is_warned_of(found: list[dict[str, Any]]) -> None:
    """Once, and not for what the loss made for itself."""
    for one in found:
        texts = one['errors']['warnings']['texts']
        assert len(texts) == 1
        assert 'not in params' in texts[0]
