# SPDX-License-Identifier: Apache-2.0
"""Polyak's step size, at which the linear model of the objective reaches its minimum value."""

from __future__ import annotations

from typing import Any

import torch

from torchopt import checks, tree
from torchopt.autodiff.objective import objective_value
from torchopt.base import EmptyState, GradientTransformationExtraArgs, factory, init_empty_state
from torchopt.numerics import as_scalar_like

_SMALLEST = torch.finfo(torch.float64).eps
"""Denominators up to this count as zero."""


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


@factory
def scale_by_polyak(
    f_min: Any = 0.0, max_learning_rate: Any = 1.0, eps: Any = 0.0, variant: str = 'sps'
) -> GradientTransformationExtraArgs:
    r"""Scale updates by Polyak's step size.

    .. math::
        u = g \cdot \min\Bigl( \frac{f(p) - f^*}{\lVert g \rVert^2 + \epsilon},\ \gamma \Bigr)

    If the gradient is zero, so is the update; as in Optax, a denominator of at most 2.2e-16 counts as zero.

    Args:
        f_min: The minimum :math:`f^*` of the objective, or a lower bound of it.
        max_learning_rate: The largest step size :math:`\gamma`.
        eps: :math:`\epsilon \ge 0`.
        variant: ``'sps'``; or ``'sps+'``, whose update is zero if the value is below ``f_min``.

    Returns:
        A transformation whose ``update`` requires the extra argument ``value``, the objective :math:`f(p)`.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or the variant is unknown.
        TypeError: In ``update``, if ``value`` is not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_polyak()
        >>> p = torch.tensor(3.0)
        >>> tx.update([2 * p], tx.init([p]), value=p**2)[0]
        [tensor(1.5000)]

    References:
        Loizou et al., `Stochastic Polyak step-size for SGD: an adaptive learning rate for fast convergence
        <https://arxiv.org/abs/2002.10542>`_, AISTATS 2021.
    """
    checks.number('f_min value', f_min)
    checks.at_least('max_learning_rate value', max_learning_rate)
    checks.at_least('epsilon value', eps)
    if variant not in ('sps', 'sps+'):
        raise ValueError(f"Invalid variant: {variant!r}; expected 'sps' or 'sps+'.")

    def update(
        updates: Any, state: EmptyState, params: Any = None, *, value: Any = None, inplace: bool = False, **extra: Any
    ) -> tuple[Any, EmptyState]:
        # In double precision, squares of float32 numbers neither overflow nor underflow.
        square = tree.norm(tree.map(_double, updates), squared=True)
        gap = objective_value(value, square, updates, params, inplace=inplace)
        gap = gap - as_scalar_like(f_min, square)
        if variant == 'sps+':
            gap = torch.relu(gap)
        below = square + as_scalar_like(eps, square)
        tiny = below <= _SMALLEST
        rate = gap / torch.where(tiny, torch.ones_like(below), below)
        largest = as_scalar_like(max_learning_rate, rate)
        rate = torch.where(tiny, torch.zeros_like(rate), torch.where(rate < largest, rate, largest))
        return tree.scale(rate, updates), state

    return GradientTransformationExtraArgs(init_empty_state, update)
