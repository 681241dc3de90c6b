# SPDX-License-Identifier: Apache-2.0
"""Line searches on functions of one number: their conditions, their failures, batches, derivatives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from torchopt import linesearch, scalars
from torchopt.linesearch import Point, backtracking, cubic_minimum, quadratic_minimum, zoom

F64 = torch.float64


def ray_of(fun: Any) -> Any:
    """A function of one number as a ray, with the derivative of autograd."""

    def at(stepsize: Any) -> Point:
        slope, value = torch.func.grad_and_value(fun)(torch.as_tensor(stepsize, dtype=F64))
        value, slope = scalars.numbers(value, slope)
        return Point(stepsize, value, slope, [slope])

    return at


def random_function(seed: int) -> Any:
    """Bumpy, bounded below, and falling at zero."""
    rng = np.random.default_rng(seed)
    width, height, phase = 0.3 + 3.0 * rng.random(), rng.random(), 6.0 * rng.random()
    bowl, center = 10.0 ** rng.uniform(-3, 2), 10.0 ** rng.uniform(-2, 1.5)

    def fun(x: torch.Tensor) -> torch.Tensor:
        # The bumps are made to begin with slope zero.
        bumps = torch.cos(x / width + phase) + torch.sin(torch.as_tensor(phase, dtype=F64)) * x / width
        return bowl * (x - center) ** 2 + height * bowl * center * width * bumps

    return fun


@pytest.mark.parametrize('seed', range(40))
def test_zoom_meets_the_strong_wolfe_conditions(seed: int) -> None:
    ray = ray_of(random_function(seed))
    start = ray(0.0)
    assert start.slope < 0
    found = zoom(ray, start, 1.0, limit=60, approx_dec_rtol=None, precision=0.0)
    assert not found.failed
    assert found.decrease_error == found.curvature_error == 0.0
    point = found.point
    assert point == ray(point.stepsize)
    assert point.value <= start.value + 1e-4 * point.stepsize * start.slope
    assert abs(point.slope) <= 0.9 * abs(start.slope)


@pytest.mark.parametrize('seed', range(10))
@pytest.mark.parametrize('curv_rtol', [0.01, 0.5])
def test_zoom_meets_conditions_that_are_narrow(seed: int, curv_rtol: float) -> None:
    ray = ray_of(random_function(seed))
    start = ray(0.0)
    found = zoom(ray, start, 0.1, limit=100, curv_rtol=curv_rtol, approx_dec_rtol=None, precision=0.0)
    assert abs(found.point.slope) <= curv_rtol * abs(start.slope)
    assert not found.failed


@pytest.mark.parametrize('seed', range(40))
def test_backtracking_meets_armijos_condition(seed: int) -> None:
    fun = random_function(seed)
    start = ray_of(fun)(0.0)
    calls = []

    def value_at(stepsize: float) -> torch.Tensor:
        calls.append(stepsize)
        return fun(torch.tensor(stepsize, dtype=F64))

    found = backtracking(value_at, start.value, start.slope, 100.0, limit=80, decrease_factor=0.7)
    assert not found.running
    assert found.steps == len(calls)
    bounds = [start.value + 1e-4 * x * start.slope for x in calls]
    good = [fun(torch.tensor(x, dtype=F64)).item() <= bound for x, bound in zip(calls, bounds)]
    assert good == [False] * (len(calls) - 1) + [True]  # the first that is good, and no other
    np.testing.assert_allclose(calls, 100.0 * 0.7 ** np.arange(len(calls)), rtol=1e-12)
    assert found.stepsize == calls[-1]


# What stops a search: the function, the limit, and what becomes of the step.
FAILURES: list[tuple[str, Any, str]] = [
    ('rises', lambda x: x + 1.0, 'last'),
    ('constant', lambda x: 0.0 * x + 2.0, 'any'),
    ('NaN beyond the start', lambda x: torch.where(x > 0, x * math.nan, -x), 'zero'),
    ('infinite beyond the start', lambda x: torch.where(x > 0, x + math.inf, -x), 'zero'),
    ('NaN everywhere', lambda x: x * math.nan, 'zero'),
    ('falls without end', lambda x: -x, 'safe'),
]


@pytest.mark.parametrize(('name', 'fun', 'step'), FAILURES, ids=[name for name, *_ in FAILURES])
def test_searches_that_fail(name: str, fun: Any, step: str) -> None:
    """They come to an end, and return nothing that is not finite where they need not."""
    ray = ray_of(fun)
    start = ray(0.0)
    found = zoom(ray, start, 1.0, limit=12, curv_rtol=0.5)
    assert found.steps <= 12
    stepsize = found.point.stepsize
    assert math.isfinite(stepsize)
    if step == 'zero':
        assert (stepsize, found.failed, found.decrease_error) == (0.0, True, math.inf)
        assert found.point.extra == start.extra or math.isnan(start.extra[0])
    elif step == 'last':
        assert stepsize > 0.0 and found.failed and found.decrease_error > 0.0
    elif step == 'safe':
        assert stepsize == 2.0**11 and found.failed and found.decrease_error == 0.0
    backward = backtracking(lambda x: ray(x).value, start.value, start.slope, 1.0, limit=12)
    assert backward.steps <= 13
    if step in ('zero', 'last'):
        assert backward.running and backward.decrease_error > 0.0
        assert (backward.decrease_error == math.inf) == (step == 'zero')


def test_a_domain_that_ends_is_kept() -> None:
    """Values that are NaN beyond a point count as too high, as a barrier does."""

    def fun(x: torch.Tensor) -> torch.Tensor:
        return -torch.log(1.0 - x) - 3.0 * x  # least at 2/3, NaN from 1 on

    ray = ray_of(fun)
    found = zoom(ray, ray(0.0), 8.0, limit=40, curv_rtol=1e-3)
    assert not found.failed
    assert abs(found.point.stepsize - 2 / 3) < 1e-2
    assert 0.0 < backtracking(lambda x: ray(x).value, 0.0, -2.0, 8.0, limit=40).stepsize < 1.0


def test_the_largest_step_is_taken_where_a_longer_one_is_wanted() -> None:
    ray = ray_of(lambda x: (x - 10.0) ** 2)
    found = zoom(ray, ray(0.0), 1.0, limit=20, largest=3.0, curv_rtol=0.1)
    assert found.point.stepsize == 3.0
    assert found.decrease_error == 0.0 < found.curvature_error
    assert not found.failed
    assert found.steps == 3


def test_close_to_a_minimum_slopes_stand_in_for_values() -> None:
    """Values that differ by rounding only satisfy Hager and Zhang's condition."""

    def ray(stepsize: float) -> Point:
        # What rounding makes of 1 + (x - 1)^2 at the scale of 1e-17, a little too high.
        return Point(stepsize, 1.0 + 1e-15 * (stepsize > 0), 2e-17 * (stepsize - 1.0), None)

    by_slope = zoom(ray, ray(0.0), 1.0, limit=20, precision=0.0)
    assert not by_slope.failed and by_slope.steps == 1
    assert zoom(ray, ray(0.0), 1.0, limit=20, precision=0.0, approx_dec_rtol=None).failed


