# SPDX-License-Identifier: Apache-2.0
"""NovoGrad."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import scale_by_learning_rate, scale_by_novograd


@suggesting
@shared_prose
def novograd(
    learning_rate: Any, b1: Any = 0.9, b2: Any = 0.25, eps: Any = 1e-6, eps_root: Any = 0.0, weight_decay: Any = 0.0
) -> GradientTransformation:
    r"""NovoGrad: momentum of gradients that are normalized per leaf.

    With :math:`m_t` as in :func:`torchopt.transform.scale_by_novograd`, :math:`p_t = p_{t-1} - \eta\, m_t`.

    Args:
        <learning_rate>
        b1: Decay rate :math:`\beta_1` of the momentum, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean of the squared gradient norms, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root.
        weight_decay: :math:`\lambda \ge 0`.  If nonzero, ``update`` requires ``params``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.novograd(0.5)
        >>> optimizer.update([torch.tensor([3.0, 4.0])], optimizer.init([torch.zeros(2)]))[0]
        [tensor([-0.3000, -0.4000])]

    References:
        Ginsburg et al., `Stochastic gradient methods with layer-wise adaptive moments for training of deep networks
        <https://arxiv.org/abs/1905.11286>`_, 2019.
    """
    return chain(scale_by_novograd(b1, b2, eps, eps_root, weight_decay), scale_by_learning_rate(learning_rate))
