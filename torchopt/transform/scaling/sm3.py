# SPDX-License-Identifier: Apache-2.0
"""SM3: a memory-efficient AdaGrad with one accumulator per row and column."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import GradientTransformation, factory
from torchopt.elementwise import require_real
from torchopt.numerics import as_scalar_like, one_minus
from torchopt.preconditions import state_of


@tree.safe_to_load
class ScaleBySM3State(NamedTuple):
    """State of :func:`scale_by_sm3`: for each leaf, a list of accumulators, one vector per dimension; and the mean."""

    mu: Any
    nu: Any


@factory
def scale_by_sm3(b1: Any = 0.9, b2: Any = 1.0, eps: Any = 1e-8) -> GradientTransformation:
    r"""Rescale updates with the rule of SM3, whose state for a matrix has only one number per row and column.

    With an accumulator :math:`a^{(d)}` for each dimension :math:`d` of a leaf,

    .. math::
        v_i = \beta_2 \min_d a^{(d)}_{i_d} + \bar\beta_2\, g_i^2, \qquad
        a^{(d)}_j \leftarrow \max_{i : i_d = j} v_i, \qquad
        m \leftarrow \beta_1 m + (1 - \beta_1)\, g / \sqrt{v + \epsilon},

    where :math:`\bar\beta_2 = 1 - \beta_2`, or 1 if :math:`\beta_2 = 1`; :math:`g / \sqrt{v + \epsilon}` is 0 if
    :math:`v = 0`.  The update is :math:`m`.  A scalar is treated as a vector of one element.

    Args:
        b1: Decay rate :math:`\beta_1` of the mean, in [0, 1).
        b2: Decay rate :math:`\beta_2` of the accumulators, in [0, 1]; 1 means the sum of squares.
        eps: :math:`\epsilon \ge 0`.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
        TypeError: In ``init``, if a parameter is complex.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.scale_by_sm3(b1=0.0)
        >>> updates, state = tx.update([torch.tensor([[3.0, 0.0]])], tx.init([torch.zeros(1, 2)]))
        >>> updates, state.mu
        ([tensor([[1., 0.]])], [[tensor([9.]), tensor([9., 0.])]])

    References:
        Anil et al., `Memory-efficient adaptive optimization <https://arxiv.org/abs/1901.11150>`_, NeurIPS 2019.
    """
    checks.unit_interval('b1', b1)
    if not isinstance(b2, Tensor) and not 0.0 <= b2 <= 1.0:
        raise ValueError(f'Invalid b2: {b2}; expected a number in [0, 1].')
    checks.at_least('epsilon value', eps)
    take = 1.0 if not isinstance(b2, Tensor) and b2 == 1.0 else one_minus(b2)

    def init(params: Any) -> ScaleBySM3State:
        require_real(params, 'SM3')
        nu = elementwise.zero_moment(params)
        return ScaleBySM3State(tree.map(lambda m: [m.new_zeros(size) for size in m.shape] or [m.clone()], nu), nu)

    def rule(g: Tensor, accumulators: list[Tensor], m: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        if g.dim() < 2:
            least = accumulators[0]
        else:
            least = functools.reduce(torch.minimum, [_along(a, d, g.dim()) for d, a in enumerate(accumulators)])
        v = as_scalar_like(take, g) * g * g + as_scalar_like(b2, g) * least
        safe = torch.where(v > 0, v, torch.ones_like(v))
        step = torch.where(v > 0, g * torch.rsqrt(safe + as_scalar_like(eps, g)), torch.zeros_like(g))
        m = as_scalar_like(b1, g) * m + as_scalar_like(one_minus(b1), g) * step
        return m, [_largest(v, d) for d in range(max(g.dim(), 1))], m

    def update(
        updates: Any, state: ScaleBySM3State, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, ScaleBySM3State]:
        updates, mu, nu = elementwise.apply_rule(rule, updates, state.mu, state.nu, whole=True)
        return updates, ScaleBySM3State(mu, nu)

    return GradientTransformation.requiring(init, update, state_of(ScaleBySM3State))


def _along(a: Tensor, d: int, dims: int) -> Tensor:
    """Reshape a vector to ``dims`` dimensions, along dimension ``d``."""
    return a.reshape([len(a) if i == d else 1 for i in range(dims)])


def _largest(v: Tensor, d: int) -> Tensor:
    """The maximum over all dimensions but one."""
    if v.dim() < 2:
        return v
    return v.amax(dim=[i for i in range(v.dim()) if i != d]) if v.numel() else v.new_zeros(v.shape[d])
