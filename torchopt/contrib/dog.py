# SPDX-License-Identifier: Apache-2.0
"""DoG, distance over gradients: a learning rate from the distance to the initial parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from torchopt import checks, tree
from torchopt.base import GradientTransformation, factory, identity
from torchopt.combine import chain
from torchopt.contrib.constants import kept_copy, without_graphs
from torchopt.contrib.scalars import real_part, scalar_beside
from torchopt.graphs import carries_graph
from torchopt.numerics import as_scalar_like, positive_ratio, safe_sqrt, tensor_like
from torchopt.preconditions import params_for, state_of
from torchopt.scalars import settled, where
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_learning_rate

_KINDS = ('distance', 'learning_rate', 'heuristic')


@tree.safe_to_load
class DoGState(NamedTuple):
    """State of :func:`dog`.

    Attributes:
        is_init_step: Whether the next step is the first.
        init_params: The initial parameters.
        max_dist: The largest distance from the initial parameters so far.
        sum_sq_norm_grads: The sum of the squared norms of the gradients.
    """

    is_init_step: Any
    init_params: Any
    max_dist: Any
    sum_sq_norm_grads: Any


@factory
def scale_by_dog(init_step: tuple[str, Any], eps: Any = 1e-8) -> GradientTransformation:
    """Scale updates with the rule of :func:`dog`, which describes the arguments."""
    if not isinstance(init_step, (tuple, list)) or len(init_step) != 2 or init_step[0] not in _KINDS:
        raise ValueError(
            f'Invalid init_step: {init_step!r}; expected a pair of one of {_KINDS} and a number, such as '
            f"('heuristic', 1e-6)."
        )
    kind, size = init_step
    checks.at_least('init_step value', size)
    checks.at_least('epsilon value', eps)

    def init(params: Any) -> DoGState:
        start = kept_copy(params)
        first = {'distance': size, 'learning_rate': 0.0}.get(kind)
        if first is None:
            norm = tree.wide_norm(start)
            first = as_scalar_like(size, norm) * (1 + norm)
        begun = torch.ones((), dtype=torch.bool, device='cpu')
        return DoGState(begun, start, scalar_beside(params, first), scalar_beside(params, 0.0))

    def update(updates: Any, state: DoGState, params: Any = None, *, inplace: bool = False) -> tuple[Any, DoGState]:
        g, p, start, longest = without_graphs(updates, params, state.init_params, state.max_dist, inplace=inplace)
        if carries_graph(size) and not inplace:
            longest = state.max_dist  # computed from it
        far = real_part(tree.wide_norm(tree.map(lambda p, p0: p - p0, p, start)), longest)
        distance = torch.maximum(longest, far)
        total = state.sum_sq_norm_grads + real_part(tree.wide_norm(g, squared=True), distance)
        rate = positive_ratio(distance, safe_sqrt(total + as_scalar_like(eps, total)))
        if kind == 'learning_rate':
            rate = where(settled(state.is_init_step), tensor_like(size, rate), rate)
        u = tree.scale(rate, g)
        return u, DoGState(torch.zeros_like(state.is_init_step), start, distance, total)

    return GradientTransformation.requiring(
        init, update, state_of(DoGState), params_for('DoG, which uses the distance to their initial values')
    )


@suggesting
def dog(
    learning_rate: Any = 1.0,
    init_step: tuple[str, Any] = ('heuristic', 1e-6),
    eps: Any = 1e-8,
    weight_decay: Any = None,
    mask: Any = None,
) -> GradientTransformation:
    r"""DoG, distance over gradients: a learning rate from the distance to the initial parameters.

    .. math::
        \bar r_t = \max(\bar r_{t-1}, \lVert x_t - x_0 \rVert), \qquad
        G_t = G_{t-1} + \lVert g_t \rVert^2, \qquad
        x_{t+1} = x_t - \eta\, \frac{\bar r_t}{\sqrt{G_t + \epsilon}}\, g_t

    Norms are those of all parameters together.  The paper recommends the average of the iterates as the result.

    Args:
        learning_rate: The factor :math:`\eta`, usually 1, or a schedule.
        init_step: The initialization: ``('heuristic', a)`` means :math:`\bar r_{-1} = a\,(1 + \lVert x_0 \rVert)`,
            ``('distance', r)`` means :math:`\bar r_{-1} = r`, ``('learning_rate', c)`` means the first step
            :math:`-c\,g_0`.
        eps: :math:`\epsilon \ge 0`.
        weight_decay: :math:`\lambda \ge 0`, which replaces :math:`g` by :math:`g + \lambda x`; None means no decay.
        mask: Which parameters decay; see :func:`torchopt.transform.add_decayed_weights`.

    Raises:
        ValueError: If ``init_step`` is not a pair of a kind and a number; in ``update``, if parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.dog(init_step=('learning_rate', 0.1))
        >>> p = [torch.tensor(1.0)]
        >>> optimizer.update([torch.tensor(2.0)], optimizer.init(p), p)[0]
        [tensor(-0.2000)]

    References:
        Ivgi et al., `DoG is SGD's best friend: a parameter-free dynamic step size schedule
        <https://arxiv.org/abs/2302.12022>`_, ICML 2023.
    """
    return chain(
        identity() if weight_decay is None else add_decayed_weights(weight_decay, mask),
        scale_by_dog(init_step, eps),
        scale_by_learning_rate(learning_rate),
    )
