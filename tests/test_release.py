# SPDX-License-Identifier: Apache-2.0
"""What a release consists of agrees with itself: the version is the same everywhere, and every dependency is pinned."""

from __future__ import annotations

import re
from pathlib import Path

import torchopt

ROOT = Path(__file__).parents[1]


def normalized(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r'[-_.]+', '-', name).lower()


def test_the_citation_is_of_this_version():
    citation = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    assert re.search(r'^version: (.+)$', citation, re.MULTILINE)[1] == torchopt.__version__


def test_direct_dependencies_of_development_are_pinned():
    """Except those of `integration`, which CI does not install."""
    project = (ROOT / 'pyproject.toml').read_text(encoding='utf-8')
    table = project[project.index('[project.optional-dependencies]') : project.index('[tool.scikit-build]')]
    table = '\n'.join(line for line in table.splitlines() if not line.startswith(('#', 'integration =', 'dev =')))
    wanted = {normalized(name) for name in re.findall(r'"([A-Za-z0-9._-]+)', table)}
    lines = (ROOT / 'constraints-dev.txt').read_text(encoding='utf-8').splitlines()
    pinned = {normalized(line.partition('==')[0]) for line in lines if '==' in line}
    assert len(wanted) > 15
    assert wanted - pinned == set()


def test_wheels_never_bring_an_openmp_runtime():
    """Both ways of building repair the wheel without one: torch brings it."""
    for name in ('Makefile', 'pyproject.toml'):
        repairs = re.findall(r'auditwheel repair .*', (ROOT / name).read_text(encoding='utf-8'))
        assert repairs and all('--exclude libgomp.so.1' in repair for repair in repairs)
