# SPDX-License-Identifier: Apache-2.0
"""Whatever the tree: a leaf is optimized as it would be alone, in place as out of place, and the tree comes back."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

import torchopt
from tests.cases import CASES
from torchopt import tree


def tensors(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.t() if x.dim() == 2 and seed % 2 else x


LEAVES = st.one_of(
    st.none(), st.builds(tensors, st.sampled_from([(), (0,), (1,), (3,), (2, 3), (2, 1, 2)]), st.integers(0, 10**6))
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text('abc', min_size=1, max_size=2), inner, max_size=3),
    ),
    max_leaves=8,
).filter(lambda params: params is not None)  # None in the place of parameters means that they are not given
ALIKE = settings(max_examples=60, deadline=None, derandomize=True)


def steps(tx: Any, params: Any, *, inplace: bool) -> tuple[Any, Any]:
    params = tree.map(torch.clone, params)
    state, updates = tx.init(params), params
    for _ in range(3):
        updates, state = tx.update(tree.map(torch.cos, params), state, params, inplace=inplace)
        params = torchopt.apply_updates(params, updates)
    return params, state


@ALIKE
@given(params=TREES, case=st.sampled_from(CASES))
def test_a_leaf_is_optimized_as_it_would_be_alone(params, case):
    together, _ = steps(case.make(), params, inplace=False)
    alone = tree.map(lambda p: steps(case.make(), p, inplace=False)[0], params)
    assert tree.structure(together) == tree.structure(params) == tree.structure(alone)
    for x, y in zip(tree.leaves(together), tree.leaves(alone), strict=True):
        assert torch.equal(x, y)


@ALIKE
@given(params=TREES, case=st.sampled_from(CASES))
def test_in_place_is_out_of_place(params, case):
    pure, into = (steps(case.make(), params, inplace=inplace) for inplace in (False, True))
    for x, y in zip(tree.leaves(pure), tree.leaves(into), strict=True):
        assert torch.equal(x, y)


@ALIKE
@given(params=TREES)
def test_trees_come_back(params):
    leaves, spec = tree.flatten(params)
    again = tree.unflatten(spec, leaves)
    assert tree.structure(again) == spec
    assert all(x is y for x, y in zip(tree.flatten(again)[0], leaves, strict=True))
    assert [path for path, _ in tree.flatten_with_path(params)] == list(
        dict.fromkeys(path for path, _ in tree.flatten_with_path(params))
    ), 'every path names one leaf'
    for path, leaf in tree.flatten_with_path(params):
        assert eval(f'params{path}', {'params': params}) is leaf
