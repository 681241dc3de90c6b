# SPDX-License-Identifier: Apache-2.0
"""DoWG, distance over weighted gradients: DoG with larger weights for later gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from torchopt import checks, tree
from torchopt.base import GradientTransformation, factory, identity
from torchopt.combine import chain
from torchopt.contrib.constants import kept_copy, without_graphs
from torchopt.contrib.scalars import real_part, scalar_beside
from torchopt.numerics import as_scalar_like, positive_ratio, safe_sqrt
from torchopt.preconditions import params_for, state_of
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_learning_rate


@tree.safe_to_load
class DoWGState(NamedTuple):
    """State of :func:`dowg`.

    Attributes:
        init_params: The initial parameters.
        weighted_sq_norm_grads: The weighted sum of the squared norms of the gradients.
        estim_sq_dist: The largest squared distance from the initial parameters so far.
    """

    init_params: Any
    weighted_sq_norm_grads: Any
    estim_sq_dist: Any


@factory
def scale_by_dowg(init_estim_sq_dist: Any = None, eps: Any = 1e-4) -> GradientTransformation:
    """Scale updates with the rule of :func:`dowg`, which describes the arguments."""
    first = eps if init_estim_sq_dist is None else init_estim_sq_dist
    checks.at_least('init_estim_sq_dist value', first)
    checks.at_least('epsilon value', eps)

    def init(params: Any) -> DoWGState:
        return DoWGState(kept_copy(params), scalar_beside(params, 0.0), scalar_beside(params, first))

    def update(updates: Any, state: DoWGState, params: Any = None, *, inplace: bool = False) -> tuple[Any, DoWGState]:
        g, p, start = without_graphs(updates, params, state.init_params, inplace=inplace)
        apart = tree.map(lambda p, p0: p - p0, p, start)
        square = torch.maximum(state.estim_sq_dist, real_part(tree.wide_norm(apart, squared=True), state.estim_sq_dist))
        total = state.weighted_sq_norm_grads + square * real_part(tree.wide_norm(g, squared=True), square)
        rate = positive_ratio(square, safe_sqrt(total) + as_scalar_like(eps, total))
        u = tree.scale(rate, g)
        return u, DoWGState(start, total, square)

    return GradientTransformation.requiring(
        init, update, state_of(DoWGState), params_for('DoWG, which uses the distance to their initial values')
    )


@suggesting
def dowg(
    learning_rate: Any = 1.0,
    init_estim_sq_dist: Any = None,
    eps: Any = 1e-4,
    weight_decay: Any = None,
    mask: Any = None,
) -> GradientTransformation:
    r"""DoWG, distance over weighted gradients: DoG with larger weights for later gradients.

    .. math::
        \bar r_t^2 = \max(\bar r_{t-1}^2, \lVert x_t - x_0 \rVert^2), \qquad
        v_t = v_{t-1} + \bar r_t^2 \lVert g_t \rVert^2, \qquad
        x_{t+1} = x_t - \eta\, \frac{\bar r_t^2}{\sqrt{v_t} + \epsilon}\, g_t

    Args:
        learning_rate: The factor :math:`\eta`, usually 1, or a schedule.
        init_estim_sq_dist: :math:`\bar r_{-1}^2`; None means ``eps``.
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda \ge 0`, which replaces :math:`g` by :math:`g + \lambda x`; None means no decay.
        mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.dowg(init_estim_sq_dist=0.25, eps=0.0)
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-0.5000)]

    References:
        Khaled et al., `DoWG unleashed: an efficient universal parameter-free gradient descent method
        <https://arxiv.org/abs/2305.16284>`_, NeurIPS 2023.
    """
    return chain(
        identity() if weight_decay is None else add_decayed_weights(weight_decay, mask),
        scale_by_dowg(init_estim_sq_dist, eps),
        scale_by_learning_rate(learning_rate),
    )
