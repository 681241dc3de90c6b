# SPDX-License-Identifier: Apache-2.0
"""Derivatives of a solution along one direction, against finite differences: few runs, where gradcheck takes dozens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

STEP = 1e-5


def assert_derivatives(
    solve: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    forward: bool = True,
    second: bool = False,
    tolerance: float = 1e-5,
) -> None:
    """Reverse mode, forward mode and second derivatives of ``solve(*inputs)`` agree with central differences."""
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in inputs]
    inputs = [x.detach() for x in inputs]

    def along_direction(gradients: Sequence[Tensor | None]) -> Tensor:
        return torch.stack([(g * v).sum() for g, v in zip(gradients, along) if g is not None]).sum()

    def difference(f: Callable[..., Any]) -> Any:
        ahead, behind = (f(*(x + s * STEP * v for x, v in zip(inputs, along))) for s in (1.0, -1.0))
        return (ahead - behind) / (2 * STEP)

    expected = difference(solve)
    weights = torch.randn(expected.shape, dtype=expected.dtype, generator=generator)

    def slope(*xs: Tensor) -> Tensor:
        leaves = [x.detach().requires_grad_() for x in xs]
        return along_direction(torch.autograd.grad((solve(*leaves) * weights).sum(), leaves, allow_unused=True))

    scale = float(expected.abs().max()) + 1.0
    torch.testing.assert_close(slope(*inputs), (expected * weights).sum(), atol=10 * tolerance * scale, rtol=0)
    if forward:
        tangent = torch.func.jvp(solve, tuple(inputs), tuple(along))[1]
        torch.testing.assert_close(tangent, expected, atol=tolerance * scale, rtol=0)
    if second:
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = (solve(*leaves) * weights).sum()
        total = along_direction(torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True))
        found = along_direction(torch.autograd.grad(total, leaves, allow_unused=True))
        reference = difference(slope)
        allowed = 1e2 * tolerance * (1.0 + float(reference.abs()))
        torch.testing.assert_close(found, reference, atol=allowed, rtol=0)
