# SPDX-License-Identifier: Apache-2.0
"""Distance over gradients: a parameter-free learning rate for each leaf."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformation, factory
from torchopt.dtypes import DTypeLike, wide_dtype, widened
from torchopt.elementwise import as_constants, leaf_norm, ranges
from torchopt.graphs import carries_graph
from torchopt.numerics import abs_sq, as_scalar_like, positive_ratio, safe_sqrt
from torchopt.preconditions import params_for, state_of


@tree.safe_to_load
class ScaleByDistanceOverGradientsState(NamedTuple):
    """State of :func:`scale_by_distance_over_gradients`.

    Attributes:
        max_dist: The largest distance of each leaf from its initial value so far, 0-d tensors.
        grad_sum_of_squares: The sum of the squared gradients of each leaf, tensors of one element.
        init_params: The initial parameters.
    """

    max_dist: Any
    grad_sum_of_squares: Any
    init_params: Any


@factory
def scale_by_distance_over_gradients(
    reps_rel: Any = 1e-6, eps: Any = 1e-8, param_dtype: DTypeLike | None = torch.float32, global_scale: Any = 1.0
) -> GradientTransformation:
    r"""Scale every leaf by its distance from the initial parameters, divided by the norm of all its gradients.

    .. math::
        r_0 = \epsilon_r (1 + \lVert p_0 \rVert), \qquad r_t = \max(r_{t-1}, \lVert p_t - p_0 \rVert), \qquad
        s_t = s_{t-1} + \lVert g_t \rVert^2, \qquad u_t = c\, \frac{r_t}{\sqrt{s_t + \epsilon}}\, g_t

    Args:
        reps_rel: :math:`\epsilon_r > 0`, the initial distance relative to the norm of the parameter.
        eps: :math:`\epsilon \ge 0`.
        param_dtype: Real dtype of the stored initial parameters; None means that of each parameter.
        global_scale: The factor :math:`c`.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_distance_over_gradients(reps_rel=0.1, eps=0.0)
        >>> params = [torch.tensor([3.0, 4.0])]
        >>> tx.update([torch.tensor([0.0, 2.0])], tx.init(params), params)[0]
        [tensor([0.0000, 0.6000])]

    References:
        Ivgi et al., `DoG is SGD's best friend: a parameter-free dynamic step size schedule
        <https://arxiv.org/abs/2302.12022>`_, ICML 2023.
    """
    checks.positive('reps_rel value', reps_rel)
    checks.at_least('epsilon value', eps)
    checks.number('global_scale value', global_scale)
    kept = ranges.moment_dtype(param_dtype, 'param_dtype')

    def init(params: Any) -> ScaleByDistanceOverGradientsState:
        elementwise.check_inexact(params, name='params')

        def first_distance(p: Tensor) -> Tensor:
            norm = leaf_norm(p)
            return as_scalar_like(reps_rel, norm) * (1 + norm)

        def keep(p: Tensor) -> Tensor:
            dtype = kept.to_complex() if kept is not None and p.is_complex() else kept
            return p.to(dtype=dtype or p.dtype, copy=True)

        sums = tree.map(lambda p: torch.zeros(1, dtype=wide_dtype(p.dtype), device=p.device), params)
        return ScaleByDistanceOverGradientsState(tree.map(first_distance, params), sums, tree.map(keep, params))

    def rule(g: Tensor, distance: Tensor, squares: Tensor, start: Tensor, p: Tensor) -> tuple[Tensor, ...]:
        p, start, constant = as_constants(g, p, start, distance)
        if not carries_graph(reps_rel):  # the initial distance depends on it
            distance = constant
        distance = torch.maximum(distance, leaf_norm(p - start).to(distance.dtype))
        squares = squares + abs_sq(widened(g)).sum()
        rate = positive_ratio(distance, safe_sqrt(squares.reshape(()) + as_scalar_like(eps, squares)))
        return tree.scale(as_scalar_like(global_scale, rate) * rate, g), distance, squares, start

    def update(
        updates: Any, state: ScaleByDistanceOverGradientsState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, ScaleByDistanceOverGradientsState]:
        updates, *new = elementwise.apply_rule(rule, updates, *state, reads=(params,), whole=True)
        return updates, ScaleByDistanceOverGradientsState(*new)

    return GradientTransformation.requiring(
        init, update, state_of(ScaleByDistanceOverGradientsState), params_for('scale_by_distance_over_gradients')
    )
