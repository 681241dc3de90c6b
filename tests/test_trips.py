# SPDX-License-Identifier: Apache-2.0
"""How far a reader has to follow the code of frequent calls: the numbers of functions and of changes of file."""

from __future__ import annotations

import pytest

from benchmarks.trips import calls, changes_of_file, trace
from torchopt import accelerated_op_available


@pytest.mark.skipif(not accelerated_op_available(), reason='without the engine, steps run other code')
@pytest.mark.parametrize(
    ('name', 'functions', 'changes'),
    [('adam()', 30, 15), ('adam.update', 30, 10), ('MetaAdam.step', 45, 15), ('solve_cg 3x3', 70, 20)],
)
def test_calls_enter_few_functions_and_files(name: str, functions: int, changes: int) -> None:
    entered = trace(calls()[name])
    assert 0 < len(entered) <= functions, entered
    assert 0 < changes_of_file(entered) <= changes, entered


def test_changes_of_file() -> None:
    assert changes_of_file([]) == 0
    assert changes_of_file([('a.py', 'f'), ('a.py', 'g'), ('b.py', 'f'), ('a.py', 'g')]) == 3
