# SPDX-License-Identifier: Apache-2.0
"""Sums and softmax along several axes, over the elements that a mask selects."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def keep(where: Tensor | None, *xs: Tensor) -> tuple[Tensor, ...]:
    """Replace the elements outside a mask by zeros, so that they reach neither the result nor its derivatives."""
    return xs if where is None else tuple(torch.where(where, x, 0.0) for x in xs)


def finite_where(weight: Tensor, x: Tensor) -> Tensor:
    r"""Replace infinite elements of weight 0 by 0, so that :math:`0 \cdot \infty = 0`, in all derivatives too."""
    return torch.where((weight == 0) & x.isinf(), 0.0, x)


def align(where: Tensor | None, dims: tuple[int, ...], ndim: int) -> Tensor | None:
    """Insert dimensions of size 1 into a mask of whole rows, at ``dims``."""
    if where is None or where.ndim == ndim:
        return where
    for dim in sorted(dims):
        where = where.unsqueeze(dim)
    return where


def total(x: Tensor, dims: tuple[int, ...], where: Tensor | None = None, keepdim: bool = False) -> Tensor:
    """The sum along axes; the tensor itself if ``dims`` is empty."""
    if where is not None:
        x = torch.where(where, x, 0.0)
    return x.sum(dims, keepdim=keepdim) if dims else x


def normalizer(x: Tensor, dims: tuple[int, ...], where: Tensor | None = None, keepdim: bool = False) -> Tensor:
    r"""The logarithm of :math:`\sum_i e^{x_i}` along axes; an arbitrary finite number if the mask selects nothing."""
    if where is not None:
        # Without any element, the result would be log 0, whose derivatives are NaN.
        nothing = ~(where.any(dims[0], True) if len(dims) == 1 else where.sum(dims, True) > 0) if dims else ~where
        x = torch.where(where, x, torch.where(nothing, 0.0, -math.inf).to(x.dtype))
    return torch.logsumexp(x, dims, keepdim=keepdim) if dims else x


def log_softmax(x: Tensor, dims: tuple[int, ...], where: Tensor | None = None) -> Tensor:
    r"""The logarithm of the softmax along axes.

    Elements outside the mask get 0 instead of :math:`\log 0`, to avoid :math:`0 \cdot \infty` in the gradients.
    """
    if where is None:
        return torch.log_softmax(x, dims[0]) if len(dims) == 1 else x - normalizer(x, dims, keepdim=True)
    return torch.where(where, x - normalizer(x, dims, where, keepdim=True), 0.0)
