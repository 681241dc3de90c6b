# SPDX-License-Identifier: Apache-2.0
"""What a transformation refuses, it refuses before anything is changed in place.

An ``update`` that can refuse a step (the state of another optimizer, a schedule that gives NaN) carries a function
``update.preflight(state, params)`` that raises.  What combines transformations asks all of them first.  Where a step
may also be refused for the values of its updates, which are not known before, that function says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

__all__ = ['always_ask', 'expects_params', 'expects_state', 'is_settled', 'leave_open', 'preflight', 'refuses']

Check = Callable[[Any, Any], Any]
"""``check(state, params)`` raises where a step cannot be taken."""

_Update = TypeVar('_Update', bound=Callable[..., tuple[Any, Any]])


def preflight(tx: Any, state: Any, params: Any = None) -> None:
    """Let a transformation refuse a step before anything is changed in place."""
    check = getattr(tx.update, 'preflight', None)
    if check is not None:
        check(state, params)


_open: ContextVar[list[bool] | None] = ContextVar('open', default=None)


def leave_open(state: Any = None, params: Any = None) -> None:
    """Say, as a check or within one, that the step may still be refused for the values of the updates."""
    seen = _open.get()
    if seen is not None:
        seen.append(True)


def is_settled(tx: Any, state: Any, params: Any = None) -> bool:
    """As :func:`preflight`; returns whether the step cannot be refused any more."""
    found: list[bool] = []
    token = _open.set(found)
    try:
        preflight(tx, state, params)
    finally:
        _open.reset(token)
    return not found


def always_ask(tx: Any, state: Any, params: Any = None) -> None:
    """Let a transformation refuse what it refuses out of place too."""
    check = getattr(tx.update, 'always', None)
    if check is not None:
        check(state, params)


def refuses(check: Check, *, always: Check | None = None) -> Callable[[_Update], _Update]:
    """Let an ``update`` refuse steps.

    Args:
        check: All that can be known before the step; asked before a step in place, by this or an outer transformation.
        always: What has to be asked before a step out of place too.
    """

    def decorate(update: _Update) -> _Update:
        if torch.compiler.is_compiling():
            # What is built while tracing is not checked: attributes of functions cannot be traced.
            return update

        @functools.wraps(update)
        def checked(
            updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any
        ) -> tuple[Any, Any]:
            if inplace:
                check(state, params)
            elif always is not None:
                always(state, params)
            return update(updates, state, params, inplace=inplace, **extra)

        checked.preflight = check  # type: ignore[attr-defined]
        checked.always = always  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


def expects_state(kind: type, then: Check | None = None) -> Callable[[_Update], _Update]:
    """Let an ``update`` refuse the state of another transformation.

    Args:
        kind: The class of its own states.
        then: What else to ask before a step in place.
    """

    def is_own(state: Any, params: Any = None) -> None:
        if not isinstance(state, kind):
            raise ValueError(
                f'The state is a {type(state).__name__}; expected a {kind.__name__}. Pass the state that the init '
                f'or the last update of this very transformation returned.'
            )

    def check(state: Any, params: Any = None) -> None:
        is_own(state)
        if then is not None:
            then(state, params)

    return refuses(check, always=is_own)


def expects_params(purpose: str) -> Callable[[_Update], _Update]:
    """Let an ``update`` refuse to work without parameters, and say what they are for."""

    def check(state: Any, params: Any = None) -> None:
        if params is None:
            raise ValueError(
                f'Parameters are required for {purpose}. Call `update(updates, state, params=params)` instead.'
            )

    return refuses(check, always=check)
