# SPDX-License-Identifier: Apache-2.0
"""The CTC loss against Optax."""

from __future__ import annotations

import pytest

from tests.losses.parity import check_double, check_single, fits_single_precision, titles

TITLES = titles('ctc_loss', 'ctc_loss_with_forward_probs')


@pytest.mark.parametrize('title', TITLES)
def test_double_precision(title: str) -> None:
    check_double(title)


@pytest.mark.parametrize('title', [t for t in TITLES if fits_single_precision(t)])
def test_single_precision(title: str) -> None:
    check_single(title)
