# SPDX-License-Identifier: Apache-2.0
"""Trees as tables: what is shown, what is summed up, and what is not touched."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt import tree

base = torch.ones(4, 6)
w = nn.Parameter(torch.ones(3, 3))

# From a tree to its rows, cells split at two blanks or more, and to its last line.
TABLES: dict[str, tuple[Any, list[list[str]], str]] = {
    'dict': (
        {'w': torch.zeros(2, 3), 'b': [torch.zeros(2, dtype=torch.float64)]},
        [["['b'][0]", '(2,)', 'float64', 'cpu', '16'], ["['w']", '(2, 3)', 'float32', 'cpu', '24']],
        '2 leaves, 8 elements, 40 bytes',
    ),
    'root': (torch.tensor(1j), [['(root)', '()', 'complex64', 'cpu', '8']], '1 leaf, 1 element, 8 bytes'),
    'no leaves': (((), {}), [], '0 leaves, 0 elements, 0 bytes'),
    'others': (
        [None, 3, 0.5, True, 'a', 'long' * 20, torch.Generator()],
        [
            ['[0]', 'None'],
            ['[1]', '3', 'int'],
            ['[2]', '0.5', 'float'],
            ['[3]', 'True', 'bool'],
            ['[4]', "'a'", 'str'],
            ['[5]', "'longlonglonglonglonglonglong...", 'str'],
            ['[6]', 'Generator'],
        ],
        '7 leaves, 0 elements, 0 bytes',
    ),
    'tied': (
        [w, w, w.detach(), w.detach().clone()],
        [[f'[{i}]', '(3, 3)', 'float32', 'cpu', '36'] for i in range(4)],
        '4 leaves, 18 elements, 72 bytes',
    ),
    'rows of one block': (
        [base[0], base[2]],
        [[f'[{i}]', '(6,)', 'float32', 'cpu', '24'] for i in range(2)],
        '2 leaves, 12 elements, 48 bytes',
    ),
    'a block and its rows': (
        [base[0], base, base[2]],
        [
            ['[0]', '(6,)', 'float32', 'cpu', '24'],
            ['[1]', '(4, 6)', 'float32', 'cpu', '96'],
            ['[2]', '(6,)', 'float32', 'cpu', '24'],
        ],
        '3 leaves, 24 elements, 96 bytes',
    ),
    'expanded': (
        torch.zeros(1).expand(1000),
        [['(root)', '(1000,)', 'float32', 'cpu', '4,000']],
        '1 leaf, 1 element, 4 bytes',
    ),
    'empty tensors': (
        [torch.zeros(0), torch.zeros(3, 0)],
        [['[0]', '(0,)', 'float32', 'cpu', '0'], ['[1]', '(3, 0)', 'float32', 'cpu', '0']],
        '2 leaves, 0 elements, 0 bytes',
    ),
    'meta': (
        {'a': torch.empty(2**20, 300, device='meta'), 'b': torch.empty(3, device='meta')},
        [["['a']", '(1048576, 300)', 'float32', 'meta', '1,258,291,200'], ["['b']", '(3,)', 'float32', 'meta', '12']],
        '2 leaves, 314,572,803 elements, 1,258,291,212 bytes (1.2 GiB)',
    ),
    'almost a mebibyte': (
        torch.empty(2**20 - 1, dtype=torch.uint8, device='meta'),
        [['(root)', '(1048575,)', 'uint8', 'meta', '1,048,575']],
        '1 leaf, 1,048,575 elements, 1,048,575 bytes (1.0 MiB)',
    ),
    'sparse': (
        [torch.eye(2).to_sparse(), torch.ones(1)],
        [['[0]', '(2, 2)', 'float32, sparse_coo', 'cpu', '-'], ['[1]', '(1,)', 'float32', 'cpu', '4']],
        '2 leaves, 5 elements, 4 bytes',
    ),
    'lazy': (nn.UninitializedParameter(), [['(root)', '?', 'float32', 'cpu', '-']], '1 leaf, 0 elements, 0 bytes'),
    'state': (
        torchopt.sgd(0.1, momentum=0.9).init([torch.zeros(256)]),
        [['[0].trace[0]', '(256,)', 'float32', 'cpu', '1,024']],
        '1 leaf, 256 elements, 1,024 bytes (1.0 KiB)',
    ),
}


@pytest.mark.parametrize('case', TABLES)
def test_tables(case: str) -> None:
    value, rows, last = TABLES[case]
    text = tree.summary(value)
    head, *body, end = text.splitlines()
    assert head.split() == ['leaf', 'shape', 'dtype', 'device', 'bytes']
    assert [re.split(r'  +', line) for line in body] == rows
    assert end == last
    assert all(line == line.rstrip() for line in text.splitlines())


def test_columns_stand_below_each_other() -> None:
    head, *body, _ = tree.summary(
        torchopt.adam().init({'encoder': torch.zeros(2), 'b': torch.zeros(100, 100)})
    ).splitlines()
    for column in ('shape', 'dtype', 'device'):
        assert all(line[head.index(column) - 2 : head.index(column)] == '  ' for line in body)
        assert all(line[head.index(column)] != ' ' for line in body)
    assert {len(line) for line in (head, *body)} == {len(head)}


@pytest.mark.parametrize(('rows', 'kept'), [(None, 9), (9, 9), (20, 9), (8, 8), (3, 3), (1, 1), (0, 0)])
def test_long_trees(rows: int | None, kept: int) -> None:
    _, *body, last = tree.summary([torch.ones(2)] * 5 + [1.0] * 4, max_rows=rows).splitlines()
    left_out = [line for line in body if line.startswith('...')]
    assert left_out == ([] if kept == 9 else [f'... {9 - kept} {"leaf" if kept == 8 else "leaves"} more ...'])
    assert len(body) - len(left_out) == kept
    assert last == '9 leaves, 2 elements, 8 bytes'
    if 1 < kept < 9:
        assert body[0].startswith('[0]') and body[-1].startswith('[8]')


def test_a_negative_number_of_rows() -> None:
    with pytest.raises(ValueError, match='max_rows is -1'):
        tree.summary([], max_rows=-1)


def test_under_transforms() -> None:
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append(tree.summary([x, x]).splitlines())
        return x.sum()

    torch.vmap(torch.func.grad(look))(torch.ones(5, 3))
    assert seen[0][1].split() == ['[0]', '(3,)', 'float32', 'cpu', '12']
    assert seen[0][-1].startswith('2 leaves, 3 elements, 12 bytes')


def test_no_value_is_read() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        text = tree.summary([torch.empty(2, 3, device='cuda')])
    assert text.splitlines()[1].split() == ['[0]', '(2,', '3)', 'float32', 'cuda:0', '24']


def test_distributed_tensors() -> None:
    distributed = pytest.importorskip('torch.distributed')
    if not distributed.is_available():
        pytest.skip('torch without torch.distributed')
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh('cpu', (1,))
        x = distribute_tensor(torch.ones(4, 2), mesh, [Replicate()])
        assert tree.summary([x, x]).splitlines()[1:] == [
            '[0]   (4, 2)  float32  cpu        32',
            '[1]   (4, 2)  float32  cpu        32',
            '2 leaves, 8 elements, 32 bytes',
        ]
    finally:
        distributed.destroy_process_group()
