# SPDX-License-Identifier: Apache-2.0
"""Preconditions of a step, checked before anything is changed in place.

A transformation lists its preconditions in ``requires``, and its ``update`` checks them.  A transformation that
combines others lists those of its members, so an in-place step either runs completely or raises before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torchopt.kinds import kind_of, with_article

__all__ = [
    'Precondition',
    'check_preconditions',
    'params_for',
    'required_by',
    'required_by_all',
    'state_of',
    'wrong_state',
]

Check = Callable[[Any, Any], Any]
"""``check(state, params)`` raises if a step is not possible."""


class Precondition(NamedTuple):
    """A precondition of a step.

    Attributes:
        check: ``check(state, params)`` raises if the precondition does not hold.
        when: ``'always'`` to check before every step, ``'inplace'`` to check only before an in-place step.  An
            out-of-place step raises by itself, and nothing is lost.
        is_final: False if a step that meets the precondition can still fail, depending on the values of the updates.
        kind: If the precondition only requires a state of one class: this class.
    """

    check: Check
    when: Literal['always', 'inplace'] = 'inplace'
    is_final: bool = True
    kind: type | None = None


def check_preconditions(tx: Any, state: Any, params: Any = None) -> None:
    """Check all preconditions of an in-place step."""
    for condition in tx.requires:
        condition.check(state, params)


def wrong_state(state: Any, problem: str, of: str = 'transformation') -> ValueError:
    """The error for a state that ``update`` cannot use."""
    if state is None:
        return ValueError(
            'The state is None. Pass the result of init: `state = optimizer.init(params)`, then '
            '`updates, state = optimizer.update(grads, state, params)` in each step.'
        )
    return ValueError(f'{problem} Pass the state that init or the last update of this {of} returned.')


def state_of(kind: type) -> Precondition:
    """Require that the state is of this class, so that it comes from the transformation itself."""

    def check(state: Any, params: Any = None) -> None:
        if not isinstance(state, kind):
            raise wrong_state(state, f'The state is {kind_of(state)}; expected {with_article(kind.__name__)}.')

    return Precondition(check, 'always', kind=kind)


def params_for(purpose: str) -> Precondition:
    """Require the parameters; the error message names their ``purpose``."""

    def check(state: Any, params: Any = None) -> None:
        if params is None:
            raise ValueError(
                f'Parameters are required for {purpose}. Call `update(updates, state, params=params)` instead.'
            )

    return Precondition(check, 'always')


def required_by_all(select: Callable[[Any, Any], Any], *transformations: Any) -> Precondition:
    """Require all preconditions of inner transformations.

    Args:
        select: ``select(state, params)`` returns for each of them a pair of its state and its parameters.
        *transformations: The inner transformations.
    """

    def check(state: Any, params: Any = None) -> None:
        for tx, own in zip(transformations, select(state, params)):
            check_preconditions(tx, *own)

    return Precondition(check, is_final=all(c.is_final for tx in transformations for c in tx.requires))


def required_by(tx: Any, name: str) -> Precondition:
    """Require all preconditions of an inner transformation; its state is the field ``name`` of the outer state."""
    return required_by_all(lambda state, params: [(getattr(state, name), params)], tx)
