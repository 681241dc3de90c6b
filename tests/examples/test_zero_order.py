# SPDX-License-Identifier: Apache-2.0
"""The examples of zero-order differentiation run from end to end, and say what they mean to say."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

mpl.use('agg')
sys.path.insert(0, str(Path(__file__).parents[2] / 'examples'))

import zero_order_accuracy
import zero_order_black_box
import zero_order_estimators

pytestmark = pytest.mark.long


def is_picture(path: Path) -> bool:
    return mpl.image.imread(path).ndim == 3


def test_accuracy(tmp_path, capsys):
    picture = tmp_path / 'accuracy.png'
    scores = zero_order_accuracy.main(['--quick', '--output', str(picture)])
    assert list(scores) == ['cross-entropy, backpropagation', '0-1 loss, forward', '0-1 loss, antithetic']
    assert all(0.0 <= score <= 1.0 for score in scores.values())
    assert is_picture(picture)
    assert 'right answers on test images' in capsys.readouterr().out


def test_a_share_of_the_training_labels_is_wrong():
    clean, noisy = (zero_order_accuracy.load(wrong, torch.Generator().manual_seed(0)) for wrong in (0.0, 0.3))
    assert torch.equal(clean.test_labels, noisy.test_labels)
    assert (clean.labels != noisy.labels).float().mean() == pytest.approx(0.3, abs=0.05)


def test_black_box(tmp_path, capsys):
    picture = tmp_path / 'black_box.png'
    result = zero_order_black_box.main(['--quick', '--workers', '1', '--output', str(picture)])
    assert set(result) == {'start', 'zero-order descent', 'random search'}
    assert all(0.0 < value < 200.0 for value in result.values())
    assert is_picture(picture)
    assert 'cross-validated error after 7 evaluations' in capsys.readouterr().out


def test_hyper_parameters_stay_in_their_range():
    values = zero_order_black_box.settings(torch.tensor([0.0, -100.0, 100.0]))
    assert values['learning_rate'] == pytest.approx(0.05)
    assert values['min_samples_leaf'] == 3
    assert values['l2_regularization'] == pytest.approx(torch.tensor(5.0).exp().item())


def test_estimators(tmp_path, capsys):
    picture = tmp_path / 'estimators.png'
    errors = zero_order_estimators.main(['--quick', '--output', str(picture)])
    assert set(errors) == set(zero_order_estimators.ESTIMATORS)
    assert errors['naive'][0].scatter > 10 * errors['forward'][0].scatter
    assert errors['orthogonal'][0].scatter < errors['antithetic'][0].scatter
    assert is_picture(picture)
    assert 'bias / scatter' in capsys.readouterr().out
