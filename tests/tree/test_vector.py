# SPDX-License-Identifier: Apache-2.0
"""Trees as vectors, and the way back."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

import torchopt
from tests.oracle import assert_trees_close

DOUBLE = torch.float64
TREES: dict[str, Any] = {
    'a dict': {'w': torch.ones(2, 2), 'b': torch.tensor(3.0), 'none': None},
    'nested': ({'x': torch.arange(3.0, dtype=DOUBLE)}, [torch.zeros(0, 2), torch.ones(1)]),
    'real and complex': [torch.ones(2), torch.tensor([1j, 2.0])],
    'low precision': {'a': torch.ones(3, dtype=torch.bfloat16), 'b': torch.ones(2, 1).expand(2, 3)},
    'a leaf': torch.ones(2),
    'nothing': {'none': None},
}


def check_equal(found: Any, expected: Any) -> None:
    """Raise unless structure, values, shapes and dtypes are equal."""
    assert torchopt.tree.structure(found) == torchopt.tree.structure(expected)
    for x, y in zip(torchopt.tree.leaves(found), torchopt.tree.leaves(expected)):
        assert x is y is None or (torch.equal(x, y) and x.dtype == y.dtype)


@pytest.mark.parametrize('name', TREES)
def test_there_and_back(name: str) -> None:
    vector, unravel = torchopt.tree.ravel(TREES[name])
    check_equal(unravel(vector), TREES[name])


@pytest.mark.parametrize('name', TREES)
def test_the_way_back_is_compiled(name: str) -> None:
    vector, unravel = torchopt.tree.ravel(TREES[name])
    check_equal(torch.compile(unravel, backend='eager', fullgraph=True)(2 * vector), unravel(2 * vector))


def test_the_tensors_are_freed() -> None:
    x = torch.ones(3)
    alive = weakref.ref(x)
    _, unravel = torchopt.tree.ravel([x])
    del x
    assert alive() is None
    assert_trees_close(unravel(torch.zeros(3)), [torch.zeros(3)], 0)


def test_a_compiled_loop_carries_a_vector() -> None:
    params = {'w': torch.ones(2, 3, dtype=DOUBLE), 'b': torch.zeros(2, dtype=DOUBLE)}
    x, transform = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(4, 3), torchopt.adam(0.1, eps_root=1e-8)

    def loss(params: Any) -> torch.Tensor:
        return (x @ params['w'].T + params['b']).sin().square().mean()

    def after(params: Any, compile: Any) -> torch.Tensor:
        start, back = torchopt.tree.ravel(params) if compile else (params, lambda p: p)

        def step(carry: Any, _: None) -> Any:
            p, state = carry
            updates, state = transform.update(torchopt.grad(lambda p: loss(back(p)))(p), state, p)
            return (torchopt.apply_updates(p, updates), state), None

        (p, _), _ = torchopt.loop.scan(step, (start, transform.init(start)), length=3, compile=compile)
        return loss(back(p))

    compute = torch.func.grad(after)
    assert_trees_close(compute(params, 'graph'), compute(params, False), 1e-12)
