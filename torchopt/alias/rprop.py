# SPDX-License-Identifier: Apache-2.0
"""Rprop."""

from __future__ import annotations

from typing import Any

from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import scale, scale_by_rprop


@suggesting
def rprop(
    learning_rate: Any, eta_minus: Any = 0.5, eta_plus: Any = 1.2, min_step_size: Any = 1e-6, max_step_size: Any = 50.0
) -> GradientTransformation:
    r"""Resilient backpropagation: a step size per element, which grows while the gradient keeps its sign.

    The rule is :func:`torchopt.transform.scale_by_rprop`.  As in Optax, the update is the step of the previous
    gradient, and the first update is zero.  It is thus one call behind :class:`torch.optim.Rprop`, and the step of an
    element is dropped if the sign of its gradient changes.  Use full batches, since noise changes signs.

    Args:
        learning_rate: The first step size, a number or a 0-d tensor.
        eta_minus: The factor of the step size if the sign has changed.
        eta_plus: The factor if the sign has not changed.
        min_step_size: The smallest step size.
        max_step_size: The largest step size.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.rprop(0.5)
        >>> state = optimizer.init([torch.zeros(())])
        >>> for g in (3.0, 2.0):
        ...     updates, state = optimizer.update([torch.tensor(g)], state)
        >>> updates
        [tensor(-0.5000)]

    References:
        Riedmiller and Braun, `A direct adaptive method for faster backpropagation learning: the RPROP algorithm
        <https://doi.org/10.1109/ICNN.1993.298623>`_, 1993.
    """
    return chain(scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size), scale(-1.0))
