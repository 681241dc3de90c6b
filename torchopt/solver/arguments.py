# SPDX-License-Identifier: Apache-2.0
"""How the functions of a problem, and the steps of a solver, are called, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchopt import checks
from torchopt.implicit_diff.binding import signature_of
from torchopt.kinds import kind_of


def check_state(state: Any) -> None:
    """Require the state of a solver.

    Raises:
        TypeError: If it is something else, as if the first arguments of ``update`` are exchanged.
    """
    if not hasattr(state, 'iter_num'):
        raise TypeError(
            f'state is {kind_of(state)}; expected what init_state or the last update returned. The arguments '
            f'are update(params, state, ...).'
        )


def require_call(name: str, function: Callable[..., Any], call: str) -> None:
    """Require a function that can be called by position, as in ``call``: ``'prox(params, hyperparams_prox, scaling)'``.

    ``name`` is that of the argument, for the error message.
    """
    checks.function(name, function)
    if (signature := signature_of(function)) is None:
        return
    arguments = call.partition('(')[2].removesuffix(')')
    try:
        signature.bind(*arguments.split(', '))
    except TypeError as error:
        raise TypeError(
            f'Invalid {name}: {getattr(function, "__name__", function)} cannot be called as {call}: {error}. Wrap it: '
            f'`lambda {arguments}: ...`.'
        ) from None


def split_aux(found: Any, has_aux: bool, name: str) -> tuple[Any, Any]:
    """The value and the auxiliary output of what the function ``name`` returned: without ``has_aux``, there is none."""
    if not has_aux:
        return found, None
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f'{name} returned {kind_of(found)}; with has_aux=True expected a pair (value, aux).')
    return found[0], found[1]
