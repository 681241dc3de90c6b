# SPDX-License-Identifier: Apache-2.0
"""Derivatives through the steps of a run, remembered or made again, by autograd and under transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt

H = torch.diag(torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64))
C = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
AT = torch.tensor(0.3, dtype=torch.float64)


def objective(w: Tensor, penalty: Tensor) -> Tensor:
    return 0.5 * w @ H @ w - C @ w + penalty * (w**2).sum()


def residual(w: Tensor, penalty: Tensor) -> Tensor:
    return torch.cat([H @ w - C, penalty * w**2])


def contraction(w: Tensor, penalty: Tensor) -> Tensor:
    return torch.tanh(0.3 * H @ w + C) * penalty


def root(w: Tensor, penalty: Tensor) -> Tensor:
    return w - contraction(w, penalty)


SOLVERS: dict[str, Callable[..., Any]] = {
    'GradientDescent': lambda **k: torchopt.GradientDescent(objective, **k),
    'GradientDescent, constant': lambda **k: torchopt.GradientDescent(objective, stepsize=0.1, **k),
    'ProximalGradient': lambda **k: torchopt.ProximalGradient(objective, torchopt.prox.prox_none, **k),
    'ProjectedGradient': lambda **k: torchopt.ProjectedGradient(objective, lambda w, _: w.clamp(min=-0.5), **k),
    'LBFGS': lambda **k: torchopt.LBFGS(objective, **k),
    'BFGS': lambda **k: torchopt.BFGS(objective, **k),
    'NonlinearCG': lambda **k: torchopt.NonlinearCG(objective, **k),
    'PolyakSGD': lambda **k: torchopt.PolyakSGD(objective, **k),
    'ArmijoSGD': lambda **k: torchopt.ArmijoSGD(objective, **k),
    'OptaxSolver': lambda **k: torchopt.OptaxSolver(objective, torchopt.adam(0.1), **k),
    'GaussNewton': lambda **k: torchopt.GaussNewton(residual, **k),
    'LevenbergMarquardt': lambda **k: torchopt.LevenbergMarquardt(residual, **k),
    'FixedPointIteration': lambda **k: torchopt.FixedPointIteration(contraction, **k),
    'AndersonAcceleration': lambda **k: torchopt.AndersonAcceleration(contraction, **k),
    'Broyden': lambda **k: torchopt.Broyden(root, **k),
}


def result(name: str, penalty: Tensor, unroll: bool | str) -> Tensor:
    solver = SOLVERS[name](tol=1e-12, maxiter=5, implicit_diff=False, unroll=unroll)
    data = (None, penalty) if name in ('ProximalGradient', 'ProjectedGradient') else (penalty,)
    return solver.run(torch.ones(3, dtype=torch.float64), *data).params.square().sum()


def by_autograd(fun: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(fun(x), x)[0]


WAYS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]] = {
    'autograd': by_autograd,
    'grad': lambda fun, x: torch.func.grad(fun)(x),
    'grad of grad': lambda fun, x: torch.func.grad(torch.func.grad(fun))(x),
    'jacrev': lambda fun, x: torch.func.jacrev(lambda x: torch.stack([fun(x), 2 * fun(x)]))(x)[0],
    'jvp': lambda fun, x: torch.func.jvp(fun, (x,), (torch.ones_like(x),))[1],
    'vmap of grad': lambda fun, x: torch.vmap(torch.func.grad(fun))(torch.stack([x, x + 0.1]))[0],
}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('name', SOLVERS)
def test_steps_that_are_made_again_have_the_same_derivatives(name: str, way: str) -> None:
    again, remembered = (WAYS[way](lambda x, u=u: result(name, x, u), AT) for u in ('checkpoint', True))
    torch.testing.assert_close(again, remembered, rtol=1e-8, atol=1e-12)
    if way == 'grad':
        step = 1e-6
        difference = (result(name, AT + step, True) - result(name, AT - step, True)) / (2 * step)
        torch.testing.assert_close(again, difference, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('name', ['LBFGS', 'GradientDescent', 'BFGS', 'OptaxSolver'])
def test_steps_in_a_checkpoint_of_the_user(name: str) -> None:
    """Under a transform, a step returns tensors where it reads numbers without a gradient."""
    solver = SOLVERS[name](maxiter=9)

    def after_steps(penalty: Tensor, again: bool) -> Tensor:
        params = torch.ones(3, dtype=torch.float64)
        state = solver.init_state(params, penalty)
        for _ in range(3):

            def step(params: Any, state: Any) -> Any:
                return solver.update(params, state, penalty)

            params, state = (torchopt.checkpoint(step) if again else step)(params, state)
        return params.square().sum()

    got, expected = (torch.func.grad(lambda x, a=a: after_steps(x, a))(AT) for a in (True, False))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
