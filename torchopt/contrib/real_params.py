# SPDX-License-Identifier: Apache-2.0
"""Require real parameters."""

from __future__ import annotations

from typing import Any

from torchopt import tree

__all__ = ['require_real']


def require_real(params: Any, method: str) -> None:
    """Raise for complex parameters.

    Raises:
        TypeError: If there are any; the message names the path of the first.
    """
    for path, p in tree.flatten_with_path(params):
        if p is not None and p.is_complex():
            raise TypeError(
                f'params{path} is complex ({p.dtype}), but {method} requires real ones. Wrap it in '
                f'torchopt.contrib.split_real_and_imaginary.'
            )
