# SPDX-License-Identifier: Apache-2.0
"""A value that falls as one over the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from torchopt.numerics import on_host

__all__ = ['inverse_time_decay']


@dataclass(frozen=True)
class inverse_time_decay:  # noqa: N801  (schedules are named as functions)
    r"""The schedule :math:`s(t) = s_0 / (1 + \delta t)`.

    Args:
        init_value: :math:`s_0`.
        decay_rate: :math:`\delta`.

    Example:
        >>> import torchopt
        >>> torchopt.schedule.inverse_time_decay(1.0, 0.5)(2)
        0.5
    """

    init_value: Any
    decay_rate: Any

    def __call__(self, count: Any) -> Any:
        """The value after ``count`` steps."""
        t = on_host(count)
        if t is None:
            t = count.to(torch.float64)
        return self.init_value / (1.0 + self.decay_rate * t)
