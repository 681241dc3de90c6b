# SPDX-License-Identifier: Apache-2.0
"""Replace NaN and infinities in the updates."""

from __future__ import annotations

from torchopt import checks, tree
from torchopt.base import GradientTransformation, factory, without_state

__all__ = ['nan_to_num']


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
