# SPDX-License-Identifier: Apache-2.0
"""Yogi."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import scale_by_learning_rate, scale_by_yogi


@suggesting
@shared_prose
def yogi(learning_rate: Any, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-3) -> GradientTransformation:
    r"""Yogi: Adam with additive changes of the second moment, so that its learning rates do not rise quickly.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - |g_t|^2)\, |g_t|^2, \qquad
        p_t = p_{t-1} - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    Both moments begin at :math:`10^{-6}`; :func:`torchopt.transform.scale_by_yogi` has an argument for it.

    Args:
        <learning_rate>
        <b1>
        b2: :math:`\beta_2` in [0, 1); :math:`1 - \beta_2` is the relative size of the changes of :math:`v`.
        eps: :math:`\epsilon \ge 0`, outside the root.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.yogi(1.0, b1=0.0, b2=0.0, eps=0.5)
        >>> optimizer.update([torch.tensor(1.5)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.7500)]

    References:
        Zaheer et al., `Adaptive methods for nonconvex optimization
        <https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization>`_, NeurIPS 2018.
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))
