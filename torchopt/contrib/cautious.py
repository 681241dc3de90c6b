# SPDX-License-Identifier: Apache-2.0
"""Cautious optimizers: keep only the elements of a step whose sign agrees with the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.base import (
    GradientTransformation,
    GradientTransformationExtraArgs,
    factory,
    with_extra_args_support,
)
from torchopt.numerics import tensor_like
from torchopt.preconditions import required_by, state_of

__all__ = ['CautiousState', 'cautious']


@tree.safe_to_load
class CautiousState(NamedTuple):
    """State of :func:`cautious`: that of the optimizer."""

    inner_state: Any


@factory
def cautious(optimizer: GradientTransformation, eps: Any = 1e-3) -> GradientTransformationExtraArgs:
    r"""Make an optimizer cautious: C-AdamW of AdamW, C-Lion of Lion.

    Of the update :math:`u` (to be added to the parameters) only those elements are taken that descend along the current
    gradient; the rest are scaled up in their place, leaf by leaf:

    .. math::
        \phi_i = [\, u_i\, g_i < 0 \,], \qquad
        \tilde u = \frac{u \odot \phi}{\max(\operatorname{mean}(\phi), \epsilon)}.

    Momentum then never raises the loss to first order, and the optimizer's guarantee of convergence remains.

    Args:
        optimizer: Any optimizer.  Decay that is meant to act everywhere belongs after ``cautious``.
        eps: The least share :math:`\epsilon > 0` of elements that is counted.

    Returns:
        A transformation with state :class:`CautiousState`.  Extra arguments of ``update`` reach the optimizer.

    Raises:
        ValueError: If ``eps`` is not positive.
        TypeError: If ``optimizer`` is not a transformation.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.cautious(torchopt.sgd(1.0, momentum=0.5))
        >>> state = tx.init([torch.zeros(2)])
        >>> for g in (torch.tensor([4.0, 4.0]), torch.tensor([4.0, -1.0])):
        ...     updates, state = tx.update([g], state)
        >>> updates  # momentum leads the second element uphill
        [tensor([-12.,  -0.])]

    References:
        Liang et al., `Cautious optimizers: improving training with one line of code
        <https://arxiv.org/abs/2411.16085>`_, 2024.
    """
    checks.positive('eps', eps)
    wide = with_extra_args_support(optimizer)

    def init(params: Any) -> CautiousState:
        return CautiousState(wide.init(params))

    def mask(g: Tensor, u: Tensor) -> Tensor:
        agree = ((u.conj() * g).real < 0).to((u.real if u.is_complex() else u).dtype)
        share = agree.sum() / max(agree.numel(), 1)
        least = tensor_like(eps, share)
        return u * (agree / torch.maximum(share, least))

    def update(
        updates: Any, state: CautiousState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, CautiousState]:
        steps, inner_state = wide.update(updates, state.inner_state, params, inplace=inplace, **extra)
        return tree.map(mask, updates, steps), CautiousState(inner_state)

    return GradientTransformationExtraArgs.requiring(
        init, update, state_of(CautiousState), required_by(wide, 'inner_state')
    )
