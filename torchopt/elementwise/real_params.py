# SPDX-License-Identifier: Apache-2.0
"""Require real parameters or updates."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchopt import tree

__all__ = ['require_real']


def require_real(given: Any, method: str, name: str = 'params') -> None:
    """Raise for complex tensors, for a method that compares numbers.

    Raises:
        TypeError: If there are any; the message names the path of the first.
    """
    for path, x in tree.flatten_with_path(given):
        if isinstance(x, Tensor) and x.is_complex():
            raise TypeError(
                f'{name}{path} is complex ({x.dtype}), but {method} requires real numbers. Wrap it in '
                f'torchopt.contrib.split_real_and_imaginary.'
            )
