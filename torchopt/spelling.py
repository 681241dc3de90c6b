# SPDX-License-Identifier: Apache-2.0
"""Arguments with two names: that of TorchOpt and that of Optax."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

from typing_extensions import TypedDict

__all__ = ['OptaxAdam', 'OptaxRate', 'OptaxRmsProp', 'also_spelled', 'renamer_of']

_P = ParamSpec('_P')
_T = TypeVar('_T')


class OptaxRate(TypedDict, total=False):
    """Optax's name for ``lr``."""

    learning_rate: Any


class OptaxAdam(OptaxRate, total=False):
    """Optax's names for ``lr`` and for the two ``betas``."""

    b1: Any
    b2: Any


class OptaxRmsProp(OptaxRate, total=False):
    """Optax's names for ``lr`` and ``alpha``."""

    decay: Any


_RENAMERS: weakref.WeakKeyDictionary[Any, Callable[..., dict[str, Any]]] = weakref.WeakKeyDictionary()


def renamer_of(function: Any) -> Callable[..., dict[str, Any]] | None:
    """The renaming of the arguments of a function that :func:`also_spelled` decorates; None for other functions.

    ``renamer(given, defaults=None)`` renames keyword arguments to their first names.  If only a part of an argument is
    given (``b1`` alone), the rest comes from the defaults.
    """
    return _RENAMERS.get(function) if isinstance(function, FunctionType) else None


def also_spelled(**second_names: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Let a function accept second names for some of its arguments.

    ``also_spelled(learning_rate='lr', b1='betas.0')`` accepts ``learning_rate=`` for ``lr=``, and ``b1=`` for the first
    entry of ``betas=``.  The function declares ``**optax`` for the type checker only; it is always empty.

    Raises:
        TypeError: Raised by the decorated function if an argument is given under both names, or a name is unknown.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        full = inspect.signature(function)
        parameters = [p for p in full.parameters.values() if p.kind is not p.VAR_KEYWORD]
        positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        known = {p.name for p in parameters} | set(second_names)

        def first_names(given: dict[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
            defaults = defaults or {}
            named = {name: value for name, value in given.items() if name not in second_names}
            entries: dict[str, list[Any]] = {}
            for second in [name for name in second_names if name in given]:
                first, _, index = second_names[second].partition('.')
                if first in given:
                    raise TypeError(
                        f'{function.__name__}() got both {first!r} and {second!r}, which mean the same. Pass one.'
                    )
                if index:
                    default = defaults.get(first, full.parameters[first].default)
                    whole = entries.setdefault(first, list(default))
                    whole[int(index)] = given[second]
                else:
                    named[first] = given[second]
            return {**named, **{first: tuple(whole) for first, whole in entries.items()}}

        @functools.wraps(function)
        def accept(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for name in kwargs.keys() - known:
                raise TypeError(
                    f'{function.__name__}() got an unexpected keyword argument {name!r}; it takes {sorted(known)}'
                )
            if not second_names.keys() & kwargs.keys():
                return function(*args, **kwargs)
            given = dict(zip(positional, args))
            for name in given.keys() & kwargs.keys():
                raise TypeError(f'{function.__name__}() got multiple values for argument {name!r}')
            rest: Any = args[len(positional) :]  # too many: Python raises the error
            return function(*rest, **first_names({**given, **kwargs}))

        _RENAMERS[accept] = first_names
        accept.__signature__ = full.replace(parameters=parameters)  # type: ignore[attr-defined]
        return accept

    return decorate
