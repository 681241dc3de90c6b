# SPDX-License-Identifier: Apache-2.0
"""A selection by a test that is a tensor has the value and the kind of the selection by a Python bool."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from torchopt.scalars import where

PAIRS = [(1, 0.5), (0.5, 1), (True, 2.5), (2, True), (1, 2), (True, False), (1.5, 2.5)]


@pytest.mark.parametrize('test', [True, False])
@pytest.mark.parametrize(('x', 'y'), PAIRS)
def test_numbers_of_different_types_keep_their_values(x: Any, y: Any, test: bool) -> None:
    found = where(torch.tensor(test), x, y)
    assert found.item() == where(test, x, y)
    assert found.is_floating_point() == (type(x) is not type(y) or isinstance(x, float))
