# SPDX-License-Identifier: Apache-2.0
"""The walk from results to the leaves that they depend on."""

from __future__ import annotations

import torch

from torchopt.graphs import leaves_of


def test_leaves_are_found_once_and_only_where_something_requires_grad() -> None:
    a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
    plain = torch.ones(2)
    product = a * b
    found = leaves_of([product + a, product.detach() * plain, plain, c, c])
    assert len(found) == 3
    assert {id(x) for x in found} == {id(x) for x in (a, b, c)}
    assert leaves_of([]) == leaves_of([plain]) == []


def test_graphs_may_be_deep_and_their_nodes_made_anew() -> None:
    """No recursion; and Python objects of nodes die as soon as nobody holds them, which must not confuse the walk."""
    x = start = torch.ones((), requires_grad=True)
    others = [torch.ones((), requires_grad=True) for _ in range(50)]
    for i in range(5000):
        x = x * others[i % 50]
    assert {id(leaf) for leaf in leaves_of([x])} == {id(start), *map(id, others)}
