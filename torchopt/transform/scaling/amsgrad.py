# SPDX-License-Identifier: Apache-2.0
"""AMSGrad: Adam whose divisor never decreases."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from torchopt import elementwise, rules, tree
from torchopt.base import GradientTransformation, factory
from torchopt.dtypes import DTypeLike
from torchopt.elementwise import ranges
from torchopt.transform.scaling.counted import counted


@tree.safe_to_load
class ScaleByAmsgradState(NamedTuple):
    """State of :func:`scale_by_amsgrad`: step count, first and second moment, maximum of the second moments so far."""

    count: Any
    mu: Any
    nu: Any
    nu_max: Any


@factory
def scale_by_amsgrad(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    r"""Rescale updates with the rule of AMSGrad.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, \qquad
        n_t = \max\!\left(n_{t-1}, \frac{v_t}{1 - \beta_2^t}\right), \qquad
        u_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{n_t + \bar\epsilon} + \epsilon}

    The paper has no bias corrections: for its rule, without :math:`1 - \beta_1^t` and :math:`1 - \beta_2^t`, pass False
    for the last two arguments.  ``torch.optim.Adam(amsgrad=True)`` is a third rule, which computes the maximum of the
    :math:`v_t` before the bias correction.

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root.
        mu_dtype: Real dtype of the mean; None means the dtype of each parameter.
        bias_correction_mu: Whether to correct the bias of the mean from zero initialization.
        bias_correction_nu: Whether to correct the bias of the mean square, before the maximum.

    Returns:
        A transformation with state :class:`ScaleByAmsgradState`.  The second moments of a complex parameter are real.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_amsgrad(b1=0.0, b2=0.0)
        >>> state = tx.init([torch.tensor(0.0)])
        >>> for g in (4.0, 1.0):
        ...     u, state = tx.update([torch.tensor(g)], state)
        >>> u, state.nu, state.nu_max
        ([tensor(0.2500)], [tensor(1.)], [tensor(16.)])

    References:
        Reddi et al., `On the convergence of Adam and beyond <https://openreview.net/forum?id=ryQu7f-RZ>`_, ICLR 2018.
    """
    ranges.adam(b1, b2, eps, eps_root)
    dtype = ranges.moment_dtype(mu_dtype)

    def moments(params: Any) -> list[Any]:
        squares = [elementwise.zero_moment(params, real=True) for _ in range(2)]
        return [elementwise.zero_moment(params, dtype=dtype), *squares]

    hypers = elementwise.Hyperparams(_rule, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return counted(ScaleByAmsgradState, moments, hypers, bias_correction_mu, bias_correction_nu)


def _rule(
    t: Any, correct_mean: bool, correct_square: bool, *, b1: Any, b2: Any, eps: Any, eps_root: Any
) -> partial[Any]:
    c1 = 1.0 - b1**t if correct_mean else 1.0
    return partial(
        rules.amsgrad,
        b1=b1,
        d1=1.0 - b1,
        b2=b2,
        d2=1.0 - b2,
        mean=1.0,
        # The bias correction of the mean is applied to the divisor: m / (c1 sqrt(n + eps_root) + c1 eps).
        slope=c1,
        offset=c1 * eps,
        shift=eps_root,
        correction=1.0 / (1.0 - b2**t) if correct_square else 1.0,
    )
