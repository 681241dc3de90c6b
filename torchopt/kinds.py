# SPDX-License-Identifier: Apache-2.0
"""How errors name the type of a value."""

from __future__ import annotations

from typing import Any

__all__ = ['described', 'kind_of', 'with_article']


def described(value: Any) -> str:
    """A value with its type, as a clause.

    Example:
        >>> from torchopt.kinds import described
        >>> described(0.5), described(None)
        ('0.5 is a float', 'None')
    """
    return 'None' if value is None else f'{value!r} is {kind_of(value)}'


def kind_of(value: Any) -> str:
    """The type of a value with its article.

    Example:
        >>> from torchopt.kinds import kind_of
        >>> kind_of({}), kind_of(1), kind_of(None)
        ('a dict', 'an int', 'None')
    """
    return 'None' if value is None else with_article(type(value).__name__)


def with_article(noun: str) -> str:
    """A noun with its article, which follows the first letter."""
    return f'{"an" if noun[:1].lower() in set("aeio") else "a"} {noun}'
