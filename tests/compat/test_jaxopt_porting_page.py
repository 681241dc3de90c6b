# SPDX-License-Identifier: Apache-2.0
"""The page on porting from JAXopt lists every name, and where torchopt has it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torchopt
from tests.compat.test_jaxopt_names import NAMES

PAGE = (Path(__file__).parents[2] / 'docs' / 'porting' / 'jaxopt.md').read_text(encoding='utf-8')
# Modules whose own names differ; the page has tables for them.
OTHER_NAMES = {'jaxopt.loss', 'jaxopt.tree_util'}
# Where a few names are.
ELSEWHERE = {
    'LinearOperator': torchopt.objective,
    'OptStep': torchopt.solver,
    **dict.fromkeys(torchopt.polytopes.__all__, torchopt.polytopes),
}


def rows() -> list[tuple[str, list[str], str]]:
    lines = PAGE.split('\n| JAXopt | names | torchopt |')[1].splitlines()[2:]
    found = []
    for line in lines:
        if not line.startswith('|'):
            break
        module, names, home = (re.findall(r'`([\w.]+)`', cell) for cell in line.strip('|').split('|'))
        found.append((module[0], names, home[0]))
    return found


def look_up(name: str) -> Any:
    found: Any = torchopt
    for part in name.split('.')[1:]:
        found = getattr(found, part)
    return found


def test_every_name_is_in_the_table() -> None:
    listed = {f'{module}.{name}' for module, names, _ in rows() for name in names}
    assert listed == {str(name) for name in NAMES if '.' not in name.name}


def test_torchopt_has_them() -> None:
    for module, names, home in rows():
        if module not in OTHER_NAMES:
            for name in names:
                assert hasattr(ELSEWHERE.get(name, look_up(home)), name), name
