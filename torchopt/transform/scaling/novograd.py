# SPDX-License-Identifier: Apache-2.0
"""NovoGrad: Adam with one second moment for each leaf."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformation, factory
from torchopt.dtypes import DTypeLike, wide_dtype, widened
from torchopt.elementwise import as_constant, ranges
from torchopt.levels import refuse_empty_batches
from torchopt.numerics import abs_sq, advance, as_python_scalar, as_scalar_like, one_minus, safe_sqrt, zero_count
from torchopt.preconditions import params_for, state_of
from torchopt.scalars import where


@tree.safe_to_load
class ScaleByNovogradState(NamedTuple):
    """State of :func:`scale_by_novograd`: the step count, the mean, and the mean squared gradient norm of each leaf."""

    count: Any
    mu: Any
    nu: Any


@factory
def scale_by_novograd(
    b1: Any = 0.9,
    b2: Any = 0.25,
    eps: Any = 1e-8,
    eps_root: Any = 0.0,
    weight_decay: Any = 0.0,
    mu_dtype: DTypeLike | None = None,
) -> GradientTransformation:
    r"""Rescale updates with the rule of NovoGrad, with norms :math:`\lVert g \rVert` of single leaves.

    .. math::
        v_1 = \lVert g_1 \rVert^2, \qquad v_t = \beta_2 v_{t-1} + (1 - \beta_2) \lVert g_t \rVert^2, \qquad
        d_t = \frac{g_t}{\sqrt{v_t + \bar\epsilon} + \epsilon} + \lambda p, \qquad
        m_1 = d_1, \qquad m_t = \beta_1 m_{t-1} + d_t

    The update is :math:`m_t`.

    Args:
        b1: Decay rate :math:`\beta_1` of the momentum, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the mean square, in [0, 1).
        eps: :math:`\epsilon \ge 0`, outside the root.
        eps_root: :math:`\bar\epsilon \ge 0`, inside the root.
        weight_decay: :math:`\lambda \ge 0`.  If nonzero, ``update`` requires ``params``.
        mu_dtype: Real dtype of :math:`m`; None means the dtype of each parameter.

    Raises:
        ValueError: If a hyper-parameter is out of its range; in ``update``, if required parameters are not given.
        TypeError: If a hyper-parameter has the wrong type.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_novograd()
        >>> updates, state = tx.update([torch.tensor([3.0, 4.0])], tx.init([torch.zeros(2)]))
        >>> updates, state.nu
        ([tensor([0.6000, 0.8000])], [tensor(25.)])

    References:
        Ginsburg et al., `Stochastic gradient methods with layer-wise adaptive moments for training of deep networks
        <https://arxiv.org/abs/1905.11286>`_, 2019.
    """
    for name, value in (('b1', b1), ('b2', b2)):
        checks.unit_interval(name, value)
    for name, value in (('epsilon', eps), ('eps_root', eps_root), ('weight_decay', weight_decay)):
        checks.at_least(f'{name} value', value)
    dtype = ranges.moment_dtype(mu_dtype)
    decays = checks.nonzero(weight_decay)

    def init(params: Any) -> ScaleByNovogradState:
        nu = tree.map(lambda p: torch.zeros((), dtype=wide_dtype(p.dtype), device=p.device), params)
        return ScaleByNovogradState(zero_count(), elementwise.zero_moment(params, dtype=dtype), nu)

    requires = [state_of(ScaleByNovogradState), *([params_for('weight decay')] if decays else [])]

    def update(
        updates: Any, state: ScaleByNovogradState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, ScaleByNovogradState]:
        refuse_empty_batches()
        known = as_python_scalar(state.count)
        first = state.count == 0 if known is None else known == 0
        count, _ = advance(state.count)

        def rule(g: Tensor, m: Tensor, v: Tensor, *p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            g = widened(g)
            square = abs_sq(g).sum()
            average = as_scalar_like(b2, v) * v + as_scalar_like(one_minus(b2), v) * square
            v = where(first, square, average).to(v.dtype)
            d = g / (safe_sqrt(v + as_scalar_like(eps_root, v)) + as_scalar_like(eps, v))
            if p:
                d = d + as_scalar_like(weight_decay, g) * as_constant(p[0], g)
            new = where(first, d, as_scalar_like(b1, g) * m + d).to(m.dtype)
            return new, new, v

        reads = (params,) if decays else ()
        updates, mu, nu = elementwise.apply_rule(rule, updates, state.mu, state.nu, reads=reads, whole=True)
        return updates, ScaleByNovogradState(count, mu, nu)

    return GradientTransformation.requiring(init, update, *requires)
