# SPDX-License-Identifier: Apache-2.0
"""Cautious optimizers: keep only the elements of an update whose sign is opposite to that of the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.numerics import tensor_like
from torchopt.preconditions import required_by, state_of


@tree.safe_to_load
class CautiousState(NamedTuple):
    """State of :func:`cautious`: the state of the optimizer."""

    inner_state: Any


@factory
def cautious(optimizer: TransformationLike, eps: Any = 1e-3) -> GradientTransformationExtraArgs:
    r"""Make an optimizer cautious: C-AdamW from AdamW, C-Lion from Lion.

    Of the update :math:`u`, which is added to the parameters, it keeps the elements that decrease the loss according to
    the current gradient, sets the others to zero, and rescales each leaf:

    .. math::
        \phi_i = [\, u_i\, g_i < 0 \,], \qquad
        \tilde u = \frac{u \odot \phi}{\max(\operatorname{mean}(\phi), \epsilon)}.

    To first order, the update never increases the loss.

    Args:
        optimizer: Any optimizer.  Put weight decay after ``cautious`` if it should apply to all elements.
        eps: The lower bound :math:`\epsilon > 0` of the fraction of kept elements in the divisor.

    Returns:
        A transformation with state :class:`CautiousState`.  It passes extra arguments of ``update`` to the optimizer.

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
