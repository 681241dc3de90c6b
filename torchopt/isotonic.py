# SPDX-License-Identifier: Apache-2.0
"""Isotonic regression: the projection onto the monotone vectors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ['isotonic_l2_pav']


def isotonic_l2_pav(y: Tensor, y_min: Any = -math.inf, y_max: Any = math.inf, increasing: bool = True) -> Tensor:
    r"""Project a vector onto the vectors whose elements are in ascending (or descending) order.

    .. math:: \min_{v_1 \le \dots \le v_n} \|v - y\|_2^2

    The solution is constant on blocks of consecutive elements, and equal to the mean of :math:`y` on each block.  The
    pool-adjacent-violators algorithm finds the blocks in linear time, on the host.  The derivative averages over the
    blocks.

    Args:
        y: A floating vector.
        y_min: The lower bound; smaller elements of the solution are set to it.
        y_max: The upper bound; larger elements of the solution are set to it.
        increasing: Whether the order is ascending.

    Returns:
        The solution :math:`v`, a vector like ``y``.  If an element of ``y`` is NaN, all elements are.

    Raises:
        TypeError: If ``y`` is not floating.
        ValueError: If ``y`` is not a vector.

    Example:
        >>> import torch, torchopt
        >>> torchopt.isotonic.isotonic_l2_pav(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])

    References:
        Best and Chakravarti, `Active set algorithms for isotonic regression; a unifying framework
        <https://doi.org/10.1007/BF01580873>`_, 1990; Blondel et al., *Fast differentiable sorting and ranking*, 2020
        (arXiv 2002.08871).
    """
    if not y.is_floating_point():
        raise TypeError(f'y has dtype {y.dtype}; expected a floating dtype.')
    if y.ndim != 1:
        raise ValueError(f'y has shape {tuple(y.shape)}; expected a vector. For each row use torch.vmap.')
    n = len(y)
    if n == 0:
        return y.clone()
    blocks = _blocks(y.detach() if increasing else -y.detach())
    # Compute the means for fixed blocks, so that derivatives of every order are correct.
    sums = torch.zeros_like(y).scatter_add(0, blocks, y)
    sizes = torch.zeros_like(y).scatter_add(0, blocks, torch.ones_like(y))
    means = sums / sizes.clamp(min=1.0)
    solution = means.gather(0, blocks)
    lowest, highest = (v if isinstance(v, Tensor) else torch.full_like(y[:1], v) for v in (y_min, y_max))
    return torch.minimum(torch.maximum(solution, lowest.to(y)), highest.to(y))


@torch.library.custom_op('torchopt::isotonic_blocks', mutates_args=(), schema='(Tensor y) -> Tensor')
def _blocks(y: Tensor) -> Tensor:
    """The block of each element, numbered from 0."""
    rows = y.reshape(-1, y.shape[-1]).tolist()
    return torch.tensor([_pool(row) for row in rows], dtype=torch.int64, device=y.device).reshape(y.shape)


@_blocks.register_fake
def _(y: Tensor) -> Tensor:
    return torch.empty(y.shape, dtype=torch.int64, device=y.device)


@_blocks.register_vmap
def _(info: Any, in_dims: tuple[int], y: Tensor) -> tuple[Tensor, int]:
    return _blocks(y.movedim(in_dims[0], 0)), 0


def _pool(y: list[float]) -> list[int]:
    """Merge neighbouring blocks as long as their means are not in ascending order."""
    if not all(map(math.isfinite, y)):
        return [0] * len(y) if any(map(math.isnan, y)) else _pool([max(min(v, 1e300), -1e300) for v in y])
    means: list[float] = []
    sizes: list[int] = []
    for value in y:
        size = 1
        while means and means[-1] >= value:
            # Store the mean instead of the sum, since it cannot overflow.
            below, before = sizes.pop(), means.pop()
            size += below
            value += (before - value) * (below / size)
        means.append(value)
        sizes.append(size)
    return [block for block, size in enumerate(sizes) for _ in range(size)]
