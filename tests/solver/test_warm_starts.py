# SPDX-License-Identifier: Apache-2.0
"""Runs that start from the result of another run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchopt


def objective(x: torch.Tensor) -> torch.Tensor:
    return ((x - 1.0) ** 4 + 0.1 * x**2).sum()


def residual(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x - 1.0, 0.3 * x**2])


def root(x: torch.Tensor) -> torch.Tensor:
    return x + 0.5 * x.tanh() - 1.0


def contraction(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.cos()


SOLVERS: dict[str, Any] = {
    'GradientDescent': lambda **k: torchopt.GradientDescent(objective, **k),
    'ProximalGradient': lambda **k: torchopt.ProximalGradient(objective, torchopt.prox.prox_none, **k),
    'LBFGS': lambda **k: torchopt.LBFGS(objective, **k),
    'BFGS': lambda **k: torchopt.BFGS(objective, **k),
    'NonlinearCG': lambda **k: torchopt.NonlinearCG(objective, **k),
    'GaussNewton': lambda **k: torchopt.GaussNewton(residual, **k),
    'LevenbergMarquardt': lambda **k: torchopt.LevenbergMarquardt(residual, **k),
    'Broyden': lambda **k: torchopt.Broyden(root, history_size=10, **k),
    'FixedPointIteration': lambda **k: torchopt.FixedPointIteration(contraction, **k),
    'AndersonAcceleration': lambda **k: torchopt.AndersonAcceleration(contraction, **k),
    'ArmijoSGD': lambda **k: torchopt.ArmijoSGD(objective, **k),
    'PolyakSGD': lambda **k: torchopt.PolyakSGD(objective, **k),
    'OptaxSolver': lambda **k: torchopt.OptaxSolver(objective, torchopt.adam(0.1), **k),
    'ScipyMinimize': lambda **k: torchopt.ScipyMinimize(fun=objective, **k),
}
WITH_MEMORY = ('LBFGS', 'BFGS', 'NonlinearCG', 'Broyden')
START = torch.tensor([0.0, 0.4, 2.0], dtype=torch.float64)


@pytest.mark.parametrize('name', SOLVERS)
def test_a_run_starts_from_the_result_of_any_solver(name: str) -> None:
    """A solver continues with the memory of its own class; of every other result it takes the parameters."""
    first = SOLVERS[name](maxiter=2).run(START)
    for other in ('GradientDescent', 'LBFGS', 'FixedPointIteration', name):
        given = first if other == name else SOLVERS[other](maxiter=2).run(START)
        solver = SOLVERS[name](maxiter=3)
        got = solver.run(given)
        if other == name and name in WITH_MEMORY:
            assert got.state.iter_num > first.state.iter_num
            expected = SOLVERS[name](maxiter=int(got.state.iter_num)).run(START)
            torch.testing.assert_close(got.params, expected.params, rtol=1e-12, atol=1e-14)
        else:
            assert torch.equal(got.params, solver.run(given.params).params)


def test_a_batch_of_runs_starts_from_a_batch_of_results() -> None:
    starts = torch.stack([START, START + 1.0, START - 2.0])
    first = torch.vmap(torchopt.LBFGS(objective, maxiter=2).run)(starts)
    solver = torchopt.LBFGS(objective, maxiter=6)
    got = torch.vmap(solver.run)(first)
    for i, start in enumerate(starts):
        torch.testing.assert_close(
            got.params[i], torchopt.LBFGS(objective, maxiter=8).run(start).params, rtol=1e-9, atol=1e-12
        )
    descent = torchopt.GradientDescent(objective, maxiter=3)
    assert torch.equal(torch.vmap(descent.run)(first).params, torch.vmap(descent.run)(first.params).params)


@pytest.mark.parametrize('name', ['ArmijoSGD', 'PolyakSGD', 'OptaxSolver'])
def test_minibatches_start_from_a_result(name: str) -> None:
    first = torchopt.GradientDescent(objective, maxiter=2).run(START)

    def fun(x: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
        return objective(x - data)

    options = {'opt': torchopt.adam(0.1)} if name == 'OptaxSolver' else {}
    solver = getattr(torchopt, name)(fun, maxiter=3, **options)
    batches = [torch.full((), 0.1 * i, dtype=torch.float64) for i in range(4)]
    got, expected = (solver.run_iterator(start, iter(batches)).params for start in (first, first.params))
    assert torch.equal(got, expected)
