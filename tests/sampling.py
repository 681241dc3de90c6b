# SPDX-License-Identifier: Apache-2.0
"""Options of pytest for a sample of the tests, which runs quickly.

``--sample N`` runs at most N cases of each parametrized test, drawn by ``--sample-seed``, and leaves out tests marked
``long``.  If a test is named on the command line (``file::test``), everything that the command line names is run.
"""

from __future__ import annotations

import random
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup('sample', 'a sample of the tests')
    group.addoption('--sample', type=int, default=0, metavar='N', help='run at most N cases of each test')
    group.addoption('--sample-seed', default='0', metavar='SEED', help='the seed that draws the cases')


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    size = config.getoption('sample')
    if not size or any('::' in argument for argument in config.args):
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker('long') is None:
            cases.setdefault(item.nodeid.partition('[')[0], []).append(item)
    drawn: set[pytest.Item] = set()
    for name, group in cases.items():
        generator = random.Random(f'{config.getoption("sample_seed")} {name}')
        drawn.update(generator.sample(group, min(size, len(group))))
    unwanted = [item for item in items if item not in drawn]
    config.hook.pytest_deselected(items=unwanted)
    items[:] = [item for item in items if item in drawn]
    config.stash[LEFT_OUT] = len(unwanted)
    if hasattr(config, 'workeroutput'):
        config.workeroutput['left_out'] = len(unwanted)


LEFT_OUT = pytest.StashKey[int]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take the number from a worker of pytest-xdist: the workers collect the tests."""
    node.config.stash[LEFT_OUT] = getattr(node, 'workeroutput', {}).get('left_out', 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    left_out = config.stash.get(LEFT_OUT, 0)
    if left_out:
        terminalreporter.write_line(
            f'{left_out} tests were left out: --sample {config.getoption("sample")}, --sample-seed '
            f'{config.getoption("sample_seed")}. `make test-all` runs all tests.'
        )
