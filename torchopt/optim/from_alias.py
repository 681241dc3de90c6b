# SPDX-License-Identifier: Apache-2.0
"""Optimizer classes whose constructors are derived from an alias.

``class Adam(Optimizer, alias=alias.adam)`` is the whole definition: its arguments, defaults, checks and documentation
are those of :func:`torchopt.adam`.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, ClassVar

from torchopt.base import GradientTransformation
from torchopt.spelling import check_names, renamer_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ['FromAlias']


class FromAlias:
    r"""Base class of the families of optimizer classes (``Optimizer`` and ``MetaOptimizer``).

    A family defines ``_setup(self, target, impl, options)``, which every constructor calls last: ``impl`` is the
    transformation, and ``options`` are its hyper-parameters if an alias created it.

    Class keywords of a member:
        alias: The function that creates the transformation.
        order: The names of the first arguments, if their order differs from that of the alias.
        \*\*defaults: Defaults that differ from those of the alias.
    """

    alias: ClassVar[Callable[..., GradientTransformation] | None] = None
    """The function that makes the transformation from hyper-parameters."""

    hidden: ClassVar[tuple[str, ...]] = ()
    """Arguments of aliases that this family does not have."""

    family_defaults: ClassVar[dict[str, Any]] = {}
    """Defaults of this family that differ from those of the aliases."""

    masks: ClassVar[tuple[str, ...]] = ()
    """The names of the arguments that choose parameters."""

    target_prose: ClassVar[str] = ''
    """The documentation of the first argument of this family."""

    remark: ClassVar[str] = ''
    """A paragraph for the documentation of every member."""

    example: ClassVar[str] = ''
    """A doctest that works for every member, with ``{name}`` for its name."""

    if TYPE_CHECKING:

        def __init__(self, target: Any, *args: Any, **kwargs: Any) -> None:
            """Declared for type checkers, which cannot derive the arguments from the alias."""

    def __init_subclass__(
        cls,
        alias: Callable[..., GradientTransformation] | None = None,
        order: tuple[str, ...] = (),
        **defaults: Any,
    ) -> None:
        """Make the constructor of a member."""
        super().__init_subclass__()
        if alias is None:
            return
        target = next(iter(inspect.signature(cls).parameters.values()))
        own = inspect.signature(alias).parameters
        first = [own[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in order]
        rest = [p for name, p in own.items() if name not in (*order, *cls.hidden)]
        changed = {**cls.family_defaults, **defaults}
        shown = [p.replace(default=changed.get(p.name, p.default)) for p in (*first, *rest)]
        signature = inspect.Signature([target, *shown])
        every = {p.name: p.default for p in (target, *shown)}
        required = {p.name for p in (target, *shown) if p.default is p.empty}
        positional = [p.name for p in (target, *shown) if p.kind is not p.KEYWORD_ONLY]
        rename = renamer_of(alias)

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            if len(args) > len(positional):
                raise TypeError(
                    f'{cls.__name__}() takes {len(positional)} positional arguments ({", ".join(positional)}), but '
                    f'{len(args)} were given'
                )
            given = dict(zip(positional, args))
            if twice := given.keys() & kwargs.keys():
                raise TypeError(f'{cls.__name__}() got multiple values for argument {min(twice)!r}')
            named = {**given, **kwargs} if rename is None else rename({**given, **kwargs}, changed)
            options = {**every, **named}
            if len(options) > len(every) or not named.keys() >= required:
                try:
                    signature.bind(**named)  # for its error message; without an error it is slow
                except TypeError as error:
                    check_names(cls.__name__, kwargs, [name for name in signature.parameters if name != target.name])
                    hint = ''
                    if target.name not in named:
                        hint = f'. For a transformation, without {target.name}, use torchopt.{alias.__name__}(...)'
                    raise TypeError(f'{cls.__name__}(): {error}{hint}') from None
            aim = options.pop(target.name)
            self._setup(aim, alias(**options), options)

        __init__.__doc__ = f'Take {target.name}, and then the arguments of :func:`torchopt.{alias.__name__}`.'
        cls.alias = staticmethod(alias)
        cls.masks = tuple(name for name in every if name.endswith('mask'))
        cls.__init__ = __init__  # type: ignore[method-assign]
        cls.__signature__ = signature  # type: ignore[attr-defined]
        own_words = inspect.cleandoc(cls.__doc__ or '')
        parts = (own_words, cls.remark, cls._document(inspect.cleandoc(alias.__doc__ or '')))
        cls.__doc__ = '\n\n'.join(filter(None, parts))

    @classmethod
    def _document(cls, text: str) -> str:
        """The documentation of the alias, with the arguments and the example of this family."""
        for name in cls.hidden:
            text = re.sub(rf'^    {name}: .*\n(?:     .*\n)*', '', text, flags=re.MULTILINE)
        text = text.replace('Args:\n', f'Args:\n    {cls.target_prose}\n', 1)
        before, _, after = text.partition('Example:\n')
        example = ''.join(f'    {line}\n' for line in cls.example.format(name=cls.__name__).splitlines())
        return f'{before}Example:\n{example}\n{after[after.find("References:") :] if "References:" in after else ""}'

    @classmethod
    def _first_names(cls, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """Hyper-parameters under the first names of the alias."""
        rewrite = renamer_of(cls.alias)
        return given if rewrite is None else rewrite(given, defaults)

    @classmethod
    def _rebuild(cls, impl: GradientTransformation, options: dict[str, Any]) -> GradientTransformation:
        """The transformation for other hyper-parameters."""
        return impl if cls.alias is None else cls.alias(**options)
