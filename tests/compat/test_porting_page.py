# SPDX-License-Identifier: Apache-2.0
"""The page on porting from Optax lists what ``torchopt.compat.optax`` writes anew, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import torchopt
from torchopt.compat import optax
from torchopt.compat.optax.leaves import is_converting

PAGE = (Path(__file__).parents[2] / 'docs' / 'porting' / 'optax.md').read_text(encoding='utf-8')


def rows(heading: str) -> list[tuple[str, ...]]:
    """The cells of the table whose first line begins with this."""
    lines = PAGE.split(f'\n| {heading} |')[1].splitlines()[2:]
    table = []
    for line in lines:
        if not line.startswith('|'):
            break
        table.append(tuple(cell.strip() for cell in line.strip('|').split(' | ')))
    return table


def names(cell: str) -> list[str]:
    return re.findall(r'`([\w.]+)`', cell)


def look_up(root: Any, name: str) -> Any:
    for part in name.split('.')[1:]:
        root = getattr(root, part)
    return root


def faces() -> set[str]:
    """The functions that are not torchopt's own, at the root and in contrib."""

    def is_face(value: Any) -> bool:
        function = value.__wrapped__ if is_converting(value) else value
        return callable(value) and getattr(function, '__module__', '').startswith(optax.__name__)

    found = {name for name in optax.__all__ if is_face(getattr(optax, name))} - {'dpsgd'}
    for module in ('contrib', 'transforms'):
        part = getattr(optax, module)
        found |= {f'{module}.{name}' for name in part.__all__ if name not in found and is_face(getattr(part, name))}
    return found


def test_every_face_is_in_the_table() -> None:
    listed = [name for cell, _ in rows("Optax's name") for name in names(cell)]
    assert sorted(listed) == sorted(faces())


def test_there_is_something_to_list() -> None:
    assert {'adam', 'chain', 'apply_updates', 'exponential_decay', 'contrib.dog'} < faces()


@pytest.mark.parametrize('row', rows('Optax'), ids=lambda row: row[0])
def test_every_name_in_the_table_of_modules_exists(row: tuple[str, str]) -> None:
    theirs, own = row
    assert names(theirs)
    for name in names(theirs):
        assert look_up(optax, name) is not None
    for name in names(own):
        assert look_up(torchopt if name.startswith('torchopt') else optax, name) is not None


def test_names_are_in_the_module_that_the_page_says() -> None:
    """Not for the first rows, which speak of names in general."""
    for theirs, own in rows('Optax'):
        for name in names(theirs):
            last, homes = name.rpartition('.')[2], [look_up(torchopt, home) for home in names(own)]
            public = {x for home in homes for x in getattr(home, '__all__', ())}
            module = getattr(optax, last, None)
            assert last in public or hasattr(module, '__all__') or 'at the root' in own, (name, own)
