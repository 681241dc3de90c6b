# SPDX-License-Identifier: Apache-2.0
"""Stochastic gradient descent, also with noise, and with Polyak's step size."""

from __future__ import annotations

from typing import Any, overload

from typing_extensions import Unpack

from torchopt.alias.stages import assemble, shared_prose
from torchopt.base import GradientTransformation
from torchopt.combine import chain
from torchopt.spelling import OptaxRate, also_spelled, suggesting
from torchopt.transform import add_noise, scale_by_learning_rate, scale_by_polyak, trace
from torchopt.tree.random import Key


@overload
def sgd(
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: bool = False,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
) -> GradientTransformation: ...


@overload
def sgd(*, learning_rate: Any, **options: Any) -> GradientTransformation: ...


@also_spelled(learning_rate='lr')  # type: ignore[misc]  # makes it take the second signature too
@shared_prose
def sgd(
    lr: Any,
    momentum: Any = 0.0,
    dampening: Any = 0.0,
    weight_decay: Any = 0.0,
    nesterov: bool = False,
    *,
    moment_requires_grad: bool = False,
    maximize: bool = False,
    **optax: Unpack[OptaxRate],
) -> GradientTransformation:
    r"""Stochastic gradient descent, with optional momentum.

    .. math::
        b_1 = g_1, \qquad b_t = \mu b_{t-1} + (1 - \tau) g_t, \qquad
        p_t = p_{t-1} - \eta \cdot \begin{cases} g_t + \mu b_t & \text{Nesterov} \\ b_t & \text{otherwise} \end{cases}

    Args:
        <lr>
        momentum: :math:`\mu \ge 0`.
        dampening: :math:`\tau`; it does not apply to the first step.
        <weight_decay>
        nesterov: Use Nesterov momentum; requires a momentum and no dampening.
        <moment_requires_grad>
        <maximize>

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type, or is given under both of its names.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.sgd(lr=0.5)
        >>> optimizer.update([torch.tensor(3.0)], optimizer.init([torch.tensor(1.0)]))[0]
        [tensor(-1.5000)]

    References:
        Sutskever et al., `On the importance of initialization and momentum in deep learning
        <https://proceedings.mlr.press/v28/sutskever13.html>`_, ICML 2013.
    """
    return assemble(
        trace(momentum, dampening, nesterov, moment_requires_grad), lr=lr, weight_decay=weight_decay, maximize=maximize
    )


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


@suggesting
def polyak_sgd(
    max_learning_rate: Any = 1.0, scaling: Any = 1.0, f_min: Any = 0.0, eps: Any = 0.0, variant: str = 'sps'
) -> GradientTransformation:
    r"""Gradient descent with Polyak's step size.

    .. math::
        p_t = p_{t-1} - d_t \min\Bigl( \frac{f(p_{t-1}) - f^*}{\lVert d_t \rVert^2 + \epsilon},\ \gamma \Bigr), \qquad
        d_t = s\, g_t

    ``update`` requires the extra argument ``value``, the objective at the parameters.

    Args:
        max_learning_rate: The largest step size :math:`\gamma`.
        scaling: The factor :math:`s` of the gradient, at least 0, or a schedule of it.
        f_min: The minimum :math:`f^*` of the objective, or a lower bound of it.
        eps: :math:`\epsilon \ge 0`.
        variant: ``'sps'``; or ``'sps+'``, whose step is zero if the value is below ``f_min``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.alias.polyak_sgd()
        >>> p = torch.tensor(3.0)
        >>> optimizer.update([2 * p], optimizer.init([p]), [p], value=p**2)[0]
        [tensor(-1.5000)]

    References:
        Loizou et al., `Stochastic Polyak step-size for SGD: an adaptive learning rate for fast convergence
        <https://arxiv.org/abs/2002.10542>`_, AISTATS 2021.
    """
    return chain(sgd(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))
