# SPDX-License-Identifier: Apache-2.0
"""Optimistic gradients, extrapolated from the last two gradients."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import ElementwiseTransformation, GradientTransformation, factory
from torchopt.numerics import as_python_scalar, as_scalar_like
from torchopt.preconditions import state_of
from torchopt.scalars import where


@tree.safe_to_load
class ScaleByOptimisticGradientState(NamedTuple):
    """State of :func:`scale_by_optimistic_gradient`: whether this is the first step, and the last gradient."""

    is_initial_step: Any
    previous_gradient: Any


@factory
def scale_by_optimistic_gradient(alpha: Any = 1.0, beta: Any = 1.0) -> GradientTransformation:
    r"""Extrapolate gradients: :math:`u_t = (\alpha + \beta) g_t - \beta g_{t-1}`, with :math:`g_0 = g_1`.

    With it, gradient descent converges to equilibria of games around which plain gradient descent circles.

    Args:
        alpha: The weight :math:`\alpha` of the gradient.
        beta: The weight :math:`\beta` of the difference of the last two gradients; may be negative.

    Raises:
        ValueError: If a weight is NaN.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_optimistic_gradient()
        >>> state = tx.init([torch.zeros(())])
        >>> for g in (1.0, 3.0):
        ...     updates, state = tx.update([torch.tensor(g)], state)
        >>> updates
        [tensor(5.)]

    References:
        Mokhtari et al., `A unified analysis of extra-gradient and optimistic gradient methods for saddle point
        problems <https://arxiv.org/abs/1901.08511>`_, AISTATS 2020.
    """
    elementwise.check_each(checks.number, 'alpha value', alpha)
    elementwise.check_each(checks.number, 'beta value', beta)

    def init(params: Any) -> ScaleByOptimisticGradientState:
        return ScaleByOptimisticGradientState(torch.tensor(True, device='cpu'), elementwise.zero_moment(params))

    hypers = elementwise.Hyperparams(
        lambda first, **weights: partial(_rule, first=first, **weights), alpha=alpha, beta=beta
    )

    def prepare(state: ScaleByOptimisticGradientState) -> elementwise.ElementwiseStep:
        known = as_python_scalar(state.is_initial_step)
        rule = hypers.rule(state.is_initial_step if known is None else bool(known))
        later = torch.zeros_like(state.is_initial_step)
        return elementwise.ElementwiseStep(
            rule, (state.previous_gradient,), partial(ScaleByOptimisticGradientState, later)
        )

    return ElementwiseTransformation(init, prepare, state_of(ScaleByOptimisticGradientState), hypers=hypers)


def _rule(g: Tensor, last: Tensor, *, first: Any, alpha: Any, beta: Any) -> tuple[Tensor, Tensor]:
    last = where(first, g, last)
    # A copy of the gradient, since the caller may change it in place.
    return g * as_scalar_like(alpha + beta, g) - last * as_scalar_like(beta, g), g.clone()
