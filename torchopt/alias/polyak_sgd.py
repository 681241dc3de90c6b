# SPDX-License-Identifier: Apache-2.0
"""Gradient descent with Polyak's step size."""

from __future__ import annotations

from typing import Any

from torchopt.alias.sgd import sgd
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import scale_by_polyak

__all__ = ['polyak_sgd']


@suggesting
def polyak_sgd(
    max_learning_rate: Any = 1.0, scaling: Any = 1.0, f_min: Any = 0.0, eps: Any = 0.0, variant: str = 'sps'
) -> GradientTransformation:
    r"""Gradient descent with Polyak's step size.

    .. math::
        p_t = p_{t-1} - d_t \min\Bigl( \frac{f(p_{t-1}) - f^*}{\lVert d_t \rVert^2 + \epsilon},\ \gamma \Bigr), \qquad
        d_t = s\, g_t

    ``update`` requires the extra argument ``value``, the objective at the parameters.

    Args:
        max_learning_rate: The largest step size :math:`\gamma`.
        scaling: The factor :math:`s` of the gradient, at least 0, or a schedule of it.
        f_min: The minimum :math:`f^*` of the objective, or a lower bound of it.
        eps: :math:`\epsilon \ge 0`.
        variant: ``'sps'``; or ``'sps+'``, whose step is zero if the value is below ``f_min``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.polyak_sgd()
        >>> p = torch.tensor(3.0)
        >>> optimizer.update([2 * p], optimizer.init([p]), [p], value=p**2)[0]
        [tensor(-1.5000)]

    References:
        Loizou et al., `Stochastic Polyak step-size for SGD: an adaptive learning rate for fast convergence
        <https://arxiv.org/abs/2002.10542>`_, AISTATS 2021.
    """
    return chain(sgd(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))
