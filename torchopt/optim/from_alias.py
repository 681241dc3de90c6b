# SPDX-License-Identifier: Apache-2.0
"""Optimizer classes whose constructors take the arguments of an alias."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

from torchopt.base import GradientTransformation
from torchopt.spelling import check_names, renamer_of


class FromAlias:
    """Base class of the families of optimizer classes (``Optimizer`` and ``MetaOptimizer``).

    A family defines ``_setup(self, target, impl, options)``, which every constructor calls last: ``impl`` is the
    transformation, and ``options`` are its hyper-parameters if an alias created it.
    """

    alias: ClassVar[Callable[..., GradientTransformation] | None] = None
    """The function that makes the transformation from hyper-parameters."""

    masks: ClassVar[tuple[str, ...]] = ()
    """The names of the arguments that choose parameters."""

    target_prose: ClassVar[str] = ''
    """The documentation of the first argument of this family."""

    remark: ClassVar[str] = ''
    """A paragraph for the documentation of every member."""

    example: ClassVar[str] = ''
    """A doctest that works for every member, with ``{name}`` for its name."""

    @classmethod
    def _first_names(cls, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """Hyper-parameters under the first names of the alias."""
        rewrite = renamer_of(cls.alias)
        return given if rewrite is None else rewrite(given, defaults)

    @classmethod
    def _rebuild(cls, impl: GradientTransformation, options: dict[str, Any]) -> GradientTransformation:
        """The transformation for other hyper-parameters."""
        return impl if cls.alias is None else cls.alias(**options)


_Family = TypeVar('_Family', bound=FromAlias)


def constructor(alias: Callable[..., GradientTransformation]) -> Callable[[type[_Family]], type[_Family]]:
    """Implement the constructor that a class declares: it calls an alias with its arguments after the first.

    The class declares names, types, order and defaults; checks and documentation are those of the alias, which must
    have these arguments.
    """

    def decorate(cls: type[_Family]) -> type[_Family]:
        declared = cls.__init__
        this, *others = inspect.signature(declared).parameters.values()
        shown = [p for p in others if p.kind is not p.VAR_KEYWORD]
        signature = inspect.Signature(shown)
        target = shown[0].name
        every = {p.name: p.default for p in shown}
        required = {p.name for p in shown if p.default is p.empty}
        positional = [p.name for p in shown if p.kind is not p.KEYWORD_ONLY]
        rename = renamer_of(alias)

        @functools.wraps(declared)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if len(args) > len(positional):
                raise TypeError(
                    f'{cls.__name__}() takes {len(positional)} positional arguments ({", ".join(positional)}), but '
                    f'{len(args)} were given'
                )
            given = dict(zip(positional, args))
            if twice := given.keys() & kwargs.keys():
                raise TypeError(f'{cls.__name__}() got multiple values for argument {min(twice)!r}')
            named = {**given, **kwargs} if rename is None else rename({**given, **kwargs}, every)
            options = {**every, **named}
            if len(options) > len(every) or not named.keys() >= required:
                try:
                    signature.bind(**named)  # for its error message; without an error it is slow
                except TypeError as error:
                    check_names(cls.__name__, kwargs, [name for name in every if name != target])
                    hint = ''
                    if target not in named:
                        hint = f'. For a transformation, without {target}, use torchopt.{alias.__name__}(...)'
                    raise TypeError(f'{cls.__name__}(): {error}{hint}') from None
            aim = options.pop(target)
            self._setup(aim, alias(**options), options)

        __init__.__doc__ = f'Take {target}, and then the arguments of :func:`torchopt.{alias.__name__}`.'
        __init__.__signature__ = inspect.Signature([this, *shown])  # type: ignore[attr-defined]
        cls.alias = staticmethod(alias)
        cls.masks = tuple(name for name in every if name.endswith('mask'))
        cls.__init__ = __init__  # type: ignore[method-assign]
        hidden = inspect.signature(alias).parameters.keys() - every.keys()
        parts = (inspect.cleandoc(cls.__doc__ or ''), cls.remark, _document(cls, alias, hidden))
        cls.__doc__ = '\n\n'.join(filter(None, parts))
        return cls

    return decorate


def _document(cls: type[FromAlias], alias: Callable[..., Any], hidden: Iterable[str]) -> str:
    """The documentation of the alias, with the arguments and the example of this class."""
    text = inspect.cleandoc(alias.__doc__ or '')
    for name in hidden:
        text = re.sub(rf'^    {name}: .*\n(?:     .*\n)*', '', text, flags=re.MULTILINE)
    text = text.replace('Args:\n', f'Args:\n    {cls.target_prose}\n', 1)
    before, _, after = text.partition('Example:\n')
    example = ''.join(f'    {line}\n' for line in cls.example.format(name=cls.__name__).splitlines())
    return f'{before}Example:\n{example}\n{after[after.find("References:") :] if "References:" in after else ""}'