@pytest.mark.parametrize('seed', range(5))
def test_interpolation_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k, q, s, f = rng.standard_normal(4) * [1.0, 3.0, 1.0, 5.0]
    a, b, c = rng.standard_normal(3) * 2.0

    def cubic(x: float) -> float:
        return k * (x - a) ** 3 + q * (x - a) ** 2 + s * (x - a) + f

    found = cubic_minimum(a, f, s, b, cubic(b), c, cubic(c))
    inside = q * q - 3.0 * k * s
    if inside < 0.0:
        assert math.isnan(found)
    else:
        x = found - a
        assert abs(3.0 * k * x * x + 2.0 * q * x + s) < 1e-9 * (1 + abs(x)) ** 2
        assert 6.0 * k * x + 2.0 * q >= 0.0
    parabola = quadratic_minimum(a, f, s, b, q * (b - a) ** 2 + s * (b - a) + f)
    np.testing.assert_allclose(parabola, a - s / (2.0 * q))


def test_interpolation_where_there_is_no_minimum() -> None:
    assert math.isnan(quadratic_minimum(0.0, 1.0, -1.0, 1.0, 0.0))  # a straight line
    assert math.isnan(quadratic_minimum(0.0, 1.0, -1.0, 0.0, 0.0))  # one point
    assert math.isnan(cubic_minimum(0.0, 1.0, -1.0, 1.0, 2.0, 0.0, 1.0))  # two points
    assert cubic_minimum(0.0, 4.0, -4.0, 1.0, 1.0, 3.0, 1.0) == 2.0  # a parabola, which has no cubic part
    for point in (0.0, 1.0, math.inf, math.nan):
        assert isinstance(cubic_minimum(0.0, 1.0, -1.0, 1.0, point, 2.0, point), float)
    for small in (1e-200, 1e-320):  # whose squares are zero
        assert math.isnan(quadratic_minimum(0.0, 1.0, -1.0, small, 2.0))
        assert math.isnan(cubic_minimum(0.0, 1.0, -1.0, 1.0, 2.0, small, 2.0))


def test_interpolation_gives_the_numbers_of_scipy() -> None:
    from scipy.optimize._linesearch import _cubicmin, _quadmin

    a, fa, ga, b, fb, c, fc = 0.1, 2.0, -1.5, 1.7, 1.0, 0.9, 0.7
    np.testing.assert_allclose(cubic_minimum(a, fa, ga, b, fb, c, fc), _cubicmin(a, fa, ga, b, fb, c, fc), rtol=1e-12)
    np.testing.assert_allclose(quadratic_minimum(a, fa, ga, b, fb), _quadmin(a, fa, ga, b, fb), rtol=1e-12)
    assert scipy.optimize is not None


CENTERS = torch.tensor([0.3, 5.0, 40.0, -1.0, 0.0], dtype=F64)


