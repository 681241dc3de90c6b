# SPDX-License-Identifier: Apache-2.0
"""RAdam: Adam that uses the second moment only when its variance is small enough."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, rules, tree
from torchopt.base import GradientTransformation, factory
from torchopt.elementwise import ranges
from torchopt.numerics import as_python_scalar
from torchopt.scalars import where
from torchopt.transform.scaling.counted import counted, two_moments


@tree.safe_to_load
class ScaleByRadamState(NamedTuple):
    """State of :func:`scale_by_radam`: the step count, the first and the second moment."""

    count: Any
    mu: Any
    nu: Any


@factory
def scale_by_radam(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-6,
    moment_requires_grad: bool = False,
    *,
    eps_root: Any = 0.0,
    threshold: float = 5.0,
    nesterov: bool = False,
    eps_after_correction: bool = False,
) -> GradientTransformation:
    r"""Rescale updates with the rule of rectified Adam.

    With the moments of Adam, :math:`\rho_\infty = 2/(1-\beta_2) - 1` and
    :math:`\rho_t = \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t)`, the effective sample size of :math:`v_t`,

    .. math::
        u_t = \frac{m_t}{1 - \beta_1^t} \cdot \begin{cases}
            \dfrac{r_t \sqrt{1 - \beta_2^t}}{\sqrt{v_t} + \epsilon} & \rho_t \ge 5 \\ 1 & \text{otherwise}
        \end{cases}, \qquad
        r_t^2 = \frac{(\rho_t - 4)(\rho_t - 2)\,\rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\,\rho_t}

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`.
        moment_requires_grad: Make the first moments leaves that require grad.
        eps_root: :math:`\bar\epsilon \ge 0`, added to :math:`v_t / (1 - \beta_2^t)` inside the root.
        threshold: The value of :math:`\rho_t` from which on the second moment is used, 5 in the formula above.
        nesterov: Use Nesterov momentum; see :func:`scale_by_adam`.
        eps_after_correction: Add :math:`\epsilon` to the root of :math:`v_t / (1 - \beta_2^t)` instead, as Optax does.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_radam()
        >>> tx.update([torch.tensor(-3.0)], tx.init([torch.tensor(0.0)]))[0]
        [tensor(-3.)]

    References:
        Liu et al., `On the variance of the adaptive learning rate and beyond
        <https://arxiv.org/abs/1908.03265>`_, 2019.
    """
    ranges.flag('moment_requires_grad', moment_requires_grad)
    ranges.adam(b1, b2, eps, eps_root)
    checks.number('threshold value', threshold)

    moments = partial(two_moments, requires_grad=moment_requires_grad)
    hypers = elementwise.Hyperparams(_rule, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return counted(ScaleByRadamState, moments, hypers, threshold, nesterov, eps_after_correction)


def _rule(
    t: Any, threshold: float, nesterov: bool, late_eps: bool, *, b1: Any, b2: Any, eps: Any, eps_root: Any
) -> partial[Any]:
    c1, c2 = 1.0 - b1**t, 1.0 - b2**t
    rectified, r = _rectification(b2, t, threshold)
    if late_eps:
        eps = eps * c2**0.5
    return partial(
        rules.adam,
        b1=b1,
        d1=1.0 - b1,
        b2=b2,
        d2=1.0 - b2,
        mean=r * b1 / (1.0 - b1 ** (t + 1)) if nesterov else r / c1,
        gradient=r * (1.0 - b1) / c1 if nesterov else 0.0,
        # Without rectification, the divisor of the mean is 0 * root + 1.
        slope=where(rectified, 1.0, 0.0),
        offset=where(rectified, eps, 1.0),
        shift=c2 * eps_root if checks.nonzero(eps_root) else 0.0,
    )


def _rectification(b2: Any, count: Any, threshold: float) -> tuple[Any, Any]:
    r"""Whether to use the second moment, and :math:`r_t\sqrt{1 - \beta_2^t}`; on the host if the count is known."""
    beta: Any = as_python_scalar(b2)
    t: Any = as_python_scalar(count)
    known = beta is not None and t is not None
    if not known:
        t = torch.as_tensor(count, dtype=torch.float64)
        beta = b2.to(torch.float64) if isinstance(b2, Tensor) else torch.tensor(b2, dtype=torch.float64)
    c2 = 1.0 - beta**t
    rho_inf = 2.0 / (1.0 - beta) - 1.0
    rho = rho_inf - 2.0 * t * beta**t / c2
    square = c2 * (rho - 4.0) * (rho - 2.0) * rho_inf
    scale = (rho_inf - 4.0) * (rho_inf - 2.0) * rho
    if known:
        if rho < threshold:
            return False, 1.0
        # With a low threshold, the radicand can be negative: return NaN as for tensors, without an error.
        return True, math.sqrt(square / scale) if scale and square / scale >= 0.0 else math.nan
    # Before the threshold, the radicand can be negative, which would give NaN gradients even if the root is not used.
    rectified = rho >= threshold
    ones = torch.ones_like(square)
    return rectified, torch.where(rectified, square / torch.where(rectified, scale, ones), ones).sqrt()
