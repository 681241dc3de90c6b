# SPDX-License-Identifier: Apache-2.0
"""Yogi: Adam with additive changes of the second moment."""

from __future__ import annotations

from functools import partial
from typing import Any

from torchopt import checks, elementwise, rules
from torchopt.base import GradientTransformation, factory
from torchopt.elementwise import ranges
from torchopt.transform.scaling.adam import ScaleByAdamState
from torchopt.transform.scaling.counted import counted


@factory
def scale_by_yogi(
    b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-3, eps_root: Any = 0.0, initial_accumulator_value: float = 1e-6
) -> GradientTransformation:
    r"""Rescale updates with the rule of Yogi.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        v_t = v_{t-1} - (1 - \beta_2) \operatorname{sign}(v_{t-1} - |g_t|^2)\, |g_t|^2, \qquad
        u_t = \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t) + \bar\epsilon} + \epsilon}

    If gradients become small, :math:`v` decreases slowly, so the step size increases slowly.  The bias correction of
    both moments is that for zero initialization, for any initial value.

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: :math:`\beta_2` in [0, 1); :math:`1 - \beta_2` is the relative size of the changes of :math:`v`.
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root.
        initial_accumulator_value: Initial value of :math:`m` and :math:`v`, at least 0.

    Returns:
        A transformation with state :class:`ScaleByAdamState`.  The second moment of a complex parameter is real.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_yogi(b2=0.75, initial_accumulator_value=0.0)
        >>> state = tx.init([torch.tensor(0.0)])
        >>> for g in (4.0, 2.0):
        ...     u, state = tx.update([torch.tensor(g)], state)
        >>> state.nu  # 4, not above the square of 2, which leaves it where it is
        [tensor(4.)]

    References:
        Zaheer et al., `Adaptive methods for nonconvex optimization
        <https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization>`_, NeurIPS 2018.
    """
    ranges.adam(b1, b2, eps, eps_root)
    checks.at_least('initial_accumulator_value value', initial_accumulator_value)

    def moments(params: Any) -> list[Any]:
        return [elementwise.full_moment(params, initial_accumulator_value, real=real) for real in (False, True)]

    hypers = elementwise.Hyperparams(_rule, b1=b1, b2=b2, eps=eps, eps_root=eps_root)
    return counted(ScaleByAdamState, moments, hypers)


def _rule(t: Any, *, b1: Any, b2: Any, eps: Any, eps_root: Any) -> partial[Any]:
    c1, c2 = 1.0 - b1**t, 1.0 - b2**t
    # Both bias corrections are applied to scalars, as in scale_by_adam.
    return partial(
        rules.yogi,
        b1=b1,
        d1=1.0 - b1,
        d2=1.0 - b2,
        mean=1.0,
        slope=c1 / c2**0.5,
        offset=c1 * eps,
        shift=c2 * eps_root if checks.nonzero(eps_root) else 0.0,
    )
