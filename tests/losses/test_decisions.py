# SPDX-License-Identifier: Apache-2.0
"""Losses of yes-or-no decisions and of class scores against Optax."""

from __future__ import annotations

import pytest

from tests.losses.parity import check_double, check_single, fits_single_precision, titles

TITLES = titles(
    'sigmoid_binary_cross_entropy',
    'sigmoid_focal_loss',
    'hinge_loss',
    'perceptron_loss',
    'sparsemax_loss',
    'multiclass_hinge_loss',
    'multiclass_perceptron_loss',
    'multiclass_sparsemax_loss',
)


@pytest.mark.parametrize('title', TITLES)
def test_double_precision(title: str) -> None:
    check_double(title)


@pytest.mark.parametrize('title', [t for t in TITLES if fits_single_precision(t)])
def test_single_precision(title: str) -> None:
    check_single(title)
