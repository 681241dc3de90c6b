# SPDX-License-Identifier: Apache-2.0
r"""The estimators as data: the weights of the function values in the derivatives.

Let :math:`z` have mean zero and covariance :math:`I`, and let :math:`f_s = f(x + s \sigma z)`.  Every method is

.. math::
    \nabla f_\sigma(x) \approx \frac{1}{n \sigma} \sum_{i=1}^n \Big(\sum_s a_s f_s\Big)\, z_i

and, for standard normal :math:`z`, by a second application of Stein's identity,

.. math::
    \nabla^2 f_\sigma(x) \approx \frac{1}{n \sigma^2} \sum_{i=1}^n \Big(\sum_s b_s f_s\Big)\, (z_i z_i^\top - I).

Since :math:`\mathbb{E}\, z = 0` and :math:`\mathbb{E}\,(z z^\top - I) = 0`, the weight of :math:`f_0 = f(x)` does not
change the expectation; it only reduces the variance.  Since :math:`z` and :math:`-z` have the same distribution, the
weight can be divided between :math:`f_1` and :math:`f_{-1}` in any way, as long as the sum (for :math:`b`) or the
difference (for :math:`a`) is one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Estimator(NamedTuple):
    """One row of the table.

    Args:
        slope: The weights :math:`a_s` of the gradient, by :math:`s` in -1, 0, 1.
        curvature: The weights :math:`b_s` of the second derivative, or None.
        arrange: How to change the directions: ``'as drawn'``, ``'orthogonal'``, or ``'signs'``.

    Example:
        >>> from torchopt.zero_order_diff import ESTIMATORS
        >>> ESTIMATORS['forward'].slope
        {1: 1.0, 0: -1.0}
    """

    slope: dict[int, float]
    curvature: dict[int, float] | None
    arrange: str = 'as drawn'

    @property
    def signs(self) -> tuple[int, ...]:
        """The :math:`s` at which the function is evaluated for each direction."""
        return tuple(s for s in self.slope if s)


#: The methods of :func:`torchopt.zero_order_diff.zero_order`, by name.
ESTIMATORS: dict[str, Estimator] = {
    'naive': Estimator({1: 1.0}, {1: 1.0}),
    'forward': Estimator({1: 1.0, 0: -1.0}, {1: 1.0, 0: -1.0}),
    'antithetic': Estimator({1: 0.5, -1: -0.5}, {1: 0.5, -1: 0.5, 0: -1.0}),
    'orthogonal': Estimator({1: 0.5, -1: -0.5}, {1: 0.5, -1: 0.5, 0: -1.0}, 'orthogonal'),
    # For signs, the diagonal of z z^T - I is zero, so it does not estimate second derivatives.
    'spsa': Estimator({1: 0.5, -1: -0.5}, None, 'signs'),
}


def combine(weights: dict[int, float], signs: tuple[int, ...], values: Tensor, center: Tensor) -> Tensor:
    """The weighted sum, of shape ``(n,)``, of the values, of shape ``(n, len(signs))``, and :math:`f_0`, the center."""
    row = torch.tensor([weights[s] for s in signs], dtype=values.dtype, device=values.device)
    total = values @ row
    return total + weights[0] * center.to(total) if 0 in weights else total
