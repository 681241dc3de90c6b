# SPDX-License-Identifier: Apache-2.0
"""``optax.MultiSteps``, whose leaves may be NumPy arrays and numbers."""

from __future__ import annotations

from typing import Any

from torchopt import transform
from torchopt.compat.optax.leaves import as_tensors
from torchopt.transform import MultiStepsState

__all__ = ['MultiSteps']


class MultiSteps(transform.MultiSteps):
    """:class:`torchopt.transform.MultiSteps`.

    Example:
        >>> from torchopt.compat import optax
        >>> optimizer = optax.MultiSteps(optax.sgd(1.0), 2)
        >>> updates, state = optimizer.update([4.0], optimizer.init([3.0]))
        >>> optimizer.update([2.0], state)[0]
        [tensor(-3.)]
    """

    def init(self, params: Any) -> MultiStepsState:
        """The first state for these parameters."""
        return super().init(as_tensors(params))

    def update(
        self, updates: Any, state: MultiStepsState, params: Any = None, *, inplace: bool = False, **extra_args: Any
    ) -> tuple[Any, MultiStepsState]:
        """Take a small step; the updates of every :math:`k`-th one are those of the optimizer, all others are zero."""
        return super().update(as_tensors(updates), state, as_tensors(params), inplace=inplace, **extra_args)
