# SPDX-License-Identifier: Apache-2.0
"""Learned learning rates, and moments in other dtypes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contrib.contrib_cases import quartic, quartic_gradient
from torchopt import contrib, tree

F64 = torch.float64


@pytest.mark.parametrize(
    ('make', 'names'),
    [
        (lambda d: contrib.ademamix(0.1, mu_dtype=d), ('m1', 'm2', 'nu')),
        (lambda d: contrib.adopt(0.1, mu_dtype=d), ('mu',)),
        (lambda d: contrib.scale_by_muon(mu_dtype=d), ('mu',)),
        (lambda d: contrib.sophia(0.1, mu_dtype=d), ('mu',)),
        (lambda d: contrib.schedule_free_sgd(0.1, state_dtype=d), ('z',)),
    ],
)
def test_moments_in_another_dtype(make: Any, names: tuple[str, ...]) -> None:
    tx = make(torch.bfloat16)
    p = [torch.tensor([[0.5, -1.0], [2.0, 0.1]])]
    state = tx.init(p)
    for _ in range(3):
        extra = {'obj_fn': quartic} if 'sophia' in repr(tx) else {}
        u, state = tx.update(quartic_gradient(p), state, p, **extra)
        assert u[0].dtype is torch.float32
    for name in names:
        assert [x.dtype for x in tree.leaves(tree.get(state, name))] == [torch.bfloat16]


RATED = [
    ('acprop', {}),
    ('ademamix', {}),
    ('adopt', {}),
    ('dadapt_adamw', {'estim_lr0': 0.1}),
    ('dog', {'init_step': ('distance', 0.1)}),
    ('dowg', {}),
    ('galore', {'rank': 1}),
    ('madgrad', {}),
    ('momo', {}),
    ('momo_adam', {}),
    ('muon', {}),
    ('prodigy', {'estim_lr0': 0.1}),
    ('schedule_free_adamw', {}),
    ('schedule_free_sgd', {}),
    ('simplified_ademamix', {}),
]


@pytest.mark.parametrize(('name', 'options'), RATED, ids=[name for name, _ in RATED])
def test_a_learned_rate_has_its_gradient(name: str, options: dict[str, Any]) -> None:
    start = torch.tensor([[0.5, -1.0], [2.0, 0.1]], dtype=F64)

    def final(rate: torch.Tensor) -> torch.Tensor:
        tx = getattr(contrib, name)(rate, **options)
        p = [start]
        state = tx.init(p)
        for step in range(3):
            extra = {'value': p[0].square().sum() + 1.0} if 'momo' in name else {}
            u, state = tx.update([(p[0] + step).cos()], state, p, **extra)
            p = [p[0] + u[0]]
        return p[0].square().sum()

    rate = torch.tensor(0.05, dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(final(rate), rate)
    h = 1e-6
    exact = (final(torch.tensor(0.05 + h, dtype=F64)) - final(torch.tensor(0.05 - h, dtype=F64))) / (2 * h)
    assert found != 0
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-7)
