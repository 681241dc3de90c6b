# SPDX-License-Identifier: Apache-2.0
"""RMSProp."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.spelling import OptaxRmsProp, also_spelled
from torchopt.transform import scale_by_rms, scale_by_stddev, trace


@also_spelled(learning_rate='lr', decay='alpha')
@shared_prose
def rmsprop(
    lr: Any = 1e-2,
    alpha: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    momentum: Any = 0.0,
    centered: bool = False,
    *,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = False,
    bias_correction: bool = False,
    nesterov: bool = False,
    maximize: bool = False,
    **optax: Unpack[OptaxRmsProp],
) -> GradientTransformation:
    r"""RMSProp: gradients divided by their root mean square, with optional momentum.

    .. math::
        v_t = \alpha v_{t-1} + (1 - \alpha) |g_t|^2, \qquad d_t = \frac{g_t}{\sqrt{v_t} + \epsilon}, \qquad
        b_t = \mu b_{t-1} + d_t, \qquad p_t = p_{t-1} - \eta\, b_t

    If ``centered``, :math:`\sqrt{v_t - |m_t|^2}` replaces :math:`\sqrt{v_t}`, with the mean gradient :math:`m`.

    Args:
        <lr>
        alpha: Decay rate of the mean square, at least 0.  Also spelled ``decay``.
        eps: :math:`\epsilon \ge 0`, outside the root.
        <weight_decay>
        momentum: :math:`\mu \ge 0`.
        centered: Divide by the standard deviation instead of the root mean square.
        initial_scale: First value of :math:`v`.
        eps_in_sqrt: Add :math:`\epsilon` inside the root instead, as Optax does by default.
        bias_correction: Correct the bias of the means from zero initialization; the step then runs in plain torch.
        nesterov: Use Nesterov momentum; requires a momentum.
        <maximize>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.rmsprop(lr=1.0, alpha=0.75)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-2.)]

    References:
        Tieleman and Hinton, Lecture 6.5: RMSProp, Coursera, 2012.
        Graves, `Generating sequences with recurrent neural networks <https://arxiv.org/abs/1308.0850>`_, 2013.
    """
    rescale = scale_by_stddev if centered else scale_by_rms
    return assemble(
        rescale(alpha, eps, initial_scale, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction),
        trace(momentum, nesterov=nesterov),
        lr=lr,
        weight_decay=weight_decay,
        maximize=maximize,
    )
