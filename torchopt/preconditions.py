# SPDX-License-Identifier: Apache-2.0
"""What a step requires, checked before anything is changed in place.

A transformation lists its preconditions in ``requires``, and its own ``update`` checks them.  What combines
transformations lists those of its members, so that a step in place is refused as a whole or not at all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

__all__ = [
    'Precondition',
    'check_always',
    'check_preconditions',
    'is_settled',
    'checked',
    'params_for',
    'required_by',
    'required_by_all',
    'state_of',
]

Check = Callable[[Any, Any], Any]
"""``check(state, params)`` raises where a step cannot be taken."""


class Precondition(NamedTuple):
    """Something that a step requires.

    Attributes:
        check: ``check(state, params)`` raises if it does not hold.
        when: ``'always'`` if it is checked before every step, ``'inplace'`` if only before a step in place; out of
            place, such a step raises by itself while nothing is lost.
        is_final: False where a step that meets it may still be refused, for the values of its updates.
    """

    check: Check
    when: Literal['always', 'inplace'] = 'inplace'
    is_final: bool = True


def check_preconditions(tx: Any, state: Any, params: Any = None) -> None:
    """Check all that a transformation requires of a step in place."""
    for condition in tx.requires:
        condition.check(state, params)


def is_settled(tx: Any) -> bool:
    """Whether a step that meets all preconditions cannot be refused any more."""
    return all(condition.is_final for condition in tx.requires)


def check_always(tx: Any, state: Any, params: Any = None) -> None:
    """Check what a transformation requires of every step."""
    for condition in tx.requires:
        if condition.when == 'always':
            condition.check(state, params)


def checked(update: Callable[..., Any], requires: tuple[Precondition, ...]) -> Callable[..., Any]:
    """An ``update`` that checks preconditions first."""
    if not requires or torch.compiler.is_compiling():
        return update  # a graph has no place for errors about the state

    always = [condition.check for condition in requires if condition.when == 'always']
    before_inplace = [condition.check for condition in requires]

    @functools.wraps(update)
    def checking(
        updates: Any, state: Any, params: Any = None, *, inplace: bool = False, **extra: Any
    ) -> tuple[Any, Any]:
        for check in before_inplace if inplace else always:
            check(state, params)
        return update(updates, state, params, inplace=inplace, **extra)

    return checking


def state_of(kind: type) -> Precondition:
    """The state is of this class: it comes from the transformation itself."""

    def check(state: Any, params: Any = None) -> None:
        if not isinstance(state, kind):
            raise ValueError(
                f'The state is a {type(state).__name__}; expected a {kind.__name__}. Pass the state that the init '
                f'or the last update of this very transformation returned.'
            )

    return Precondition(check, 'always')


def params_for(purpose: str) -> Precondition:
    """The parameters are given; ``purpose`` says in the message what they are for."""

    def check(state: Any, params: Any = None) -> None:
        if params is None:
            raise ValueError(
                f'Parameters are required for {purpose}. Call `update(updates, state, params=params)` instead.'
            )

    return Precondition(check, 'always')


def required_by_all(select: Callable[[Any, Any], Any], *transformations: Any) -> Precondition:
    """All that inner transformations require.

    Args:
        select: ``select(state, params)`` returns for each of them the pair of its state and its parameters.
        *transformations: The inner transformations.
    """

    def check(state: Any, params: Any = None) -> None:
        for tx, own in zip(transformations, select(state, params)):
            check_preconditions(tx, *own)

    return Precondition(check, is_final=all(map(is_settled, transformations)))


def required_by(tx: Any, name: str) -> Precondition:
    """All that an inner transformation requires whose state is the field ``name`` of the outer one."""
    return required_by_all(lambda state, params: [(getattr(state, name), params)], tx)
