# SPDX-License-Identifier: Apache-2.0
"""When a learning rate is reduced: at plateaus of any sign."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchopt import contrib

VALUES: dict[str, Callable[[int], float]] = {
    'positive': lambda t: 2.0,
    'negative': lambda t: -2.0,
    'zero': lambda t: 0.0,
    'falls through zero': lambda t: 3.0 - min(t, 5),
    'falls ever less below zero': lambda t: -3.0 + 0.5**t,
    'rises below zero': lambda t: -3.0 + 0.1 * t,
    'large': lambda t: -1e30,
}


def scales(values: list[float], **options: Any) -> list[float]:
    tx = contrib.reduce_on_plateau(factor=0.5, patience=3, **options)
    state, found = tx.init(torch.zeros(())), []
    for value in values:
        updates, state = tx.update(torch.ones(()), state, value=value)
        found.append(updates.item())
    return found


@pytest.mark.parametrize('name', VALUES)
def test_plateaus_of_any_sign(name: str) -> None:
    """The least value so far has to be undercut by a share of its size."""
    values, wanted = [VALUES[name](t) for t in range(14)], []
    best, since, scale = float('inf'), 0, 1.0
    for value in values:
        better = best == float('inf') or value < best - 0.01 * abs(best)
        best, since = (value, 0) if better else (best, since + 1)
        if since == 3:
            scale, since = 0.5 * scale, 0
        wanted.append(scale)
    assert scales(values, rtol=0.01) == wanted
    assert wanted[-1] < 1.0


def test_a_shift_does_not_matter_to_absolute_improvements() -> None:
    values = [1.0, 0.5, 0.45, 0.44, 0.43, 0.42, 0.41, 0.2]
    assert scales(values, rtol=0.0, atol=0.1) == scales([v - 7.0 for v in values], rtol=0.0, atol=0.1)


def test_the_first_value_is_better_than_none() -> None:
    assert scales([5.0, 5.0, 5.0], rtol=1.0) == [1.0, 1.0, 1.0]
    assert scales([5.0, -1.0, 4.0, 4.0], rtol=1.0) == [1.0] * 4


def test_in_a_batch_each_has_its_own_plateau() -> None:
    tx = contrib.reduce_on_plateau(factor=0.5, patience=2)

    def final(values: torch.Tensor) -> torch.Tensor:
        state = tx.init(torch.zeros(()))
        for value in values:
            updates, state = tx.update(torch.ones(()), state, value=value)
        return updates

    values = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -2.0, -3.0], [1.0, 1.0, 1.0]])
    assert torch.func.vmap(final)(values).tolist() == [0.5, 1.0, 0.5]
