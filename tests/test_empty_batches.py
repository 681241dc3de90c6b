# SPDX-License-Identifier: Apache-2.0
"""Empty batches of ``torch.vmap``: empty results, or an error that says what torch cannot do with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import grad, vmap

import torchopt
from torchopt import linear_solve, loop, projections, solver

EMPTY = torch.zeros(0, 3)
DOUBLED = 2.0 * torch.eye(3)


def step(make: Callable[[], Any]) -> Callable[[torch.Tensor], Any]:
    def run(v: torch.Tensor) -> Any:
        transform = make()
        updates, _ = transform.update({'w': v}, transform.init({'w': v}), params={'w': v}, inplace=False)
        return torchopt.apply_updates({'w': v}, updates, inplace=False)['w']

    return run


SOLVES = sorted(name for name in linear_solve.__all__ if name.startswith('solve_'))
WORKING: dict[str, Callable[[torch.Tensor], Any]] = {
    **{name: lambda v, name=name: getattr(linear_solve, name)(DOUBLED.matmul, v) for name in SOLVES},
    **{
        f'matrix of {name}': lambda v, name=name: getattr(linear_solve, name)((DOUBLED + v.diag()).matmul, v)
        for name in SOLVES
    },
    'while_loop': lambda v: loop.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, v),
    'fori_loop': lambda v: loop.fori_loop(0, 3, lambda i, c: c + 1, v),
    'scan': lambda v: loop.scan(lambda c, x: (c + x, None), v, torch.ones(4))[0],
    'cond': lambda v: loop.cond(v.sum() > 0, lambda c: c + 1, lambda c: c - 1, v),
    'sgd': step(lambda: torchopt.sgd(0.1, momentum=0.9)),
    'adam': step(lambda: torchopt.adam(0.1)),
    'lion': step(lambda: torchopt.lion(0.1)),
    'projection_simplex': projections.projection_simplex,
    'projection_l1_ball': projections.projection_l1_ball,
    'projection_l1_sphere': projections.projection_l1_sphere,
    'projection_non_negative': projections.projection_non_negative,
    'Broyden': lambda v: solver.Broyden(lambda x, v: x - v).run(torch.ones(3), v).params,
}


@pytest.mark.parametrize('name', WORKING)
def test_results_are_empty(name: str) -> None:
    assert vmap(WORKING[name])(EMPTY).shape == (0, 3)
    assert vmap(grad(lambda v: WORKING[name](v).sum()))(EMPTY).shape == (0, 3)


def bowl(x: torch.Tensor) -> torch.Tensor:
    return ((x - 1.0) ** 2).sum()


REFUSED: dict[str, Callable[[torch.Tensor], Any]] = {
    **{
        name: lambda v, name=name: getattr(solver, name)(bowl).run(v).params
        for name in ('GradientDescent', 'ProximalGradient', 'LBFGS', 'BFGS', 'NonlinearCG', 'PolyakSGD', 'ArmijoSGD')
    },
    **{
        name: lambda v, name=name: getattr(solver, name)(lambda x: x - 1.0).run(v).params
        for name in ('LevenbergMarquardt', 'GaussNewton')
    },
    'LBFGSB': lambda v: solver.LBFGSB(bowl).run(v, bounds=(-torch.ones(3), torch.ones(3))).params,
    'OptaxSolver': lambda v: solver.OptaxSolver(bowl, torchopt.adam(0.1)).run(v).params,
    'FixedPointIteration': lambda v: solver.FixedPointIteration(lambda x: 0.5 * x).run(v).params,
    'clip_grad_norm': step(lambda: torchopt.clip_grad_norm(1.0)),
    'adaptive_grad_clip': step(lambda: torchopt.clip.adaptive_grad_clip(1.0)),
    'lamb': step(lambda: torchopt.lamb(0.1)),
    'adafactor': step(lambda: torchopt.adafactor(0.1)),
    'novograd': step(lambda: torchopt.novograd(0.1)),
    'lbfgs': step(lambda: torchopt.lbfgs(0.1)),
    'projection_l2_ball': projections.projection_l2_ball,
}


@pytest.mark.parametrize('name', REFUSED)
def test_errors_name_the_cause(name: str) -> None:
    with pytest.raises(IndexError):
        vmap(lambda v: 2.0 * v.sum())(EMPTY)  # if torch can, this error is no longer needed
    runs = vmap(REFUSED[name]), vmap(grad(lambda v: REFUSED[name](v).sum()))
    for run in (*runs, lambda v: vmap(vmap(REFUSED[name]))(v.expand(2, 0, 3))):
        with pytest.raises(ValueError, match=r'The batch of torch\.vmap is empty.* Leave out empty batches'):
            run(EMPTY)
