# SPDX-License-Identifier: Apache-2.0
"""Distributed MAML as it is written for TorchOpt 0.7.3 learns what one process learns, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.job import check, run


@pytest.fixture(scope='module')
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return check(run('maml_by_rref.py', 2, tmp_path_factory.mktemp('maml')))[0]


@pytest.mark.parametrize('name', ['tasks that are sent', 'tasks of the workers'])
def test_it_learns_as_in_one_process(found: dict[str, Any], name: str) -> None:
    (log, net), (expected_log, expected_net) = found[name], found['here']
    torch.testing.assert_close(log, expected_log, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(net, expected_net, rtol=1e-9, atol=1e-11)
    assert log[-1][0] < log[0][0]
