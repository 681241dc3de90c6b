# SPDX-License-Identifier: Apache-2.0
"""Remote calls with an ``RRef`` among the arguments: right gradients by every way to ask for them, or an error."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.job import check, run
from tests.distributed.test_calls import compare

FORMS = ['a module', 'a clone with the graph', 'a tree', 'a scripted module, itself']
WAYS = ['backward', 'backward in a context', 'grad in a context', 'grad', 'second order']
PAIRS = [
    *(f'{form}: {way}' for form in FORMS for way in WAYS),
    'forwarded',
    'a tensor',
    'an object without a graph',
    'an object without gradients',
    'what the worker owns',
    'an RRef comes back',
    'an RRef of what holds it',
    'what it can do',
]
ERRORS = {
    'an object': ('RuntimeError', 'a Holder on worker 0, contains tensors that require grad'),
    'an object in a context': ('RuntimeError', 'a Holder on worker 0, contains tensors that require grad'),
    'an object of another worker': ('RuntimeError', 'a Holder on worker 1, contains tensors that require grad'),
    'a local value that is elsewhere': ('RuntimeError', 'localValue'),
    'a call of torch in a context': ('RuntimeError', 'called torch.distributed.rpc within'),
}


@pytest.fixture(scope='module')
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return check(run('references.py', 2, tmp_path_factory.mktemp('references')))[0]


def test_the_tables_are_whole(found: dict[str, Any]) -> None:
    assert set(found['pairs']) == set(PAIRS)
    assert set(found['errors']) == set(ERRORS)


@pytest.mark.parametrize('name', PAIRS)
def test_gradients_equal_one_process(found: dict[str, Any], name: str) -> None:
    compare(*found['pairs'][name])


@pytest.mark.parametrize('name', ERRORS)
def test_errors(found: dict[str, Any], name: str) -> None:
    kind, text = ERRORS[name]
    assert found['errors'][name]['type'] == kind
    assert text in found['errors'][name]['text']
