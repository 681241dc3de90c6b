# SPDX-License-Identifier: Apache-2.0
"""Steps, solutions and Jacobians are those of JAXopt, whose numbers ``make_jaxopt_numbers.py`` has stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.solver.jaxopt_problems import PROBLEMS
from torchopt.compat import jaxopt
from torchopt.linear_solve import solve_lu

NUMBERS = json.loads((Path(__file__).parents[1] / 'data' / 'jaxopt_solvers.json').read_text(encoding='utf-8'))


def tensor(x: Any) -> Any:
    return None if x is None else torch.tensor(x, dtype=torch.float64)


def test_all_problems_have_numbers() -> None:
    assert set(NUMBERS) == set(PROBLEMS)


@pytest.mark.parametrize('name', PROBLEMS)
def test_solution_and_jacobian(name: str) -> None:
    problem = PROBLEMS[name]
    solver = problem.make(jaxopt, problem.fun(torch))
    solver.implicit_diff_solve = solve_lu
    a = tensor(problem.a)
    params = solver.run(tensor(problem.start), a).params
    torch.testing.assert_close(params, tensor(NUMBERS[name]['params']), rtol=1e-8, atol=1e-9)
    jacobian = torch.func.jacrev(lambda a: solver.run(tensor(problem.start), a).params)(a)
    torch.testing.assert_close(jacobian, tensor(NUMBERS[name]['jacobian']), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', [name for name, problem in PROBLEMS.items() if problem.steps])
def test_steps(name: str) -> None:
    problem = PROBLEMS[name]
    solver = problem.make(jaxopt, problem.fun(torch))
    a, params = tensor(problem.a), tensor(problem.start)
    state = solver.init_state(params, a)
    for expected in NUMBERS[name]['steps']:
        params, state = solver.update(params, state, a)
        assert not params.requires_grad
        torch.testing.assert_close(params, tensor(expected), rtol=1e-8, atol=1e-9)
