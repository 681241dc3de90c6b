# SPDX-License-Identifier: Apache-2.0
"""Objectives without a lower bound, as far as a run can tell, and objectives that only look like it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import torchopt
from torchopt.solver import Status

INF = math.inf


def vector(*values: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def ending(state: Any) -> Status:
    return Status(int(state.status))


def same(x: torch.Tensor, hyperparams: Any) -> torch.Tensor:
    return x


ENDLESS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[float, ...]]] = {
    'concave': (lambda x: -(x**2).sum(), (1.0, -1.0)),
    'linear': (lambda x: x.sum(), (1.0, -1.0)),
    'linear, ten': (lambda x: (x * torch.arange(1, 11, dtype=x.dtype)).sum(), (0.1,) * 10),
    'exponential': (lambda x: -torch.exp(x).sum(), (1.0, -1.0)),
    'cubic': (lambda x: (x**3).sum(), (-1.0, -2.0)),
    'quartic': (lambda x: -(x**4).sum(), (0.5, 0.7)),
    'saddle': (lambda x: x[0] ** 2 - x[1] ** 2, (1.0, -1.0)),
}
IDENTITY_MIRROR = torchopt.MirrorDescent.make_projection_grad(same, lambda x: x)
SOLVERS: dict[str, Callable[[Any], torchopt.solver.IterativeSolver]] = {
    'LBFGS': lambda fun: torchopt.LBFGS(fun, maxiter=60),
    'LBFGS, backtracking': lambda fun: torchopt.LBFGS(fun, linesearch='backtracking', maxiter=60),
    'LBFGS, Hager-Zhang': lambda fun: torchopt.LBFGS(fun, linesearch='hager-zhang', maxiter=60),
    'LBFGSB': lambda fun: torchopt.LBFGSB(fun, maxiter=60),
    'BFGS': lambda fun: torchopt.BFGS(fun, maxiter=60),
    'GradientDescent': torchopt.GradientDescent,
    'GradientDescent, plain': lambda fun: torchopt.GradientDescent(fun, acceleration=False),
    'ProximalGradient': torchopt.ProximalGradient,
    'ProjectedGradient': lambda fun: torchopt.ProjectedGradient(fun, same),
}
FIXED_STEPS: dict[str, Callable[[Any], torchopt.solver.IterativeSolver]] = {
    'GradientDescent': lambda fun: torchopt.GradientDescent(fun, stepsize=0.1),
    'MirrorDescent': lambda fun: torchopt.MirrorDescent(fun, IDENTITY_MIRROR, stepsize=0.1),
    'ArmijoSGD': torchopt.ArmijoSGD,
    'OptaxSolver': lambda fun: torchopt.OptaxSolver(fun, torchopt.sgd(0.1)),
    'NonlinearCG': lambda fun: torchopt.NonlinearCG(fun, maxiter=300),
}


def run(solver: Any, start: torch.Tensor) -> Any:
    bounds = [(-INF, INF)] if isinstance(solver, torchopt.LBFGSB) else []
    return solver.run(start, *bounds)


@pytest.mark.parametrize('name', SOLVERS)
@pytest.mark.parametrize('fun', ENDLESS)
def test_no_lower_bound(fun: str, name: str) -> None:
    objective, start = ENDLESS[fun]
    assert ending(run(SOLVERS[name](objective), vector(*start)).state) is Status.UNBOUNDED


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS', 'LBFGSB', 'GradientDescent'])
@pytest.mark.parametrize('fun', ['concave', 'linear', 'cubic'])
def test_no_lower_bound_in_float32(fun: str, name: str) -> None:
    objective, start = ENDLESS[fun]
    state = run(SOLVERS[name](objective), vector(*start, dtype=torch.float32)).state
    assert ending(state) is Status.UNBOUNDED


@pytest.mark.parametrize('name', FIXED_STEPS)
@pytest.mark.parametrize('fun', ['concave', 'saddle'])
def test_no_lower_bound_in_steps_of_fixed_size(fun: str, name: str) -> None:
    objective, start = ENDLESS[fun]
    assert ending(FIXED_STEPS[name](objective).run(vector(*start)).state) is Status.UNBOUNDED


@pytest.mark.parametrize('name', FIXED_STEPS)
def test_a_slow_run_has_only_used_up_its_steps(name: str) -> None:
    state = FIXED_STEPS[name](ENDLESS['linear'][0]).run(vector(1.0, -1.0)).state
    assert ending(state) is Status.MAXITER


def test_a_set_without_a_bound_downhill() -> None:
    objective, start = ENDLESS['exponential']
    assert ending(torchopt.LBFGSB(objective).run(vector(*start), (0.0, INF)).state) is Status.UNBOUNDED
    half = torchopt.ProjectedGradient(lambda x: -(x**2).sum(), lambda x, least: x.clamp(min=least))
    assert ending(half.run(vector(1.0, 2.0), 0.5).state) is Status.UNBOUNDED
    bounded = torchopt.ProjectedGradient(lambda x: x.sum(), lambda x, least: x.clamp(min=least))
    params, state = bounded.run(vector(1.0, 2.0), 0.5)
    assert ending(state) is Status.CONVERGED
    assert torch.equal(params, vector(0.5, 0.5))


def test_a_penalty_may_bound_what_the_smooth_part_does_not() -> None:
    linear = torchopt.ProximalGradient(lambda x: -0.5 * x.sum(), torchopt.prox.prox_lasso, tol=1e-9)
    params, state = linear.run(vector(3.0, -2.0), 1.0)
    assert ending(state) is Status.CONVERGED
    assert torch.equal(params, vector(0.0, 0.0))
    assert ending(linear.run(vector(3.0, -2.0), 0.1).state) is Status.UNBOUNDED


def test_a_free_variable_of_a_quadratic_program() -> None:
    objective = torch.diag(vector(1.0, 0.0)), vector(1.0, 1.0)
    start = vector(0.0, 0.0)
    free = (vector(-1.0, -INF), vector(1.0, 1.0))
    for options in ({}, {'implicit_diff': False}):
        assert ending(torchopt.BoxCDQP(**options).run(start, objective, free).state) is Status.UNBOUNDED
    closed = (vector(-1.0, -2.0), vector(1.0, INF))
    params, state = torchopt.BoxCDQP().run(start, objective, closed)
    assert ending(state) is Status.CONVERGED
    assert torch.equal(params, vector(-1.0, -2.0))


@pytest.mark.parametrize('name', ['BFGS', 'LBFGS', 'GradientDescent'])
def test_one_sample_has_no_lower_bound(name: str) -> None:
    solver = getattr(torchopt, name)(lambda x, sign: sign * (x**2).sum(), maxiter=160)
    state = torch.vmap(lambda sign: solver.run(vector(1.0, 2.0), sign).state)(vector(1.0, -1.0))
    assert state.status.tolist() == [Status.CONVERGED, Status.UNBOUNDED]


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS', 'NonlinearCG', 'GradientDescent', 'ProximalGradient', 'ArmijoSGD'])
@pytest.mark.parametrize(
    'fun',
    [
        lambda x: 1e40 * ((x - 1.0) ** 2).sum() - 1e41,  # low values, and a minimum
        lambda x: 1e-3 * (x - 1e9).pow(2).sum() - 1e20,  # far away
        lambda x: -torch.log1p(x.abs()).sum(),  # no minimum, but the slope ends
    ],
)
def test_a_lower_bound_that_is_far_away(fun: Any, name: str) -> None:
    state = getattr(torchopt, name)(fun, maxiter=150).run(vector(2.0, -1.0)).state
    assert ending(state) is not Status.UNBOUNDED


@pytest.mark.parametrize('name', ['LBFGS', 'BFGS'])
def test_steps_grow_where_the_objective_bends_downward(name: str) -> None:
    """Each is four times as long as the last, by one evaluation."""
    state = getattr(torchopt, name)(lambda x: x.sum(), maxiter=20).run(vector(0.0)).state
    assert int(state.num_fun_eval) <= 25
    assert state.value < -(4.0**18)
