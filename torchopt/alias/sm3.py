# SPDX-License-Identifier: Apache-2.0
"""SM3."""

from __future__ import annotations

from typing import Any

from torchopt import checks
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import scale, scale_by_sm3


@suggesting
def sm3(learning_rate: Any, momentum: Any = 0.9) -> GradientTransformation:
    r"""SM3: a memory-efficient AdaGrad that stores one accumulator per row and column.

    With :math:`m_t` as in :func:`torchopt.transform.scale_by_sm3`, :math:`p_t = p_{t-1} - \eta\, m_t`.

    Args:
        learning_rate: :math:`\eta \ge 0`, a number or a 0-d tensor.
        momentum: Decay rate of the mean, in [0, 1).

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.sm3(0.5, momentum=0.0)
        >>> optimizer.update([torch.tensor([3.0, -4.0])], optimizer.init([torch.zeros(2)]))[0]
        [tensor([-0.5000,  0.5000])]

    References:
        Anil et al., `Memory-efficient adaptive optimization <https://arxiv.org/abs/1901.11150>`_, NeurIPS 2019.
    """
    checks.learning_rate('learning rate', learning_rate)
    return chain(scale_by_sm3(momentum), scale(-learning_rate))
