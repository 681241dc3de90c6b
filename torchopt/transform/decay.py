# SPDX-License-Identifier: Apache-2.0
"""Weight decay: pull parameters towards zero."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchopt import checks, tree
from torchopt.base import (
    EmptyState,
    GradientTransformation,
    elementwise,
    factory,
    identity,
    init_empty_state,
)
from torchopt.numerics import as_scalar_like, carries_no_graph
from torchopt.transform.masking import masked

__all__ = ['add_decayed_weights']


@factory
def add_decayed_weights(weight_decay: Any = 0.0, mask: Any = None) -> GradientTransformation:
    r"""Add a multiple of the parameters to the updates: :math:`u = g + \lambda p`.

    Before a learning rate alone this is an l2 penalty; after an adaptive rescaling it is decoupled decay (AdamW).

    In a step of plain training (the parameter is a leaf that requires grad, the gradient has no graph) the parameter
    counts as a constant, so that no graph grows from step to step.

    Args:
        weight_decay: :math:`\lambda \ge 0`.  Zero, without a mask, gives the identity.
        mask: Where to decay: a tree of booleans, a prefix of the parameters' tree, or a function that makes one
            from the parameters.  None decays everywhere.

    Raises:
        ValueError: If the decay is negative; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.add_decayed_weights(0.1)
        >>> params = {'w': torch.tensor(5.0)}
        >>> tx.update({'w': torch.tensor(1.0)}, tx.init(params), params)[0]
        {'w': tensor(1.5000)}

    References:
        Loshchilov and Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_, 2017.
    """
    checks.at_least('weight_decay value', weight_decay)
    if mask is not None:
        return masked(add_decayed_weights(weight_decay), mask)
    if not checks.nonzero(weight_decay):
        return identity()

    def rule(g: Tensor, p: Tensor) -> tuple[Tensor]:
        if carries_no_graph(p, g):
            p = p.detach()
        return (g + p * as_scalar_like(weight_decay, p),)

    return elementwise(
        init_empty_state, lambda state: tree.Pass(rule, (), EmptyState, reads_params=True), params_for='weight decay'
    )
