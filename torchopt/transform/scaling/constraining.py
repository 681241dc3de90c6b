# SPDX-License-Identifier: Apache-2.0
"""Keep parameters nonnegative, and updates free of NaN and infinities."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.base import ElementwiseTransformation, EmptyState, GradientTransformation, factory, without_state
from torchopt.elementwise import as_constant, require_real
from torchopt.preconditions import params_for, state_of

NonNegativeParamsState = EmptyState
"""State of :func:`keep_params_nonnegative`, which is empty."""


@factory
def keep_params_nonnegative() -> GradientTransformation:
    r"""Limit updates so that no parameter becomes negative: :math:`u \leftarrow \max(u, -p)`.

    Put it at the end of a chain, after the learning rate.  A parameter that is initially negative becomes zero, or
    positive if its update makes it positive.

    Raises:
        TypeError: In ``init``, if a parameter is complex.
        ValueError: In ``update``, if the parameters are not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.keep_params_nonnegative()
        >>> params = [torch.tensor([1.0, 1.0])]
        >>> tx.update([torch.tensor([-0.5, -3.0])], tx.init(params), params)[0]
        [tensor([-0.5000, -1.0000])]
    """
    step = elementwise.ElementwiseStep(_stop_at_zero, (), EmptyState, reads_params=True)

    def init(params: Any) -> EmptyState:
        require_real(params, 'keep_params_nonnegative')
        return EmptyState()

    return ElementwiseTransformation(init, step, params_for('keep_params_nonnegative'))


def _stop_at_zero(u: Tensor, p: Tensor) -> tuple[Tensor]:
    p = as_constant(p, u)
    return (torch.where(p + u < 0.0, -p, u),)


@tree.safe_to_load
class ZeroNansState(NamedTuple):
    """State of :func:`zero_nans`: for each leaf, whether the last update had NaN, a 0-d bool tensor."""

    found_nan: Any


@factory
def zero_nans() -> GradientTransformation:
    """Replace every NaN in the updates by zero, and record in the state which leaves had NaN.

    Infinities are kept.  :func:`nan_to_num` replaces these, too; :func:`apply_if_finite` skips the step instead.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.transform.zero_nans()
        >>> tx.update([torch.tensor([float('nan'), 2.0])], tx.init([torch.zeros(2)]))
        ([tensor([0., 2.])], ZeroNansState(found_nan=[tensor(True)]))
    """

    def init(params: Any) -> ZeroNansState:
        return ZeroNansState(tree.map(lambda p: torch.zeros((), dtype=torch.bool, device=p.device), params))

    def rule(g: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        nan = g.isnan()
        return torch.where(nan, torch.zeros_like(g), g), nan.any()

    def update(
        updates: Any, state: ZeroNansState, params: Any = None, *, inplace: bool = False
    ) -> tuple[Any, ZeroNansState]:
        updates, found = elementwise.apply_rule(rule, updates, state.found_nan, whole=True)
        return updates, ZeroNansState(found)

    return GradientTransformation.requiring(init, update, state_of(ZeroNansState))


@factory
def nan_to_num(nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> GradientTransformation:
    """Replace NaN and infinities in the updates.

    Args:
        nan: The replacement of NaN.
        posinf: The replacement of positive infinity; by default the largest finite number of the dtype.
        neginf: The replacement of negative infinity; by default the smallest finite number of the dtype.

    Raises:
        TypeError: If one of them is not a number.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.nan_to_num(nan=0.0, posinf=1.0)
        >>> tx.update([torch.tensor([float('nan'), float('inf'), 2.0])], None)[0]
        [tensor([0., 1., 2.])]
    """
    for name, value in (('nan', nan), ('posinf', posinf), ('neginf', neginf)):
        if value is not None:
            checks.scalar(f'{name} value', value)

    return without_state(lambda updates, params: tree.map(lambda g: g.nan_to_num(nan, posinf, neginf), updates))
