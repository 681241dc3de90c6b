# SPDX-License-Identifier: Apache-2.0
"""Adan."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import add_decayed_weights, scale_by_adan, scale_by_learning_rate


@suggesting
@shared_prose
def adan(
    learning_rate: Any,
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    eps_root: Any = 1e-8,
    weight_decay: Any = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    r"""Adan: Adam with Nesterov momentum, estimated from gradient differences.

    With :math:`u_t` as in :func:`torchopt.transform.scale_by_adan`,
    :math:`p_t = p_{t-1} - \eta\,(u_t + \lambda p_{t-1})`.

    Args:
        <learning_rate>
        b1: Decay rate :math:`\beta_1` of the mean of the gradients, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean of their differences, in [0, 1).
        b3: Decay rate :math:`\beta_3` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        <eps_root>
        weight_decay: :math:`\lambda \ge 0`, or a schedule of it.  If nonzero, ``update`` requires ``params``.
        <mask>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.adan(0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.5000)]

    References:
        Xie et al., `Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models
        <https://arxiv.org/abs/2208.06677>`_, 2022.
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
