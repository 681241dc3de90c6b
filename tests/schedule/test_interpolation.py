# SPDX-License-Identifier: Apache-2.0
"""Schedules that interpolate, cycle and restart: against Optax in float64, for tensors, under transforms."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

from torchopt import schedule

COUNTS = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 12, 15, 17, 19, 20, 21, 30, 100]
CYCLE = {'init_value': 0.1, 'peak_value': 1.0, 'warmup_steps': 2, 'decay_steps': 8, 'end_value': 0.05}
CASES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    'lines': ('piecewise_interpolate_schedule', ('linear', 0.5, {3: 2.0, 10: 0.1}), {}),
    'waves': ('piecewise_interpolate_schedule', ('cosine', 0.5, {10: 0.5, 3: 2.0, 20: 0.0}), {}),
    'from the start': ('piecewise_interpolate_schedule', ('linear', 0.5, {0: 2.0, 1: 0.5, 9: 3.0}), {}),
    'no boundaries': ('piecewise_interpolate_schedule', ('linear', 0.5), {}),
    'one cycle of lines': ('linear_onecycle_schedule', (20, 0.3), {}),
    'one cycle of lines, options': ('linear_onecycle_schedule', (20, 0.3, 0.2, 0.5, 10.0, 100.0), {}),
    'one cycle of waves': ('cosine_onecycle_schedule', (20, 0.3), {}),
    'one cycle of waves, options': ('cosine_onecycle_schedule', (20, 0.3, 0.5, 4.0, 10.0), {}),
    'short cycle': ('linear_onecycle_schedule', (1, 0.3), {}),
    'warmup exponential': ('warmup_exponential_decay_schedule', (0.1, 1.0, 5, 3, 0.7), {}),
    'warmup stairs': (
        'warmup_exponential_decay_schedule',
        (0.1, 1.0, 5, 3, 0.5),
        {'transition_begin': 2, 'staircase': True, 'end_value': 0.2},
    ),
    'restarts': ('sgdr_schedule', ([CYCLE, {**CYCLE, 'peak_value': 0.5}, {**CYCLE, 'decay_steps': 4}],), {}),
    'one restart': ('sgdr_schedule', ([CYCLE],), {}),
}
every_case = pytest.mark.parametrize('name', CASES)


def made(name: str, library: Any) -> Any:
    function, args, options = CASES[name]
    return getattr(library, function)(*args, **options)


@every_case
def test_parity_with_optax(name: str) -> None:
    with jax.enable_x64(True):
        theirs = made(name, optax.schedules)
        wanted = np.asarray(jax.vmap(theirs)(np.asarray(COUNTS, dtype=np.float64)))
    ours = made(name, schedule)
    for kind in (int, float, torch.tensor):
        found = [ours(kind(t)) for t in COUNTS]
        assert {type(x) for x in found} == {float}
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-15)
    mapped = torch.func.vmap(ours)(torch.tensor(COUNTS))
    np.testing.assert_allclose(mapped, wanted, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours(torch.tensor(COUNTS)), wanted, rtol=1e-12, atol=1e-15)
    assert pickle.loads(pickle.dumps(ours))(7) == ours(7)


@pytest.mark.parametrize('name', ['lines', 'waves', 'warmup stairs', 'restarts'])
def test_compile_without_graph_breaks(name: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(made(name, schedule), fullgraph=True, backend='eager')
    for t in (2, 7):
        np.testing.assert_allclose(compiled(torch.tensor(t)), made(name, schedule)(t), rtol=1e-12)


@pytest.mark.parametrize('name', sorted({function for function, *_ in CASES.values()}))
def test_arguments_are_optaxs(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(x, name)).parameters.values() for x in (schedule, optax.schedules))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


def test_a_learned_peak() -> None:
    peak = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for make in (schedule.linear_onecycle_schedule, schedule.cosine_onecycle_schedule):
        (slope,) = torch.autograd.grad(make(20, peak)(7), peak)
        assert float(slope) == pytest.approx(make(20, 1.0)(7))


REFUSED = [
    (lambda: schedule.piecewise_interpolate_schedule('square', 1.0), 'interpolate_type'),
    (lambda: schedule.piecewise_interpolate_schedule('linear', 1.0, {3: -1.0}), 'non-negative'),
    (lambda: schedule.linear_onecycle_schedule(0, 1.0), 'transition_steps'),
    (lambda: schedule.cosine_onecycle_schedule(-1, 1.0), 'transition_steps'),
    (lambda: schedule.cosine_onecycle_schedule(9, 1.0, div_factor=0.0), 'div_factor'),
    (lambda: schedule.sgdr_schedule([]), 'cosine_kwargs'),
]


@pytest.mark.parametrize(('make', 'word'), REFUSED)
def test_bad_arguments(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