def search(center: torch.Tensor, kind: str) -> Any:
    """The step size, value and number of evaluations of a search on a bumpy bowl."""

    def fun(x: torch.Tensor) -> torch.Tensor:
        return (x - center) ** 2 + torch.cos(3.0 * x)

    def at(x: Any) -> Point:
        x = x if isinstance(x, torch.Tensor) else torch.full_like(center, x)
        slope, value = torch.func.grad_and_value(fun)(x)
        return Point(x, *scalars.numbers(value, slope), None)

    start = at(0.0)._replace(stepsize=0.0)
    if kind == 'zoom':
        found = zoom(at, start, 1.0, limit=15, curv_rtol=0.1)
        return found.point.stepsize, found.point.value, found.steps, found.failed
    found = backtracking(lambda x: at(x).value, start.value, start.slope, 4.0, limit=15)
    return found.stepsize, found.value, found.steps, found.running


@pytest.mark.parametrize('kind', ['zoom', 'backtracking'])
def test_a_batch_is_searched_as_its_elements_are(kind: str) -> None:
    """Some elements succeed early, some late, some not at all."""
    together = torch.func.vmap(lambda c: tuple(torch.as_tensor(x) for x in search(c, kind)))(CENTERS)
    alone = [search(c, kind) for c in CENTERS]
    assert len({a[2] for a in alone}) > 2
    for i, columns in enumerate(alone):
        for found, wanted in zip((column[i] for column in together), columns):
            torch.testing.assert_close(found.double(), torch.as_tensor(wanted, dtype=F64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kind', ['zoom', 'backtracking'])
def test_what_is_found_has_its_derivative(kind: str) -> None:
    """In what the function depends on, through all the interpolations, by autograd, forward mode and in a batch."""
    centers = CENTERS[:3]

    def total(c: torch.Tensor) -> torch.Tensor:
        stepsize, value, *_ = search(c, kind)
        return torch.as_tensor(stepsize, dtype=F64) + 0.1 * torch.as_tensor(value, dtype=F64)

    for c in centers:
        h = 1e-6
        exact = (total(c + h) - total(c - h)) / (2 * h)
        leaf = c.clone().requires_grad_()
        (by_autograd,) = torch.autograd.grad(total(leaf), leaf)
        torch.testing.assert_close(by_autograd, exact, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(torch.func.grad(total)(c), by_autograd)
        torch.testing.assert_close(torch.func.jvp(total, (c,), (torch.ones_like(c),))[1], by_autograd)
    alone = torch.stack([torch.func.grad(total)(c) for c in centers])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(centers), alone)


def test_moving_along_a_direction_keeps_dtypes_and_what_rests() -> None:
    params = {'a': torch.ones(2, dtype=torch.bfloat16), 'b': torch.ones(2), 'c': None, 'd': torch.tensor(1.0 + 1j)}
    direction = {'a': torch.ones(2, dtype=torch.bfloat16), 'b': None, 'c': None, 'd': torch.tensor(1j)}
    moved = linesearch.move_along(params, torch.tensor(0.5, dtype=F64), direction)
    assert moved['b'] is params['b']
    assert moved['c'] is None
    assert moved['a'].dtype == torch.bfloat16 and moved['a'][0] == 1.5
    assert moved['d'] == 1.0 + 1.5j
    assert linesearch.inner_product(direction, direction).item() == 3.0


def test_values_and_gradients_of_trees() -> None:
    params = {'w': torch.tensor([1.0 + 2.0j]), 'b': torch.tensor(3.0), 'n': torch.tensor(2), 'none': None}

    def fun(p: Any) -> torch.Tensor:
        return (p['w'].abs() ** 2).sum() + p['n'] * p['b'].reshape(1)

    for differentiable in (True, False):
        value, grad = linesearch.value_and_gradient(fun, params, differentiable=differentiable)
        assert value.shape == () and value.item() == 11.0
        torch.testing.assert_close(grad['w'], 2.0 * params['w'])
        assert grad['b'] == 2.0
        assert grad['n'] is None and grad['none'] is None
        constant = linesearch.value_and_gradient(lambda p: torch.tensor(1.0), params, differentiable=differentiable)
        assert constant[0] == 1.0 and constant[1]['b'] == 0.0
        with pytest.raises(ValueError, match=r'value_fn returned a tensor of shape \(2,\)'):
            linesearch.value_and_gradient(lambda p: p['b'].expand(2), params, differentiable=differentiable)
        with pytest.raises(TypeError, match='value_fn returned a float'):
            linesearch.value_and_gradient(lambda p: 1.0, params, differentiable=differentiable)
    assert linesearch.value_and_gradient(lambda p: torch.tensor(2.0), {})[1] == {}


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_gradients_where_nothing_is_recorded(mode: Any) -> None:
    x = torch.tensor([1.0, 2.0])
    with mode():
        for p in (x, x.clone()):
            for differentiable in (True, False):
                _, grad = linesearch.value_and_gradient(lambda p: (p**2).sum(), p, differentiable=differentiable)
                assert grad.tolist() == [2.0, 4.0]
