# SPDX-License-Identifier: Apache-2.0
"""Gradient descent with Gaussian noise."""

from __future__ import annotations

from typing import Any

from torchopt.alias.stages import shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import suggesting
from torchopt.transform import add_noise, scale_by_learning_rate
from torchopt.tree.random import Key

__all__ = ['noisy_sgd']


@suggesting
@shared_prose
def noisy_sgd(
    learning_rate: Any, eta: Any = 0.01, gamma: Any = 0.55, key: Key | None = None, *, seed: Key | None = None
) -> GradientTransformation:
    r"""Gradient descent with Gaussian noise of decreasing variance on the gradients.

    .. math::
        p_t = p_{t-1} - \eta (g_t + \sigma_t \varepsilon_t), \qquad \varepsilon_t \sim \mathcal N(0, 1), \qquad
        \sigma_t^2 = \bar\eta / t^\gamma

    Args:
        <learning_rate>
        eta: The initial variance :math:`\bar\eta \ge 0`.
        gamma: The exponent :math:`\gamma` of the decay of the variance.
        key: A seed, or a generator from which one is drawn at each ``init``; see
            :func:`torchopt.transform.add_noise`.
        seed: The deprecated name of ``key``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.noisy_sgd(0.5, eta=0.0, key=0)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.5000)]

    References:
        Neelakantan et al., `Adding gradient noise improves learning for very deep networks
        <https://arxiv.org/abs/1511.06807>`_, 2015.
    """
    return chain(add_noise(eta, gamma, key, seed=seed), scale_by_learning_rate(learning_rate))
