# SPDX-License-Identifier: Apache-2.0
"""The room of the native engine by hand: AdamOp against the closed form, and the question whether the engine runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import torchopt
from torchopt.accelerated_op import AdamOp

B1, B2, EPS = 0.9, 0.99, 1e-3


def written_out(m: Any, v: Any, g: Any, t: int, eps_root: float) -> tuple[Any, ...]:
    m, v = B1 * m + (1 - B1) * g, B2 * v + (1 - B2) * g * g
    return m, v, m / (1 - B1**t) / ((v / (1 - B2**t) + eps_root).sqrt() + EPS)


def tensors() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    m, v, g = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    return [m, v.abs(), g]


@pytest.mark.parametrize('count', [1, 7, torch.tensor(7)])
@pytest.mark.parametrize('eps_root', [0.0, 1e-2])
def test_values(count: Any, eps_root: float) -> None:
    m, v, g = tensors()
    found = AdamOp(B1, B2, EPS, eps_root=eps_root, inplace=False)(m, v, g, count)
    torch.testing.assert_close(found, written_out(m, v, g, int(count), eps_root), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close([m, v, g], tensors(), rtol=0.0, atol=0.0)


def test_in_place_overwrites_all_three() -> None:
    m, v, g = tensors()
    expected = written_out(*[x.clone() for x in (m, v, g)], 3, 0.0)
    found = AdamOp(B1, B2, EPS)(m, v, g, 3)
    assert [id(x) for x in found] == [id(m), id(v), id(g)]
    torch.testing.assert_close((m, v, g), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize('eps_root', [0.0, 1e-2])
def test_derivatives(eps_root: float) -> None:
    inputs = [x.requires_grad_() for x in tensors()]
    op = AdamOp(B1, B2, EPS, eps_root=eps_root, inplace=False)
    assert torch.autograd.gradcheck(lambda m, v, g: op(m, v, g, 2), inputs)
    assert torch.autograd.gradgradcheck(lambda m, v, g: op(m, v, g, 2), inputs)


def test_no_gradient() -> None:
    m, v, _ = tensors()
    new_m, new_v, u = AdamOp()(m, v, None, 1)
    assert new_m is m
    assert new_v is v
    assert u is None


def test_names_of_the_old_release() -> None:
    assert torchopt.accelerated_op.is_available is torchopt.accelerated_op_available
    assert torchopt.accelerated_op.adam_op.AdamOp is AdamOp
    assert repr(AdamOp(inplace=False)) == 'AdamOp(b1=0.9, b2=0.999, eps=1e-08, eps_root=0.0, inplace=False)'


def test_which_devices() -> None:
    available = torchopt.accelerated_op_available
    assert available()
    assert available('cpu')
    assert available(torch.device('cpu'))
    assert available(['cpu', torch.device('cpu')])
    assert not available('meta')
    assert not available('no such device')
    assert not available(10_000)
    assert not available(['cpu', 10_000])
    with pytest.raises(TypeError, match='is not a device'):
        available(1.5)
    with pytest.raises(TypeError, match='is not a device'):
        available([None])
