# SPDX-License-Identifier: Apache-2.0
"""Fromage."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torchopt import checks
from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation, factory
from torchopt.combine import chain
from torchopt.numerics import in_double
from torchopt.spelling import suggesting
from torchopt.transform import scale_by_learning_rate, scale_by_trust_ratio
from torchopt.transform.scaling.decay import add_params


@suggesting
@shared_prose
def fromage(learning_rate: Any, min_norm: Any = 1e-6) -> GradientTransformation:
    r"""Fromage: steps proportional to the norm of each leaf, which keep that norm approximately constant.

    .. math::
        p_t = \frac{1}{\sqrt{1 + \eta^2}} \Bigl( p_{t-1} - \eta\,
              \frac{\lVert p_{t-1} \rVert}{\lVert g_t \rVert}\, g_t \Bigr)

    The norms are those of single leaves.  ``update`` requires ``params``.

    Args:
        learning_rate: :math:`\eta \ge 0`: a number, a 0-d tensor, or a schedule.
        min_norm: A lower bound of the norms; smaller norms are replaced by it.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.fromage(0.75)
        >>> params = [torch.tensor([2.0, 0.0])]
        >>> optimizer.update([torch.tensor([0.0, 5.0])], optimizer.init(params), params)[0]
        [tensor([-0.4000, -1.2000])]

    References:
        Bernstein et al., `On the distance between two neural networks and the stability of learning
        <https://arxiv.org/abs/2002.03432>`_, NeurIPS 2020.
    """
    if checks.is_schedule(learning_rate):
        rate, weight = partial(_at, _rate, learning_rate), partial(_at, _weight, learning_rate)
    else:
        checks.learning_rate('learning rate', learning_rate)
        rate, weight = _rate(learning_rate), _weight(learning_rate)
    return chain(scale_by_trust_ratio(min_norm), scale_by_learning_rate(rate), _add_params(weight))


def _shrinkage(rate: Any) -> Any:
    rate = in_double(rate)
    return (1.0 + rate * rate) ** -0.5


def _rate(rate: Any) -> Any:
    return rate * _shrinkage(rate)


def _weight(rate: Any) -> Any:
    """The multiple of the parameters that has to be added to shrink them."""
    return _shrinkage(rate) - 1.0


def _at(f: Callable[[Any], Any], schedule: Any, count: Any) -> Any:
    return f(schedule(count))


@factory
def _add_params(weight: Any) -> GradientTransformation:
    return add_params(weight, 'fromage')
