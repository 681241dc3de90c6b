# SPDX-License-Identifier: Apache-2.0
"""Functions that create transformations, and record their calls in them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from torchopt import tree
from torchopt.spelling import check_names_of

__all__ = ['FactoryCall', 'call_again', 'factory']


class FactoryCall(NamedTuple):
    """The call of a factory, which can recreate the transformation and identifies its rule."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    spell: Callable[..., tree.Spelled] | None = None


def call_again(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Repeat a call, for pickling."""
    return function(*args, **kwargs)


class Recorded(Protocol):
    """A transformation."""

    call: FactoryCall | None


_P = ParamSpec('_P')
_T = TypeVar('_T', bound='Recorded')


def factory(function: Callable[_P, _T], *, spell: Callable[..., tree.Spelled] | None = None) -> Callable[_P, _T]:
    """Record in each transformation the call that created it.

    Thus transformations can be pickled although ``init`` and ``update`` are closures, and have a readable ``repr``.

    Args:
        function: A function that returns a transformation.
        spell: ``spell(*args)`` returns how to print a call; by default, as a call of the function by its name.

    Example:
        >>> import torchopt
        >>> torchopt.transform.scale(0.5)
        scale(0.5)
    """

    @functools.wraps(function)
    def build(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            made = function(*args, **kwargs)
        except TypeError:
            check_names_of(function, kwargs)
            raise
        if made.call is None:
            made.call = FactoryCall(build, args, kwargs, spell)
        return made

    return build
