# SPDX-License-Identifier: Apache-2.0
"""Mechanic: learn the scale of the steps of any optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, tree
from torchopt.base import GradientTransformationExtraArgs, TransformationLike, factory, with_extra_args_support
from torchopt.contrib.constants import kept_copy, without_graphs
from torchopt.contrib.scalars import inner, real_part, scalar_beside
from torchopt.numerics import as_scalar_like, in_single, increment, safe_sqrt, zero_count
from torchopt.preconditions import params_for, required_by, state_of
from torchopt.rules import plus, times


@tree.safe_to_load
class MechanicState(NamedTuple):
    """State of :func:`mechanize`; vectors have one entry per decay rate.

    Attributes:
        base_optimizer_state: The state of the optimizer whose steps are scaled.
        count: The step count.
        r: The rewards of the bets.
        m: The decayed maxima of the products :math:`|h|`.
        v: The decaying sums of their squares.
        s: The scales, whose sum is used.
        x0: The initial parameters.
    """

    base_optimizer_state: Any
    count: Any
    r: Any
    m: Any
    v: Any
    s: Any
    x0: Any


@factory
def mechanize(
    base_optimizer: TransformationLike,
    weight_decay: Any = 1e-2,
    eps: Any = 1e-8,
    s_init: Any = 1e-6,
    num_betas: int = 6,
) -> GradientTransformationExtraArgs:
    r"""Mechanic: learn the scale of the steps of any optimizer.

    Let :math:`\Delta_t` be minus the sum of the first :math:`t` steps of the optimizer.  The parameters are
    :math:`x_t = x_0 - s_t \Delta_t`, whose scale :math:`s_t = \sum_i s_{t,i}` is learned by betting, with
    :math:`\beta_i = 1 - 10^{-i}`:

    .. math::
        \tilde g_t &= g_t + \lambda\, s_t\, \frac{\lVert g_t \rVert}{\lVert x_t \rVert + \epsilon}\, x_t, \qquad
        h_t = \langle \tilde g_t, \Delta_t \rangle, \qquad
        \bar h_{t,i} = \operatorname{clip}(h_t, \pm m_{t-1,i}), \\
        m_{t,i} &= \max(\beta_i m_{t-1,i}, |h_t| + \epsilon), \qquad
        v_{t,i} = \beta_i^2 v_{t-1,i} + h_t^2, \qquad
        r_{t,i} = \beta_i r_{t-1,i} + \bar h_{t,i} s_{t,i}, \\
        s_{t+1,i} &= \frac{m_{t,i}\, s_0 / n + \max(r_{t,i}, 0)}{\sqrt{v_{t,i}} + \epsilon}.

    Args:
        base_optimizer: The optimizer; its learning rate has little effect.
        weight_decay: :math:`\lambda \ge 0`.
        eps: :math:`\epsilon \ge 0`.
        s_init: The initial scale :math:`s_0 > 0`.
        num_betas: The number :math:`n` of decay rates.

    Returns:
        A transformation with state :class:`MechanicState`.  It passes extra arguments of ``update`` to the optimizer.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> optimizer = torchopt.contrib.mechanize(torchopt.sgd(1.0), s_init=0.1)
        >>> p = {'w': torch.tensor(1.0)}
        >>> state = optimizer.init(p)
        >>> for _ in range(30):
        ...     updates, state = optimizer.update({'w': 2 * p['w']}, state, p)
        ...     p = torchopt.apply_updates(p, updates)
        >>> bool(p['w'].abs() < 0.1)
        True

    References:
        Cutkosky et al., `Mechanic: a learning rate tuner <https://arxiv.org/abs/2306.00144>`_, NeurIPS 2023.
    """
    checks.at_least('weight_decay value', weight_decay)
    checks.at_least('epsilon value', eps)
    checks.positive('s_init value', s_init)
    checks.at_least('num_betas value', num_betas, 1)
    wide = with_extra_args_support(base_optimizer)

    def init(params: Any) -> MechanicState:
        zeros = scalar_beside(params, 0.0).repeat(num_betas)
        scales = scalar_beside(params, s_init).repeat(num_betas)
        return MechanicState(
            wide.init(params), zero_count(), zeros, zeros.clone(), zeros.clone(), scales, kept_copy(params)
        )

    def update(
        updates: Any, state: MechanicState, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, MechanicState]:
        g, x, start = without_graphs(updates, params, state.x0, inplace=inplace)
        steps, base_state = wide.update(updates, state.base_optimizer_state, params, inplace=inplace, **extra)
        total = state.s.sum()
        pull = times(weight_decay, total * real_part(tree.wide_norm(g), total))
        pull = pull / plus(real_part(tree.wide_norm(x), total), as_scalar_like(eps, total))
        below = plus(total, as_scalar_like(eps, total))

        def decayed(g: Tensor, x: Tensor) -> Tensor:
            return g + x * as_scalar_like(pull, x)

        before = tree.map(in_single(lambda x, x0: (x0 - x) / as_scalar_like(below, x)), x, start)
        h = inner(tree.map(in_single(decayed), g, x), before, total)
        r, m, v, s = _bet(state, h, s_init, eps)
        scale = s.sum()

        def move(step: Tensor, x: Tensor, x0: Tensor, before: Tensor) -> Tensor:
            return x0 - (before - step) * as_scalar_like(scale, x) - x

        moved = tree.map(in_single(move), steps, x, start, before)
        return moved, MechanicState(base_state, increment(state.count), r, m, v, s, start)

    return GradientTransformationExtraArgs.requiring(
        init,
        update,
        state_of(MechanicState),
        params_for('mechanize, which uses their initial values'),
        required_by(wide, 'base_optimizer_state'),
    )


def _bet(state: MechanicState, h: Tensor, first: Any, eps: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next r, m, v and s."""
    m, s = state.m, state.s
    n = s.numel()
    wide = torch.promote_types(s.dtype, torch.float32)
    # Computing on the device, unlike copying to it, does not synchronize.
    decay = (1.0 - 0.1 ** torch.arange(1, n + 1, dtype=wide, device=s.device)).to(s.dtype)
    clipped = torch.minimum(torch.maximum(h, -m), m)
    m = torch.maximum(decay * m, plus(h.abs(), as_scalar_like(eps, h)))
    v = decay * decay * state.v + h * h
    r = decay * state.r + clipped * s
    wealth = m * (as_scalar_like(first, m) / n) + torch.maximum(r, torch.zeros_like(r))
    return r, m, v, wealth / plus(safe_sqrt(v), as_scalar_like(eps, v))
