# SPDX-License-Identifier: Apache-2.0
"""Cross entropies against Optax."""

from __future__ import annotations

import pytest

from tests.losses.parity import check_double, check_single, fits_single_precision, titles

TITLES = titles(
    'softmax_cross_entropy',
    'softmax_cross_entropy_with_integer_labels',
    'safe_softmax_cross_entropy',
    'poly_loss_cross_entropy',
)


@pytest.mark.parametrize('title', TITLES)
def test_double_precision(title: str) -> None:
    check_double(title)


@pytest.mark.parametrize('title', [t for t in TITLES if fits_single_precision(t)])
def test_single_precision(title: str) -> None:
    check_single(title)
