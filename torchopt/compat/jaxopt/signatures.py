# SPDX-License-Identifier: Apache-2.0
"""Classes of torchopt with the constructor arguments of another library."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torchopt.spelling import check_names

__all__ = ['spelled']

_T = TypeVar('_T')


def spelled(cls: type[_T], signature: Callable[..., None], unused: tuple[str, ...] = ()) -> type[_T]:
    """A subclass of the same name whose constructor takes the arguments of a function, with its order and defaults.

    Args:
        cls: A dataclass that has all of these arguments, and perhaps more, which keep their defaults.
        signature: A function that has them.
        unused: Arguments that ``cls`` need not have: they may be given their defaults only.

    Raises:
        TypeError: If ``cls`` lacks an argument.
    """
    theirs = inspect.signature(signature)
    fields = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    foreign = [name for name in theirs.parameters if name not in (*fields, *unused)]
    if foreign:
        raise TypeError(f'{cls.__name__} has no arguments {foreign}.')

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        check_names(cls.__name__, kwargs, theirs.parameters)
        try:
            bound = theirs.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f'{cls.__name__}{theirs}: {error}.') from None
        bound.apply_defaults()
        for name in unused:
            if bound.arguments.pop(name) is not theirs.parameters[name].default:
                raise TypeError(f'{cls.__name__} does not use the argument {name!r}. Leave it out.')
        cls.__init__(self, **bound.arguments)

    def attribute_names(self: Any) -> tuple[str, ...]:
        """The names of the constructor's arguments."""
        return tuple(theirs.parameters)

    body = {
        '__init__': __init__,
        '__doc__': cls.__doc__,
        '__module__': f'{__name__.rpartition(".")[0]}.solvers',
        '__signature__': theirs,
        'attribute_names': attribute_names,
    }
    return type(cls.__name__, (cls,), body)
