# SPDX-License-Identifier: Apache-2.0
"""Orthogonalization of matrices by matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchopt.dtypes import real_dtype
from torchopt.norms import two_norm
from torchopt.numerics import as_scalar_like

PRECONDITIONINGS = ('frobenius', 'spectral', 'aol', 'schatten')
"""The methods that scale the singular values to at most one."""

_LEAST = 1e-8
"""A lower bound of the norm by which the first iteration of ``aol`` and ``schatten`` divides."""


def orthogonalize(
    x: Tensor, coefficients: Sequence[Sequence[Any]], preconditioning: str = 'frobenius', eps: Any = 1e-8
) -> Tensor:
    r"""Make the singular values of matrices close to one, by Newton-Schulz iterations.

    An odd polynomial acts on the singular values only: with :math:`X = U S V^\top`,

    .. math::
        a X + (b\, X X^\top + c\, (X X^\top)^2)\, X = U (a S + b S^3 + c S^5) V^\top.

    Repeated, it makes all singular values in (0, 1] approximately one.  Preconditioning makes them at most one first:

    - ``'frobenius'`` divides by the Frobenius norm,
    - ``'spectral'`` by the largest singular value,
    - ``'aol'`` divides row :math:`i` by the root of :math:`\sum_j |X X^\top|_{ij}` (almost orthogonal layers),
    - ``'schatten'`` divides by the root of the Frobenius norm of :math:`X X^\top` (the Schatten 4-norm).

    The last two reuse the product :math:`X X^\top` of the first iteration.

    Args:
        x: Matrices, of shape (batch, rows, columns).
        coefficients: :math:`a, b, c` for each iteration.
        preconditioning: One of the four methods.
        eps: Added to the norm in the first two methods.

    References:
        Björck and Bowie, `An iterative algorithm for computing the best estimate of an orthogonal matrix
        <https://doi.org/10.1137/0708036>`_, 1971.
        Prach and Lampert, `Almost-orthogonal layers for efficient general-purpose Lipschitz networks
        <https://arxiv.org/abs/2208.03160>`_, ECCV 2022.
    """
    flat = x.shape[-2] <= x.shape[-1]
    x = x if flat else x.mT  # make the products small
    if preconditioning == 'frobenius':
        norm = two_norm([x], dim=(-2, -1), keepdim=True)
        x = (x / (norm + as_scalar_like(eps, norm))).to(x.dtype)
    elif preconditioning == 'spectral':
        norm = torch.linalg.matrix_norm(x, 2, keepdim=True)
        x = x / (norm + as_scalar_like(eps, norm))
    for i, (a, b, c) in enumerate(coefficients):
        gram = x @ x.mH
        if i == 0 and preconditioning == 'aol':
            shrink = gram.abs().sum(dim=-1, keepdim=True).clamp(min=_LEAST).rsqrt()
            x, gram = x * shrink, gram * shrink * shrink.mT
        elif i == 0 and preconditioning == 'schatten':
            norm = two_norm([gram], dim=(-2, -1), keepdim=True)
            square = norm.clamp(min=_LEAST).reciprocal().to(real_dtype(x.dtype))
            x, gram = x * square.sqrt(), gram * square
        a, b, c = (as_scalar_like(coefficient, x) for coefficient in (a, b, c))
        x = a * x + (b * gram + (c * gram) @ gram) @ x
    return x if flat else x.mT
