# SPDX-License-Identifier: Apache-2.0
"""Functions of users that may return auxiliary output too."""

from __future__ import annotations

from typing import Any

from torchopt.kinds import kind_of

__all__ = ['split_aux']


def split_aux(found: Any, has_aux: bool, name: str) -> tuple[Any, Any]:
    """The value and the auxiliary output of what a function returned; None for the latter if there is none.

    Args:
        found: What the function returned.
        has_aux: Whether that is a pair.
        name: The name of the function, for the error message.

    Raises:
        TypeError: If it should be a pair and is not.

    Example:
        >>> from torchopt.solver.auxiliary import split_aux
        >>> split_aux((1.0, 'more'), True, 'fun')
        (1.0, 'more')
    """
    if not has_aux:
        return found, None
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f'{name} returned {kind_of(found)}; with has_aux=True expected a pair (value, aux).')
    return found[0], found[1]
