# SPDX-License-Identifier: Apache-2.0
"""Snapshots of trees of tensors, for tests that nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchopt import tree


class Snapshot:
    """The tensors of trees, their values, and the structure around them."""

    def __init__(self, *trees: Any) -> None:
        self.trees = trees
        self.leaves, self.spec = tree.flatten(trees)
        self.values = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in self.leaves]

    def check(self, *now: Any) -> None:
        """Require that the trees (or their replacements ``now``) are bitwise unchanged."""
        leaves, spec = tree.flatten(now or self.trees)
        assert spec == self.spec
        for x, old, value in zip(leaves, self.leaves, self.values, strict=True):
            assert x is old
            if isinstance(x, torch.Tensor):
                assert x.dtype == value.dtype
                torch.testing.assert_close(x.detach(), value, rtol=0.0, atol=0.0, equal_nan=True)


def refuses(
    act: Callable[[], Any], error: type[Exception], words: list[str], *kept: Any, now: Callable[[], Any] | None = None
) -> None:
    """Require that a call raises, that the message contains all the words, and that ``kept`` does not change.

    ``now`` returns the trees to compare with ``kept`` afterwards, if an object could have replaced them.
    """
    before = Snapshot(*kept)
    with pytest.raises(error) as caught:
        act()
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), f'{word!r} is not in: {caught.value}'
    before.check(*(() if now is None else now()))
