# SPDX-License-Identifier: Apache-2.0
"""Reduce the learning rate when the loss no longer decreases."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchopt import checks, elementwise, tree
from torchopt.autodiff.objective import objective_value
from torchopt.base import GradientTransformationExtraArgs, factory
from torchopt.contrib.scalars import scalar_beside
from torchopt.loop.branches import branch
from torchopt.numerics import advance, as_python_scalar, as_scalar_like, tensor_like, zero_count
from torchopt.preconditions import state_of


@tree.safe_to_load
class ReduceLROnPlateauState(NamedTuple):
    """State of :func:`reduce_on_plateau`; all fields but ``count`` are on the device of the parameters.

    Attributes:
        scale: The factor of the updates.
        best_value: The smallest mean value so far.
        plateau_count: The number of consecutive mean values without improvement.
        cooldown_count: The number of mean values still to ignore.
        count: The number of values in ``avg_value``.
        avg_value: The mean of the values since the last comparison.
    """

    scale: Any
    best_value: Any
    plateau_count: Any
    cooldown_count: Any
    count: Any
    avg_value: Any


@factory
def reduce_on_plateau(
    factor: float = 0.1,
    patience: Any = 10,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: Any = 0,
    accumulation_size: Any = 1,
    min_scale: Any = 0.0,
) -> GradientTransformationExtraArgs:
    r"""Scale updates by a factor that is reduced when the loss no longer decreases.

    Every ``accumulation_size`` steps the mean of the values is compared with the best so far: it is better if it is
    below :math:`f_\text{best} - r\, |f_\text{best}| - a`.  After ``patience`` means without improvement, the factor is
    multiplied by ``factor``, and the next ``cooldown`` means are ignored.  The computation is on the device of the
    parameters, so no step synchronizes.

    Args:
        factor: The factor of a reduction, in (0, 1).
        patience: The number of values without improvement before the factor is reduced.
        rtol: The relative improvement :math:`r` that counts, in [0, 1].
        atol: The absolute improvement :math:`a \ge 0` that counts.
        cooldown: The number of values to ignore after a reduction.
        accumulation_size: The number of values that are averaged.
        min_scale: The lower bound of the factor.

    Returns:
        A transformation with state :class:`ReduceLROnPlateauState`, for use after an optimizer in a chain; its
        ``update`` requires the extra argument ``value``.

    Raises:
        ValueError: If a hyper-parameter is out of its range, or ``rtol`` and ``atol`` are both zero.
        TypeError: In ``update``, if ``value`` is not given.

    Example:
        >>> import torch, torchopt
        >>> tx = torchopt.contrib.reduce_on_plateau(factor=0.5, patience=2)
        >>> state = tx.init([torch.tensor(0.0)])
        >>> for value in (1.0, 1.0, 1.0):
        ...     updates, state = tx.update([torch.tensor(8.0)], state, value=value)
        ...     print(updates)
        [tensor(8.)]
        [tensor(8.)]
        [tensor(4.)]
    """
    checks.number('factor', factor)
    ratio, relative, absolute = as_python_scalar(factor), as_python_scalar(rtol), as_python_scalar(atol)
    if ratio is not None and not 0.0 < ratio < 1.0:
        raise ValueError(f'Invalid factor: {factor}; expected a number in (0, 1).')
    checks.at_least('rtol', rtol)
    checks.at_least('atol', atol)
    if relative is not None and relative > 1.0:
        raise ValueError(f'Invalid rtol: {rtol}; expected a number in [0, 1].')
    if relative == 0.0 and absolute == 0.0:
        raise ValueError(f'Invalid rtol and atol: {rtol} and {atol}; one of them has to be positive.')
    checks.at_least('patience', patience)
    checks.at_least('cooldown', cooldown)
    checks.at_least('accumulation_size', accumulation_size, 1)
    checks.at_least('min_scale', min_scale)

    def init(params: Any) -> ReduceLROnPlateauState:
        scale = scalar_beside(params, 1.0)
        best = scalar_beside(params, float('inf'), 'highest')
        none = torch.zeros((), dtype=torch.int64, device=scale.device)
        return ReduceLROnPlateauState(scale, best, none, none.clone(), zero_count(), torch.zeros_like(best))

    def compare(state: ReduceLROnPlateauState) -> ReduceLROnPlateauState:
        best = state.best_value
        better = state.avg_value < torch.where(best.isinf(), best, best - rtol * best.abs() - atol)
        since = torch.where(better, 0, state.plateau_count + 1)
        resting = state.cooldown_count > 0
        lose = ~resting & (since == patience)
        least = tensor_like(min_scale, state.scale)
        reduced = torch.where(lose, state.scale * factor, state.scale)
        return ReduceLROnPlateauState(
            torch.where(resting, state.scale, torch.maximum(reduced, least)),
            torch.where(better, state.avg_value, state.best_value),
            torch.where(resting | lose, 0, since),
            torch.where(resting, state.cooldown_count - 1, torch.where(lose, cooldown, 0)),
            torch.zeros_like(state.count),
            torch.zeros_like(state.avg_value),
        )

    def update(
        updates: Any,
        state: ReduceLROnPlateauState,
        params: Any = None,
        *,
        value: Any = None,
        inplace: bool = False,
        **extra: Any,
    ) -> tuple[Any, ReduceLROnPlateauState]:
        elementwise.check_inexact(updates, name='updates')
        loss = objective_value(value, state.avg_value, updates, params, inplace=inplace)
        count, n = advance(state.count)
        mean = (state.avg_value * as_scalar_like(n - 1, loss) + loss) / as_scalar_like(n, loss)
        seen = state._replace(avg_value=mean, count=count)
        new = branch(count == accumulation_size, lambda inplace: compare(seen), lambda inplace: seen)

        def shrink(g: Tensor) -> Tensor:
            return g * as_scalar_like(new.scale, g)

        return tree.map(shrink, updates), new

    return GradientTransformationExtraArgs.requiring(init, update, state_of(ReduceLROnPlateauState))
