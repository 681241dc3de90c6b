# SPDX-License-Identifier: Apache-2.0
"""Plots show the numbers that they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
import torch

mpl.use('agg')
import matplotlib.pyplot as plt

import torchopt
from torchopt.visual import plot_landscape, plot_schedule


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    plt.close('all')


def bowl(p: torch.Tensor) -> torch.Tensor:
    return p[0] ** 2 + 4 * p[1] ** 2


def test_schedules() -> None:
    decay = torchopt.schedule.linear_schedule(1.0, 0.0, transition_steps=4)
    ax = plot_schedule({'linear': decay, 'constant': 0.5, 'tensor': lambda t: torch.tensor(t) + 1}, 6)
    rows = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    assert rows == {
        'linear': ([0, 1, 2, 3, 4, 5], [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]),
        'constant': ([0, 1, 2, 3, 4, 5], [0.5] * 6),
        'tensor': ([0, 1, 2, 3, 4, 5], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
    }
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ['linear', 'constant', 'tensor']


def test_one_schedule_on_given_axes() -> None:
    _, mine = plt.subplots()
    assert plot_schedule(lambda t: 10.0**-t, 3, ax=mine, log=True) is mine
    assert mine.get_yscale() == 'log'
    assert mine.get_legend() is None
    assert mine.get_xlabel() == 'step'


def test_the_paths_are_those_of_the_optimizers() -> None:
    start = (1.0, -0.5)
    ax = plot_landscape(bowl, {'SGD': torchopt.sgd(0.1), 'given': [[0, 0], [1, 1]]}, start=start, steps=3, resolution=9)
    sgd, given = ax.lines
    np.testing.assert_allclose(sgd.get_xdata(), [0.8**t for t in range(4)])
    np.testing.assert_allclose(sgd.get_ydata(), [-0.5 * 0.2**t for t in range(4)])
    assert (list(given.get_xdata()), list(given.get_ydata())) == ([0, 1], [0, 1])
    assert [line.get_label() for line in ax.lines] == ['SGD', 'given']


def test_a_torch_optimizer_takes_the_same_path() -> None:
    p = torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([p], lr=0.1)
    points = [p.tolist()]
    for _ in range(20):
        optimizer.zero_grad()
        bowl(p).backward()
        optimizer.step()
        points.append(p.tolist())
    ax = plot_landscape(bowl, {'Adam': torchopt.adam(0.1)}, start=(1.0, -0.5), steps=20, resolution=9)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), points, rtol=1e-9)


def test_the_map_holds_all_paths() -> None:
    ax = plot_landscape(bowl, [[[0.0, 0.0], [10.0, 1.0]]], minima=[(0, -3)], resolution=5)
    (x_low, x_high), (y_low, y_high) = ax.get_xlim(), ax.get_ylim()
    assert x_low < 0 < 10 < x_high
    assert y_low < -3 < 1 < y_high
    ax = plot_landscape(bowl, bounds=((-1, 1), (-2, 2)), resolution=5)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-2, 2))
    assert ax.get_legend() is None


@pytest.mark.parametrize('log', [False, True])
def test_the_levels_span_the_heights(log: bool) -> None:
    ax = plot_landscape(bowl, bounds=((-1, 1), (-1, 1)), resolution=11, levels=6, log=log)
    levels = ax.collections[0].levels
    assert len(levels) == 7
    assert (levels[0], levels[-1]) == (0.0, 5.0)
    gaps = np.diff(levels)
    assert (gaps > 0).all()
    assert (np.diff(gaps) > 0).all() == log


def test_a_function_that_cannot_be_mapped_and_one_that_is_not_finite() -> None:
    ax = plot_landscape(lambda p: torch.tensor(p[0].item() ** 2), bounds=((-1, 1), (0, 1)), resolution=5)
    assert ax.collections[0].levels[-1] == 1.0
    ax = plot_landscape(lambda p: p[0].log(), bounds=((-1, 1), (0, 1)), resolution=5)
    assert np.isfinite(ax.collections[0].levels).all()


def test_a_path_ends_where_it_is_not_finite() -> None:
    ax = plot_landscape(bowl, torchopt.sgd(1e200), start=(1, 1), steps=9, bounds=((-1, 1), (-1, 1)), resolution=3)
    assert 1 <= len(ax.lines[0].get_xdata()) < 9
    assert np.isfinite(ax.lines[0].get_xydata()).all()


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda: plot_schedule(0.1, 0), ValueError, r'steps: 0 is not positive'),
        (lambda: plot_schedule(0.1, 1.5), TypeError, r'steps: 1.5 is a float'),
        (lambda: plot_schedule({}, 3), ValueError, r'schedules: the mapping is empty'),
        (lambda: plot_schedule({'a': 'x'}, 3), TypeError, r"schedules\['a'\]: 'x' is a str"),
        (lambda: plot_landscape(bowl), ValueError, r'bounds: required if there are no paths'),
        (lambda: plot_landscape(bowl, bounds=((1, 0), (0, 1))), ValueError, r'bounds: .* is empty'),
        (lambda: plot_landscape(bowl, {'a': torchopt.sgd(0.1)}), ValueError, r"start: paths\['a'\] is a gradient"),
        (lambda: plot_landscape(bowl, torchopt.sgd(0.1), start=(1,)), ValueError, r'start: its shape is \(1,\)'),
        (lambda: plot_landscape(bowl, {'a': [1, 2]}), ValueError, r"paths\['a'\]: its shape is \(2,\)"),
        (lambda: plot_landscape(bowl, {'a': 'x'}), TypeError, r"paths\['a'\]: 'x' is neither"),
        (lambda: plot_landscape(bowl, 3), TypeError, r'paths: 3 is an int'),
        (lambda: plot_landscape(bowl, bounds=((0, 1), (0, 1)), resolution=1), ValueError, r'resolution: 1 point'),
        (
            lambda: plot_landscape(lambda p: p[0] * torch.nan, bounds=((0, 1), (0, 1)), resolution=3),
            ValueError,
            r'function: no value within bounds is finite',
        ),
    ],
)
def test_refusals(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    with pytest.raises(ImportError, match=r'pip install torchopt\[visual\]'):
        plot_schedule(0.1, 3)
