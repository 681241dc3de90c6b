# SPDX-License-Identifier: Apache-2.0
"""Divergences, smoothing and ranking against Optax."""

from __future__ import annotations

import pytest

from tests.losses.parity import check_double, check_single, fits_single_precision, titles

TITLES = titles(
    'kl_divergence',
    'kl_divergence_with_log_targets',
    'generalized_kl_divergence',
    'convex_kl_divergence',
    'smooth_labels',
    'ranking_softmax_loss',
)


@pytest.mark.parametrize('title', TITLES)
def test_double_precision(title: str) -> None:
    check_double(title)


@pytest.mark.parametrize('title', [t for t in TITLES if fits_single_precision(t)])
def test_single_precision(title: str) -> None:
    check_single(title)
