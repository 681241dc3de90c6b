# SPDX-License-Identifier: Apache-2.0
"""Weight decay: pull parameters towards zero."""

from __future__ import annotations

from functools import partial
from typing import Any

from torchopt import checks, tree
from torchopt._C import reference
from torchopt.base import (
    EmptyState,
    GradientTransformation,
    elementwise,
    factory,
    identity,
    init_empty_state,
)
from torchopt.transform.masking import MaskedState, masked, resolve_mask

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
    if not checks.nonzero(weight_decay):
        return identity() if mask is None else masked(identity(), mask)
    rule = partial(reference.add_params, weight=weight_decay)
    if mask is None:
        return elementwise(
            init_empty_state,
            lambda state: tree.Pass(rule, (), EmptyState, reads_params=True),
            params_for='weight decay',
        )

    # The state is that of `masked`; but the mask goes into the pass, so that one pass serves the whole chain.
    def begin(state: MaskedState) -> tree.Pass:
        return tree.Pass(rule, (), lambda: state, reads_params=True, where=partial(resolve_mask, mask))

    return elementwise(masked(identity(), mask).init, begin, MaskedState, params_for='weight decay')
