# SPDX-License-Identifier: Apache-2.0
"""Optimizers on sharded parameters give the numbers of one process, or say clearly that they cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.job import check, run

NAMES = ['SGD', 'Adam', 'AdamW', 'AdaGrad', 'AdaDelta', 'AdaMax', 'RAdam', 'RMSProp']


@pytest.fixture(scope='module')
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return check(run('sharded.py', 2, tmp_path_factory.mktemp('sharded')))


@pytest.mark.parametrize('kind', ['class', 'function'])
@pytest.mark.parametrize('name', NAMES)
def test_equal_to_one_process(found: list[dict[str, Any]], name: str, kind: str) -> None:
    """Parameters and moments after five steps under FSDP; and those of three steps on DTensors, with meta-gradients."""
    for one in found:
        got, expected, sharded = one['found'][f'{name} {kind}']
        assert len(got) == len(expected) >= 4
        assert sharded
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('way', ['reverse', 'mixed', 'checkpoint', 'closure'])
def test_recomputed_gradients(found: list[dict[str, Any]], way: str) -> None:
    """Parameters and meta-gradients of two steps on DTensors, whose gradients are recomputed."""
    for one in found:
        got, expected, sharded = one['found'][f'{way} recomputed']
        assert len(got) == len(expected) == 8
        assert sharded
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('face', 'kind', 'text'),
    [
        ('MetaOptimizer', 'TypeError', 'The module is under FSDP'),
        ('MetaOptimizer of a part', 'TypeError', "The submodule 'body' is under FSDP"),
        ('FuncOptimizer', 'RuntimeError', 'under FSDP'),
        ('FuncOptimizer by closure', 'RuntimeError', 'a module under FSDP, which computes with its own parameters'),
        ('grad', 'RuntimeError', 'The function calls a module under FSDP'),
        ('recomputed grad', 'RuntimeError', 'The function calls a module under FSDP'),
        ('checkpoint', 'RuntimeError', 'The function calls a module under FSDP'),
        ('map_tasks', 'TypeError', 'DTensors'),
    ],
)
def test_refusals(found: list[dict[str, Any]], face: str, kind: str, text: str) -> None:
    for one in found:
        assert one[face]['type'] == kind
        assert text in one[face]['text']
