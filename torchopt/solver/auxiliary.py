# SPDX-License-Identifier: Apache-2.0
"""Functions of users that may return auxiliary output too."""

from __future__ import annotations

from typing import Any

from torchopt.implicit_diff.binding import signature_of

__all__ = ['check_state', 'require_function', 'split_aux']


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
        raise TypeError(f'{name} returned a {type(found).__name__}; with has_aux=True expected a pair (value, aux).')
    return found[0], found[1]


def require_function(name: str, value: Any, call: str = '', arguments: int = 0) -> None:
    """Require something that can be called.

    Args:
        name: The name of the argument, for the error message.
        value: The function.
        call: How it will be called, for the error message.
        arguments: With how many positional arguments; 0 if any number is fine.

    Raises:
        TypeError: If it cannot.
    """
    if not callable(value):
        raise TypeError(f'Invalid {name}: a {type(value).__name__}; expected a function.')
    if not arguments or (signature := signature_of(value)) is None:
        return
    try:
        signature.bind(*[None] * arguments)
    except TypeError as error:
        raise TypeError(
            f'Invalid {name}: {getattr(value, "__name__", value)} cannot be called as {call}: {error}. Wrap it: '
            f'`lambda {call.partition("(")[2][:-1]}: ...`.'
        ) from None


def check_state(state: Any) -> None:
    """Require the state of a solver.

    Raises:
        TypeError: If it is something else, as if the first arguments of ``update`` are exchanged.
    """
    if not hasattr(state, 'iter_num'):
        raise TypeError(
            f'state is a {type(state).__name__}; expected what init_state or the last update returned. The arguments '
            f'are update(params, state, ...).'
        )
