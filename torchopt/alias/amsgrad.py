# SPDX-License-Identifier: Apache-2.0
"""AMSGrad."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.dtypes import DTypeLike
from torchopt.spelling import suggesting
from torchopt.transform import scale_by_amsgrad, scale_by_learning_rate


@suggesting
@shared_prose
def amsgrad(
    learning_rate: Any,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    r"""AMSGrad: Adam with the maximum of all second moments so far in the denominator.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        n_t = \max\!\left(n_{t-1}, \frac{v_t}{1 - \beta_2^t}\right), \qquad
        p_t = p_{t-1} - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{n_t + \bar\epsilon} + \epsilon}

    Args:
        <learning_rate>
        <b1>
        <b2>
        eps: :math:`\epsilon \ge 0`, outside the root.
        <eps_root>
        <mu_dtype>
        bias_correction_mu: Whether to correct the bias of the first moment; the paper does not.
        bias_correction_nu: Whether to correct the bias of the second moment before the maximum; the paper does not.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.amsgrad(0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-0.5000)]

    References:
        Reddi et al., `On the convergence of Adam and beyond <https://openreview.net/forum?id=ryQu7f-RZ>`_, ICLR 2018.
    """
    return chain(
        scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu),
        scale_by_learning_rate(learning_rate),
    )
