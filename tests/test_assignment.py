# SPDX-License-Identifier: Apache-2.0
"""The assignment problem against SciPy and Optax: shapes, ties, integers, infinities, transforms."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from torchopt import assignment

ALGORITHMS = [assignment.base_hungarian_algorithm, assignment.hungarian_algorithm]
each = pytest.mark.parametrize('solve', ALGORITHMS, ids=lambda f: f.__name__)
SHAPES = [(1, 1), (1, 5), (5, 1), (3, 3), (4, 7), (7, 4), (12, 12), (20, 9), (0, 3), (3, 0), (0, 0)]


def check(solve: Any, cost: np.ndarray) -> tuple[Any, Any]:
    """A matching of full size, of the cost that SciPy finds."""
    i, j = solve(torch.tensor(cost))
    assert i.dtype == j.dtype == torch.int64
    assert len(i) == len(j) == len(set(i.tolist())) == len(set(j.tolist())) == min(cost.shape)
    rows, columns = linear_sum_assignment(cost)
    np.testing.assert_allclose(cost[i, j].sum(dtype=float), cost[rows, columns].sum(dtype=float), rtol=1e-12)
    return i, j


@each
@pytest.mark.parametrize('shape', SHAPES)
def test_costs_are_those_of_scipy(solve: Any, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for cost in (
        rng.standard_normal(shape),
        rng.integers(-5, 5, shape),  # with many ties
        rng.integers(0, 2, shape),
        np.zeros(shape),
        1e12 * rng.standard_normal(shape),
        rng.standard_normal(shape).astype(np.float32),
        -np.abs(rng.standard_normal(shape)),
    ):
        check(solve, cost)


@each
@pytest.mark.parametrize('shape', [(1, 4), (4, 1), (3, 3), (4, 6), (6, 4), (0, 2)])
def test_pairs_and_their_order_are_those_of_optax(solve: Any, shape: tuple[int, int]) -> None:
    cost = np.random.default_rng(1).standard_normal(shape)
    with jax.enable_x64(True):
        expected = getattr(optax.assignment, solve.__name__)(jnp.asarray(cost))
    for x, y in zip(solve(torch.tensor(cost)), expected):
        assert x.tolist() == np.asarray(y).tolist()


@each
def test_forbidden_pairs(solve: Any) -> None:
    rng = np.random.default_rng(2)
    cost = rng.standard_normal((6, 8))
    cost[rng.uniform(size=cost.shape) < 0.4] = np.inf
    check(solve, cost)
    check(solve, np.where(np.eye(4) == 1, 1.0, np.inf))
    check(solve, np.array([[np.inf, 1.0], [2.0, 1e300]]))


INFEASIBLE = {
    'a row': [[np.inf, np.inf], [1.0, 2.0]],
    'a column': [[np.inf, 1.0], [np.inf, 2.0]],
    'everything': [[np.inf]],
    'two for one': [[1.0, np.inf, np.inf], [1.0, np.inf, np.inf]],
}


@each
@pytest.mark.parametrize('cost', INFEASIBLE.values(), ids=INFEASIBLE)
def test_no_assignment(solve: Any, cost: Any) -> None:
    with pytest.raises(ValueError, match='cost_matrix admits no assignment'):
        solve(torch.tensor(cost))


@each
def test_errors_name_the_argument(solve: Any) -> None:
    for bad in (np.nan, -np.inf):
        with pytest.raises(ValueError, match=r'cost_matrix contains NaN or -inf'):
            solve(torch.tensor([[1.0, bad], [0.0, 1.0]]))
    with pytest.raises(ValueError, match=r'cost_matrix has shape \(2, 2, 2\); expected \[rows, columns\]. For a batch'):
        solve(torch.zeros(2, 2, 2))
    with pytest.raises(TypeError, match=r'cost_matrix has dtype torch.complex64'):
        solve(torch.zeros(2, 2, dtype=torch.complex64))


@each
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool])
def test_any_real_dtype(solve: Any, dtype: torch.dtype) -> None:
    i, j = solve(torch.tensor([[0, 1], [1, 1]]).to(dtype))
    assert sorted(zip(i.tolist(), j.tolist())) in ([(0, 0), (1, 1)], [(0, 1), (1, 0)])
    assert int(torch.tensor([[0, 1], [1, 1]])[i, j].sum()) == 1


@each
def test_transforms(solve: Any) -> None:
    batch = torch.randn(2, 3, 4, 6)
    i, j = torch.func.vmap(torch.func.vmap(solve))(batch)
    for a in range(2):
        for b in range(3):
            for x, y in zip((i[a, b], j[a, b]), solve(batch[a, b])):
                assert x.tolist() == y.tolist()
    moved = torch.func.vmap(solve, in_dims=2)(batch[0].movedim(0, 2))
    assert [x.tolist() for x in moved] == [i[0].tolist(), j[0].tolist()]
    assert torch.func.vmap(solve)(torch.zeros(0, 2, 3))[0].shape == (0, 2)
    compiled = torch.compile(solve, fullgraph=True, backend='aot_eager')
    for x, y in zip(compiled(batch[0, 0]), solve(batch[0, 0])):
        assert x.tolist() == y.tolist()

    def cost_of_matching(c: torch.Tensor) -> torch.Tensor:
        return c[solve(c)].sum()

    gradient = torch.func.grad(cost_of_matching)(batch[0, 0])
    assert gradient.sum() == 4 and set(gradient.unique().tolist()) == {0.0, 1.0}
    leaf = batch[0, 0].clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(cost_of_matching(leaf), leaf)[0], gradient)


@each
def test_the_operator_is_well_behaved(solve: Any) -> None:
    torch.library.opcheck(assignment._columns_of_rows, (torch.randn(3, 5),))


@pytest.mark.parametrize('name', assignment.__all__)
def test_signatures_are_those_of_optax(name: str) -> None:
    def plain(f: Any) -> list[Any]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]

    assert plain(getattr(assignment, name)) == plain(getattr(optax.assignment, name))
