# SPDX-License-Identifier: Apache-2.0
"""Loops of our own tell how far they are, by a function or a bar, and compute the same with and without."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import torchopt
from torchopt import progress
from torchopt.distributed import map_tasks
from torchopt.zero_order_diff import zero_order

NORMAL = torch.distributions.Normal(0.0, 1.0)


def gradient(callback, **options):
    """A zero-order gradient of 6 directions."""
    torch.manual_seed(0)
    w = torch.ones(2, requires_grad=True)
    zero_order(NORMAL, num_samples=6, callback=callback, **options)(lambda w: w.square().sum())(w).backward()
    return w.grad


def test_map_tasks_reports_each_task():
    calls, w = [], torch.tensor(3.0, requires_grad=True)
    loss = map_tasks(lambda w, x: (w - x) ** 2, [1.0, 2.0, 3.0], w, callback=lambda *call: calls.append(call))
    loss.backward()
    assert calls == [(1, 3), (2, 3), (3, 3)]
    torch.testing.assert_close(w.grad, torch.tensor(2.0))


@pytest.mark.parametrize(
    ('options', 'expected'),
    [
        ({'vectorize': False}, list(range(1, 7))),
        ({'vectorize': False, 'method': 'antithetic', 'chunk_size': 4}, list(range(1, 13))),
        ({'vectorize': True, 'chunk_size': 4}, [4, 6]),
        ({'vectorize': True, 'method': 'antithetic', 'chunk_size': 4}, [8, 12]),
        ({'executor': 'threads'}, list(range(1, 7))),
    ],
)
def test_zero_order_reports_evaluations(options, expected):
    calls = []
    with ThreadPoolExecutor(2) as threads:
        if 'executor' in options:
            options = {'executor': threads}
        found = gradient(lambda *call: calls.append(call), **options)
        torch.testing.assert_close(found, gradient(None, **options), rtol=0, atol=0)
    assert calls == [(done, expected[-1]) for done in expected]


def test_a_function_that_vmap_does_not_support_reports_once():
    """After the failure the loop reports each evaluation; the attempt reported nothing."""
    calls, w = [], torch.ones(2, requires_grad=True)
    fn = zero_order(NORMAL, num_samples=3, callback=lambda *call: calls.append(call))(lambda w: w.sum() * w[0].item())
    fn(w).backward()
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_bars(capsys):
    """A bar for every loop, also after one that failed."""
    gradient('bar', vectorize=False)
    assert 'evaluations: 100%' in capsys.readouterr().err
    report = progress.reporter('bar', 'steps')
    report(1, 3)
    report(1, 2)
    report(2, 2)
    assert 'steps: 100%' in capsys.readouterr().err
    torchopt.GradientDescent(lambda x: (x**2).sum(), maxiter=3, verbose='bar').run(torch.ones(2))
    assert 'GradientDescent' in capsys.readouterr().err


def test_refusals(monkeypatch):
    for bad in ('line', 3):
        with pytest.raises(TypeError, match=r'Invalid callback: .* expected a function'):
            zero_order(NORMAL, callback=bad)
    monkeypatch.setitem(sys.modules, 'tqdm.auto', None)
    with pytest.raises(ImportError, match='pip install tqdm'):
        map_tasks(lambda w, x: w * x, [1.0], torch.ones((), requires_grad=True), callback='bar')
    with pytest.raises(ImportError, match='pip install tqdm'):
        torchopt.GradientDescent(lambda x: (x**2).sum(), verbose='bar').run(torch.ones(2))
