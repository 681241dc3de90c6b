# SPDX-License-Identifier: Apache-2.0
"""The states of momentum: one entry, unless dampening has to know the first step."""

from __future__ import annotations

import pytest
import torch

from torchopt import transform


def test_only_dampening_counts() -> None:
    params = [torch.zeros(2)]
    assert transform.trace(0.9).init(params)._fields == ('trace',)
    assert transform.trace(0.9, nesterov=True).init(params)._fields == ('trace',)
    damped = transform.trace(0.9, dampening=0.5)
    state = damped.init(params)
    assert isinstance(state, transform.DampedTraceState)
    first, state = damped.update([torch.ones(2)], state)
    second, state = damped.update([torch.ones(2)], state)
    assert int(state.count) == 2
    torch.testing.assert_close([first[0], second[0]], [torch.ones(2), torch.full((2,), 1.4)])
    with pytest.raises(ValueError, match='expected a DampedTraceState'):
        damped.update([torch.ones(2)], transform.trace(0.9).init(params))


def test_the_accumulator_is_rounded_and_the_update_is_not() -> None:
    tx = transform.trace(0.5, accumulator_dtype=torch.bfloat16)
    state = tx.init([torch.zeros(1)])
    (update,), state = tx.update([torch.tensor([1.001])], state)
    assert update.item() == pytest.approx(1.001)
    assert state.trace[0].dtype is torch.bfloat16
    assert state.trace[0].item() == 1.0
    with pytest.raises(TypeError, match='expected a floating dtype'):
        transform.trace(0.5, accumulator_dtype=torch.int64)
