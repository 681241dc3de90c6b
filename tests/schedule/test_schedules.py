# SPDX-License-Identifier: Apache-2.0
"""Schedules against Optax in float64, for every kind of count, under every transform."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import pickle
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch

from torchopt import schedule

COUNTS = [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 19, 20, 21, 100]

# name: our schedule, Optax's
CASES: dict[str, tuple[Any, Any]] = {}


def case(name: str, function: str, *args: Any, **kwargs: Any) -> None:
    CASES[name] = (
        lambda: getattr(schedule, function)(*args, **kwargs),
        lambda: getattr(optax, function)(*args, **kwargs),
    )


case('constant', 'constant_schedule', 0.3)
case('linear', 'linear_schedule', 1.0, 0.1, 10)
case('linear rising late', 'linear_schedule', 0.1, 1.0, 10, 5)
case('linear from a negative begin', 'linear_schedule', 0.1, 1.0, 10, -5)
case('linear of no steps', 'linear_schedule', 0.1, 1.0, 0)
case('polynomial', 'polynomial_schedule', 1.0, 0.1, 2.5, 10, 3)
case('square root', 'polynomial_schedule', 1.0, 0.0, 0.5, 10)
case('negative power', 'polynomial_schedule', 1.0, 0.0, -1, 10)
case('negative steps', 'polynomial_schedule', 1.0, 0.1, 2, -1)
case('exponential', 'exponential_decay', init_value=1.0, decay_rate=0.7, transition_steps=5, transition_begin=4)
case(
    'stairs',
    'exponential_decay',
    init_value=1.0,
    decay_rate=0.7,
    transition_steps=5,
    transition_begin=1,
    staircase=True,
)
case('exponential to an end', 'exponential_decay', init_value=1.0, decay_rate=0.5, transition_steps=3, end_value=0.2)
case('growth to an end', 'exponential_decay', init_value=1.0, decay_rate=1.5, transition_steps=3, end_value=3.0)
case('overflow to an end', 'exponential_decay', init_value=1.0, decay_rate=1e300, transition_steps=1, end_value=3.0)
case('overflow', 'exponential_decay', init_value=1.0, decay_rate=1e300, transition_steps=1)
case('no decay', 'exponential_decay', init_value=0.5, decay_rate=0.0, transition_steps=3)
case('exponential of no steps', 'exponential_decay', init_value=0.5, decay_rate=0.5, transition_steps=0)
case('negative begin', 'exponential_decay', init_value=0.5, decay_rate=0.5, transition_steps=2, transition_begin=-3)
case('cosine', 'cosine_decay_schedule', 0.3, 10)
case('cosine to alpha', 'cosine_decay_schedule', 0.3, 10, 0.1, 1.7)
case('warmup cosine', 'warmup_cosine_decay_schedule', 0.0, 0.5, 5, 15)
case('warmup cosine to an end', 'warmup_cosine_decay_schedule', 0.1, 0.5, 5, 15, 0.05, 2.0)
case('warmup cosine of no peak', 'warmup_cosine_decay_schedule', 0.1, 0.0, 5, 15, 0.05)
case('warmup cosine without warmup', 'warmup_cosine_decay_schedule', 0.1, 0.5, 0, 15)
case('warmup', 'warmup_constant_schedule', 0.1, 0.5, 5)
case('pieces', 'piecewise_constant_schedule', 1.0, {5: 0.5, 12: 0.1})
case('pieces out of order', 'piecewise_constant_schedule', 1.0, {12: 0.1, 5: 2.0})
case('one piece', 'piecewise_constant_schedule', 1.0)
CASES['joined'] = tuple(
    lambda s=s: s.join_schedules(
        [s.linear_schedule(0.0, 1.0, 5), s.constant_schedule(0.7), s.cosine_decay_schedule(1.0, 8)], [5, 12]
    )
    for s in (schedule, optax)
)
CASES['joined out of order'] = tuple(
    lambda s=s: s.join_schedules([s.constant_schedule(0.1), s.constant_schedule(0.2), s.constant_schedule(0.3)], [9, 4])
    for s in (schedule, optax)
)

every_case = pytest.mark.parametrize('name', CASES)


def expected_values(name: str) -> np.ndarray:
    with jax.enable_x64(True):
        reference = CASES[name][1]()
        return np.asarray([float(reference(np.float64(t))) for t in COUNTS])


@every_case
def test_parity_with_optax_for_every_kind_of_count(name: str) -> None:
    ours, expected = CASES[name][0](), expected_values(name)
    for kind in (int, float, np.int64, np.float32, torch.tensor, lambda t: torch.tensor(t, dtype=torch.int32)):
        found = [ours(kind(t)) for t in COUNTS]
        assert {type(x) for x in found} == {float}
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@every_case
def test_vmap(name: str) -> None:
    ours = CASES[name][0]()
    found = torch.func.vmap(ours)(torch.tensor(COUNTS))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, [ours(t) for t in COUNTS], rtol=1e-12, atol=1e-15)


@every_case
def test_compile_without_graph_breaks(name: str) -> None:
    torch.compiler.reset()
    ours = CASES[name][0]()
    compiled = torch.compile(ours, fullgraph=True, backend='aot_eager')
    for t in (0, 5, 13):
        found = compiled(torch.tensor(t))
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found, ours(t), rtol=1e-12, atol=1e-15)


@every_case
def test_arrays_of_counts(name: str) -> None:
    ours = CASES[name][0]()
    expected = [ours(t) for t in COUNTS]
    for counts in (torch.tensor(COUNTS), np.asarray(COUNTS)):
        found = ours(counts)
        assert found.shape == (len(COUNTS),)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@every_case
def test_pickle_deepcopy_and_repr(name: str) -> None:
    ours = CASES[name][0]()
    for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert [other(t) for t in COUNTS] == [ours(t) for t in COUNTS]
        assert repr(other) == repr(ours)
    assert ' at 0x' not in repr(ours)
    assert '=' in repr(ours)


@every_case
def test_counts_on_another_device_are_not_read(name: str) -> None:
    found = CASES[name][0]()(torch.zeros((), dtype=torch.int64, device='meta'))
    assert found.device.type == 'meta'  # a meta tensor has no value to read


SIGNATURES = {
    'polynomial_schedule': '(init_value, end_value, power, transition_steps, transition_begin=0)',
    'linear_schedule': '(init_value, end_value, transition_steps, transition_begin=0)',
    'exponential_decay': '(init_value, decay_rate, transition_begin=0, transition_steps=1, staircase=False, '
    'end_value=None)',
}


@pytest.mark.parametrize('name', schedule.__all__)
def test_signatures(name: str) -> None:
    parameters = inspect.signature(getattr(schedule, name)).parameters.values()
    plain = [p.replace(annotation=p.empty) for p in parameters]
    if name in SIGNATURES:  # the order of TorchOpt 0.7.3
        assert str(inspect.Signature(plain)) == SIGNATURES[name]
    elif hasattr(optax, name):
        theirs = inspect.signature(getattr(optax, name)).parameters.values()
        assert [(p.name, p.default) for p in plain] == [(p.name, p.default) for p in theirs]


LEARNED = {
    'constant': schedule.constant_schedule,
    'linear': lambda x: schedule.linear_schedule(x, 0.1 * x, 10),
    'polynomial': lambda x: schedule.polynomial_schedule(x, 0.1, x, 10),
    'exponential': lambda x: schedule.exponential_decay(x, x, 2, 3, False, 0.01 * x),
    'stairs': lambda x: schedule.exponential_decay(x, x, 2, 3, True),
    'cosine': lambda x: schedule.cosine_decay_schedule(x, 10, x, x),
    'warmup cosine': lambda x: schedule.warmup_cosine_decay_schedule(0.1 * x, x, 2, 10, 0.05 * x),
    'pieces': lambda x: schedule.piecewise_constant_schedule(x, {3: x, 6: 0.5}),
    'joined': lambda x: schedule.join_schedules(
        [schedule.linear_schedule(0.0, x, 3), schedule.constant_schedule(x)], [3]
    ),
}


@pytest.mark.parametrize('make', LEARNED.values(), ids=LEARNED)
@pytest.mark.parametrize('t', [0, 2, 4, 7, 30])
def test_gradients_flow_into_hyper_parameters(make: Any, t: int) -> None:
    x = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    for count in (t, torch.tensor(t)):
        value = make(x)(count)
        assert value.dtype == torch.float64
        assert torch.autograd.gradcheck(lambda x, c=count: make(x)(c) + 0 * x, x)
        np.testing.assert_allclose(value.item(), make(0.7)(t), rtol=1e-12)


RATE_LEARNED = {
    'constant': schedule.constant_schedule,
    'linear': lambda x: schedule.linear_schedule(x, 0.1, 10),
    'exponential': lambda x: schedule.exponential_decay(x, x, 2, 3, True, 0.1),
    'cosine': lambda x: schedule.cosine_decay_schedule(x, 10, x, x),
    'warmup cosine': lambda x: schedule.warmup_cosine_decay_schedule(0.0, x, 2, 10, 0.05),
    'pieces': lambda x: schedule.piecewise_constant_schedule(x, {1: x}),
    'joined': lambda x: schedule.join_schedules(
        [schedule.constant_schedule(x), schedule.linear_schedule(x, 0.0, 9)], [1]
    ),
}


@pytest.mark.parametrize('make', RATE_LEARNED.values(), ids=RATE_LEARNED)
def test_one_schedule_backpropagates_at_every_step(make: Any) -> None:
    rate = torch.tensor(0.7, requires_grad=True)
    learned = make(rate)
    for t in range(4):  # a graph made at construction would be gone after the first of them
        (gradient,) = torch.autograd.grad(learned(t), rate)
        assert gradient.dtype == torch.float32
        assert gradient.isfinite()


def test_no_nan_gradient_at_the_edges() -> None:
    peak = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    for made, x in (
        (schedule.warmup_cosine_decay_schedule(0.1, peak, 2, 10, 0.05), peak),
        (schedule.exponential_decay(1.0, rate, 2, 3), rate),
    ):
        for t in (0, 1, 5, 20):
            value = made(t)
            (gradient,) = torch.autograd.grad(value, x)
            assert gradient.isfinite(), t


def test_a_learned_rate_of_zero_is_constant_as_a_number_is() -> None:
    rate = torch.tensor(0.0, requires_grad=True)
    assert [schedule.exponential_decay(0.5, rate, 0, 2)(t).item() for t in (0, 5)] == [0.5, 0.5]


def test_an_ensemble_of_schedules_under_vmap() -> None:
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    found = torch.func.vmap(lambda r: schedule.exponential_decay(r, 0.5, 0, 2, True)(5))(rates)
    np.testing.assert_allclose(found, rates / 4)


def test_tensors_without_gradient_are_read_as_numbers() -> None:
    made = schedule.linear_schedule(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(4))
    assert made(1) == 0.75
    assert type(made(1)) is float


def test_double_precision_late_in_training() -> None:
    t = 2**24 + 1  # float32 cannot tell it from its neighbour
    made = schedule.linear_schedule(1.0, 0.0, 2**25)
    assert made(t) == made(torch.tensor(t)) == 1.0 - t / 2**25
    assert torch.func.vmap(made)(torch.tensor([t])).item() == 1.0 - t / 2**25


@pytest.mark.parametrize(
    'make',
    [
        lambda: schedule.polynomial_schedule(1.0, 0.1, 2, 0),
        lambda: schedule.linear_schedule(1.0, 0.1, -3),
        lambda: schedule.exponential_decay(1.0, 0.5, transition_steps=0),
        lambda: schedule.exponential_decay(1.0, 0.0),
        lambda: schedule.linear_schedule(1.0, 1.0, 3, -2),
    ],
)
def test_degenerate_spans_are_constant_and_logged(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = make()
    assert [made(t) for t in (0, 1, 50)] == [1.0, 1.0, 1.0]
    assert [record.levelno for record in caplog.records] == [logging.INFO]


NAN = math.nan
INVALID = {
    'constant nan': (lambda: schedule.constant_schedule(NAN), ValueError, 'value: nan'),
    'constant string': (lambda: schedule.constant_schedule('0.1'), TypeError, "value: '0.1' is a str"),
    'constant complex': (lambda: schedule.constant_schedule(1j), TypeError, 'complex'),
    'init': (lambda: schedule.linear_schedule(NAN, 0.0, 5), ValueError, 'init_value'),
    'end': (lambda: schedule.linear_schedule(1.0, None, 5), TypeError, 'end_value: None'),
    'power': (lambda: schedule.polynomial_schedule(1.0, 0.0, NAN, 5), ValueError, 'power'),
    'steps': (lambda: schedule.linear_schedule(1.0, 0.0, None), TypeError, 'transition_steps: None'),
    'nan steps': (lambda: schedule.linear_schedule(1.0, 0.0, NAN), ValueError, 'transition_steps'),
    'infinite steps': (lambda: schedule.linear_schedule(1.0, 0.0, math.inf), ValueError, 'finite'),
    'begin': (lambda: schedule.linear_schedule(1.0, 0.0, 5, 'x'), TypeError, 'transition_begin'),
    'steps of decay': (lambda: schedule.exponential_decay(1.0, 0.5, 0, None), TypeError, 'transition_steps'),
    'rate': (lambda: schedule.exponential_decay(1.0, NAN), ValueError, 'decay_rate'),
    'order of Optax': (lambda: schedule.exponential_decay(0.1, 1000, 0.9), ValueError, 'transition_begin=0.9.*Optax'),
    'order of Optax, growth': (lambda: schedule.exponential_decay(0.1, 10, 1.5), ValueError, 'decay_rate=10.*keywords'),
    'order of Optax, one step': (lambda: schedule.exponential_decay(0.1, 1, 0.9), ValueError, 'Pass keywords'),
    'end of decay': (lambda: schedule.exponential_decay(1.0, 0.5, end_value='x'), TypeError, 'end_value'),
    'vector': (lambda: schedule.constant_schedule(torch.ones(2)), ValueError, r'shape \(2,\)'),
    'nan tensor': (lambda: schedule.constant_schedule(torch.tensor(NAN)), ValueError, 'NaN'),
    'nan leaf': (lambda: schedule.constant_schedule(torch.tensor(NAN, requires_grad=True)), ValueError, 'NaN'),
    'cosine': (lambda: schedule.cosine_decay_schedule(1.0, 0), ValueError, 'decay_steps: 0; expected a positive'),
    'cosine alpha': (lambda: schedule.cosine_decay_schedule(1.0, 5, None), TypeError, 'alpha'),
    'warmup': (lambda: schedule.warmup_cosine_decay_schedule(0.0, 1.0, 5, 5), ValueError, 'warmup_steps: 0'),
    'pieces': (lambda: schedule.piecewise_constant_schedule(1.0, {3: -0.5}), ValueError, 'non-negative'),
    'no schedule': (lambda: schedule.join_schedules([0.1], []), TypeError, 'item 0 is a float'),
    'boundaries': (lambda: schedule.join_schedules([abs, abs], []), ValueError, '2 schedules need 1'),
    'nothing to join': (lambda: schedule.join_schedules([], []), ValueError, 'boundaries'),
    'boundary': (lambda: schedule.join_schedules([abs, abs], ['x']), TypeError, 'boundary'),
    'count': (lambda: schedule.linear_schedule(1.0, 0.0, 5)('3'), TypeError, "called with '3'; expected"),
    'no count': (lambda: schedule.constant_schedule(1.0)(None), TypeError, 'called with None; expected'),
}


@pytest.mark.parametrize(('make', 'error', 'message'), INVALID.values(), ids=INVALID)
def test_invalid_arguments(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()
