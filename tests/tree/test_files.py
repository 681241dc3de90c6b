# SPDX-License-Identifier: Apache-2.0
"""Trees in safetensors files: what comes back, what is refused, and that nothing is half done."""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import torchopt
from torchopt import tree
from torchopt.schedule import polynomial_schedule

f64 = torch.float64


class Pair(NamedTuple):
    mu: Any
    nu: Any


class Other(NamedTuple):
    mu: Any
    nu: Any


def equal(x: Any, y: Any) -> bool:
    """Equal to the last bit, and of one type."""
    if isinstance(x, torch.Tensor):
        same = x.dtype == y.dtype and x.shape == y.shape and x.device == y.device
        return same and torch.equal(x.detach().resolve_conj(), y.detach())
    return type(x) is type(y) and (x == y or x != x)


def assert_equal(first: Any, second: Any) -> None:
    assert tree.structure(first) == tree.structure(second)
    for (path, x), y in zip(tree.flatten_with_path(first), tree.flatten(second)[0], strict=True):
        assert equal(x, y), path


def names(file: Path) -> set[str]:
    with safe_open(file, 'pt') as opened:
        return set(opened.keys())


# -- what comes back ---------------------------------------------------------------------------------------------------

noise = torch.Generator().manual_seed(0)
base = torch.randn(4, 6, generator=noise)
TREES: dict[str, Any] = {
    'float64': {'w': torch.tensor([1 / 3, torch.inf, -0.0], dtype=f64)},
    'float16': [torch.ones(3, dtype=torch.float16)],
    'bfloat16': [base.bfloat16(), torch.tensor(1.5, dtype=torch.bfloat16)],
    'complex64': (base + 1j,),
    'complex128': (base.to(torch.complex128) * 1j, torch.tensor(1j, dtype=torch.complex128)),
    'conjugate': [(base + 1j).conj(), (base.to(f64) + 1j).conj(), (base + 1j).conj().imag],
    'integers': [torch.arange(5), torch.tensor(7), torch.tensor([True, False]), torch.ones(2, dtype=torch.uint8)],
    'scalar': torch.tensor(2.0),
    'empty': {'a': torch.zeros(0), 'b': torch.zeros(3, 0, dtype=f64), 'c': torch.zeros(0, dtype=torch.complex128)},
    'one element of a column': [base[:1, 1], base[:1, :1].T, (base + 1j).imag[:1, 2], base[::3, :1][:1, 0]],
    'strided': [base.T, base[:, ::2], base[1:3, 1:3].to(torch.complex128).T],
    'expanded': [torch.tensor(3.0).expand(2, 5), base[:1].expand(4, 6)],
    'rows of one block': [base[0], base[1], base],
    'numbers': {'i': 3, 'f': 0.1, 'n': float('nan'), 'inf': -float('inf'), 'b': False, 'c': 1 - 2j, 's': 'a "b" \n'},
    'large number': [2**100, 5e-324],
    'None': {'a': None, 'w': torch.ones(1), 'nest': (None, [])},
    'no leaves': ((), {}, torchopt.base.EmptyState()),
    'only None': [None],
    'named tuples': Pair({'encoder': [torch.ones(2)]}, (torch.zeros(1), None)),
    'ordered': OrderedDict(z=torch.ones(1), a=torch.zeros(1)),
    'slashes': {'a/b': torch.tensor(1.0), 'a': {'b': torch.tensor(2.0)}, 'a%2Fb': torch.tensor(3.0), '': {'': 4}},
    'reserved': {'__metadata__': torch.ones(2)},
    'unusual keys': {'ü.κ 1': torch.ones(1), 'x\ny': torch.zeros(1)},
    'integer keys': {10: torch.ones(1), 9: torch.zeros(1)},
}


@pytest.mark.parametrize('case', TREES)
def test_round_trip(case: str, tmp_path: Path) -> None:
    file = tmp_path / 'tree.safetensors'
    tree.save(file, TREES[case])
    assert_equal(tree.load(file, TREES[case]), TREES[case])
    on_meta = tree.map(lambda x: x.to('meta') if isinstance(x, torch.Tensor) else x, TREES[case])
    assert_equal(tree.load(str(file), on_meta), TREES[case])


def test_names_are_readable(tmp_path: Path) -> None:
    file = tmp_path / 'state'
    params = {'encoder': [{'weight': torch.ones(2, 3), 'bias': None}], 'head/out': torch.ones(1)}
    tree.save(file, torchopt.adam().init(params)[0])
    assert names(file) == {'count', *(f'{m}/{p}' for m in ('mu', 'nu') for p in ('encoder/0/weight', 'head%2Fout'))}
    assert torch.equal(load_file(file)['mu/encoder/0/weight'], torch.zeros(2, 3))
    tree.save(file, {'params': params, 'state': (torch.ones(1), {})})
    assert names(file) == {'params/encoder/0/weight', 'params/head%2Fout', 'state/0'}


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    file = tmp_path / 'tied'
    w, z = torch.nn.Parameter(torch.ones(2)), torch.ones(2, dtype=torch.complex128)
    tied = {'a': w, 'b': w, 'c': w.detach(), 'd': w.detach().clone(), 'e': [z, z], 'f': w.detach()[:1]}
    tree.save(file, tied)
    assert names(file) == {'a', 'd', 'e/0', 'f'}
    new = tree.load(file, tied)
    assert new['a'] is new['b'] is new['c']
    assert new['e'][0] is new['e'][1]
    assert isinstance(new['a'], torch.nn.Parameter)
    assert_equal(new, tied)
    with torch.no_grad():
        new['a'].zero_()
    assert new['d'].all()
    assert new['f'].all()
    assert w.all()


def test_roles_follow_like(tmp_path: Path) -> None:
    """Parameters, and what requires grad, are so in the new tree; the graph is not saved."""
    file = tmp_path / 'roles'
    w = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    like = [w, frozen, w * 2, torch.ones(1)]
    tree.save(file, like)
    new = tree.load(file, like)
    assert [isinstance(x, torch.nn.Parameter) for x in new] == [True, True, False, False]
    assert [x.requires_grad for x in new] == [True, False, True, False]
    assert all(x.is_leaf for x in new)


def test_generators_go_on(tmp_path: Path) -> None:
    file = tmp_path / 'generator'
    generator = torch.Generator().manual_seed(3)
    torch.randn(5, generator=generator)
    tree.save(file, {'key': generator})
    new = tree.load(file, {'key': torch.Generator()})['key']
    assert torch.equal(torch.randn(5, generator=new), torch.randn(5, generator=generator))


def test_keys_of_paths() -> None:
    """Of named tuples, dicts, sequences and classes of one's own, with and without names of their parts."""

    class Box:
        def __init__(self, *parts: Any) -> None:
            self.parts = parts

    class Named(Box):
        pass

    tree.register_node(Box, lambda box: (box.parts, None), lambda static, parts: Box(*parts))
    tree.register_node(
        Named, lambda box: (box.parts, None), lambda static, parts: Named(*parts), names=lambda box: ['left', 'right']
    )
    found = tree.flatten_with_keys((Pair({2: 'a'}, [None]), Box('b'), Named('c', 'd')))
    assert [''.join(map(str, path)) for path, _ in found] == [
        '[0]Pair.mu[2]',
        '[0]Pair.nu[0]',
        '[1][0]',
        "[2]['left']",
        "[2]['right']",
    ]
    assert [x for _, x in found] == ['a', None, 'b', 'c', 'd']
    assert tree.flatten_with_keys((Pair(1, 2),), lambda x: isinstance(x, Pair)) == [((tree.SequenceKey(0),), (1, 2))]


# -- runs go on --------------------------------------------------------------------------------------------------------


class AverageState(NamedTuple):
    count: int
    total: Any


def averaged(every: int, inner: torchopt.base.GradientTransformation) -> torchopt.base.GradientTransformation:
    """A step of another optimizer once in a while, by the mean of the gradients since the last; counts in Python."""

    def init(params: Any) -> Any:
        return AverageState(0, tree.zeros_like(params)), inner.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        (count, total), inner_state = state
        total = tree.add(total, updates)
        if count + 1 < every:
            return tree.zeros_like(updates), (AverageState(count + 1, total), inner_state)
        new, inner_state = inner.update(tree.scale(1 / every, total), inner_state, params)
        return new, (AverageState(0, tree.zeros_like(total)), inner_state)

    return torchopt.base.GradientTransformation(init, update)


RUNS: dict[str, Callable[[], torchopt.base.GradientTransformation]] = {
    'adam on a schedule': lambda: torchopt.adam(polynomial_schedule(0.1, 0.01, 1.0, 5)),
    'clip': lambda: torchopt.chain(torchopt.clip_grad_norm(0.5), torchopt.adamw(0.1, weight_decay=0.1)),
    'partition': lambda: torchopt.transform.partition(
        {'slow': torchopt.sgd(0.01, momentum=0.9), 'fast': torchopt.radam(0.1)}, {'body': 'slow', 'head': 'fast'}
    ),
    'masked': lambda: torchopt.transform.masked(torchopt.rmsprop(0.1, centered=True), {'body': True, 'head': False}),
    'accumulated': lambda: averaged(3, torchopt.adam(0.1)),
}


def gradients(params: Any, step: int) -> Any:
    return tree.map(lambda p: torch.cos(p * (step + 1)), params)


@pytest.mark.parametrize('steps', [0, 1, 4])
@pytest.mark.parametrize('run', RUNS)
def test_resumed_run(run: str, steps: int, tmp_path: Path) -> None:
    def go(params: Any, state: Any, first: int, last: int) -> Any:
        for step in range(first, last):
            updates, state = tx.update(gradients(params, step), state, params)
            params = torchopt.apply_updates(params, updates)
        return params, state

    tx = RUNS[run]()
    start = {'body': [torch.linspace(0, 1, 3, dtype=f64), torch.ones(2, 2)], 'head': torch.tensor(2.0)}
    half = go(start, tx.init(start), 0, steps)
    tree.save(tmp_path / 'run', half)
    whole = go(*half, steps, 7)
    tx = RUNS[run]()
    resumed = go(*tree.load(tmp_path / 'run', (start, tx.init(start))), steps, 7)
    assert_equal(resumed, whole)


# -- what differs ------------------------------------------------------------------------------------------------------

SAVED = Pair({'w': torch.ones(2, 3), 'n': 3, 'none': None}, [torch.ones(1)])
MISFITS: dict[str, tuple[Any, list[str]]] = {
    'missing': (Pair({**SAVED.mu, 'v': torch.ones(4)}, SAVED.nu), ['mu/v: missing', 'float32', '(4,)']),
    'unexpected': (Pair({'n': 3, 'none': None}, SAVED.nu), ['mu/w: unexpected', '(2, 3)']),
    'shape': (Pair({**SAVED.mu, 'w': torch.ones(3, 2)}, SAVED.nu), ['mu/w', 'expected', '(3, 2)', 'has', '(2, 3)']),
    'dtype': (Pair({**SAVED.mu, 'w': torch.ones(2, 3, dtype=f64)}, SAVED.nu), ['mu/w', 'float64', 'float32']),
    'number': (Pair({**SAVED.mu, 'n': 3.0}, SAVED.nu), ['mu/n', 'float', 'int']),
    'tensor for number': (Pair({**SAVED.mu, 'n': torch.tensor(3)}, SAVED.nu), ['mu/n', 'int64', 'int']),
    'None': (Pair({**SAVED.mu, 'none': torch.ones(1)}, SAVED.nu), ['mu/none', 'float32', 'None']),
    'kind': (Other(*SAVED), ['the root', 'Other', 'Pair']),
    'deeper': (Pair(SAVED.mu, [[torch.ones(1)]]), ['nu/0/0: missing', 'nu/0: unexpected']),
    'another optimizer': (torchopt.adam().init(torch.ones(2)), ['0/mu: missing', 'mu/w: unexpected']),
}


@pytest.mark.parametrize('case', MISFITS)
def test_trees_that_differ(case: str, tmp_path: Path) -> None:
    like, words = MISFITS[case]
    tree.save(tmp_path / 'tree', SAVED)
    before = tree.map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, like)
    with pytest.raises(ValueError, match='differs from the expected tree') as caught:
        tree.load(tmp_path / 'tree', like)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert_equal(like, before)


def test_long_lists_of_differences_end(tmp_path: Path) -> None:
    tree.save(tmp_path / 'tree', {})
    with pytest.raises(ValueError, match='and 92 more') as caught:
        tree.load(tmp_path / 'tree', [1.0] * 100)
    assert len(str(caught.value).splitlines()) == 10


REFUSED: dict[str, tuple[Any, type[Exception], list[str]]] = {
    'keys': ({0: 1.0, 'x': {1: 2.0, '1': 3.0}}, ValueError, ["'x/1'", 'Two leaves', 'Rename']),
    'sparse': ({'w': torch.eye(2).to_sparse()}, TypeError, ["'w'", 'sparse']),
    'meta': ({'w': torch.empty(2, device='meta')}, TypeError, ["'w'", 'meta']),
    'subclass': ([torch.nn.UninitializedParameter()], TypeError, ["'0'", 'UninitializedParameter']),
    'module': ({'net': torch.nn.Linear(1, 1)}, TypeError, ["'net'", 'Linear']),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_saved(case: str, tmp_path: Path) -> None:
    bad, error, words = REFUSED[case]
    file = tmp_path / 'tree'
    tree.save(file, {'kept': 1})
    with pytest.raises(error) as caught:
        tree.save(file, bad)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert tree.load(file, {'kept': 0}) == {'kept': 1}
    assert os.listdir(tmp_path) == ['tree']


# -- files -------------------------------------------------------------------------------------------------------------


def write(folder: Path) -> tuple[Path, Any]:
    file, state = folder / 'tree', torchopt.adam().init({'w': torch.linspace(0, 1, 7), 'n': torch.tensor(2.0)})
    tree.save(file, state)
    return file, state


def test_no_damage_passes(tmp_path: Path) -> None:
    """Every cut and every flipped bit is found."""
    file, state = write(tmp_path)
    whole = file.read_bytes()
    dice = random.Random(0)
    damaged = [whole[:n] for n in range(0, len(whole), 13)] + [whole + b'x', b'', b'{}' * 50]
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        damaged.append(bytes(flipped))
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r'damaged|not written by|version|differs from'):
            tree.load(file, state)
    file.write_bytes(whole)
    assert_equal(tree.load(file, state), state)


def with_manifest(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with safe_open(file, 'pt') as opened:
        manifest = json.loads(opened.metadata()['torchopt'])
    manifest = change(manifest) or manifest
    save_file(load_file(file), file, {'torchopt': json.dumps(manifest)})


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    'newer': (
        lambda m: m.update(version=2),
        'has version 2 of the format, but this version of torchopt reads version 1',
    ),
    'no version': (lambda m: m.pop('version') and None, 'damaged'),
    'no checksum': (lambda m: m.pop('checksum') and None, 'damaged'),
    'another number': (lambda m: m['leaves'].update({'0/count': ['int', '5']}), 'damaged: the checksum'),
    'a list': (lambda m: [1, 2], 'damaged'),
}


@pytest.mark.parametrize('case', MANIFESTS)
def test_manifests(case: str, tmp_path: Path) -> None:
    change, message = MANIFESTS[case]
    file, state = write(tmp_path)
    with_manifest(file, change)
    with pytest.raises(ValueError, match=message):
        tree.load(file, state)


def test_files_of_others(tmp_path: Path) -> None:
    file = tmp_path / 'tree'
    save_file({'w': torch.ones(1)}, file)
    with pytest.raises(ValueError, match=r'not written by torchopt.tree.save.*load_file'):
        tree.load(file, {'w': torch.ones(1)})
    torch.save({'w': torch.ones(1)}, file)
    with pytest.raises(ValueError, match='damaged or not a safetensors file'):
        tree.load(file, {'w': torch.ones(1)})
    file.write_bytes(struct.pack('<Q', 2**62) + b'{}')
    with pytest.raises(ValueError, match='damaged'):
        tree.load(file, {})
    with pytest.raises(FileNotFoundError, match='There is no file'):
        tree.load(tmp_path / 'absent', {})
    with pytest.raises(FileNotFoundError, match='There is no folder'):
        tree.save(tmp_path / 'absent' / 'tree', {})
    for swapped in (lambda: tree.save({}, tmp_path / 'tree'), lambda: tree.load({}, tmp_path / 'tree')):
        with pytest.raises(TypeError, match='in this order'):
            swapped()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, state = write(tmp_path)

    def fail(*args: Any) -> None:
        raise OSError('no space left')

    for owner, verb in ((os, 'fsync'), (os, 'replace')):
        with monkeypatch.context() as patch:
            patch.setattr(owner, verb, fail)
            with pytest.raises(OSError, match='no space left'):
                tree.save(file, tree.add(state, state))
        assert os.listdir(tmp_path) == [file.name]
        assert_equal(tree.load(file, state), state)


def test_links_are_followed(tmp_path: Path) -> None:
    file, _ = write(tmp_path)
    link = tmp_path / 'latest'
    link.symlink_to(file)
    tree.save(link, {'x': 1})
    assert link.is_symlink()
    assert tree.load(file, {'x': 0}) == {'x': 1}


def test_permissions_are_those_of_any_file(tmp_path: Path) -> None:
    file, state = write(tmp_path)
    (tmp_path / 'plain').touch()
    assert file.stat().st_mode == (tmp_path / 'plain').stat().st_mode
    file.chmod(0o640)
    tree.save(file, state)
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_loaded_tree_does_not_hang_on_the_file(tmp_path: Path) -> None:
    file, state = write(tmp_path)
    new = tree.load(file, state)
    file.write_bytes(b'')
    assert_equal(new, state)


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    for act in (lambda: tree.save(tmp_path / 'x', {}), lambda: tree.load(tmp_path / 'x', {})):
        with pytest.raises(ImportError, match=r'pip install torchopt\[persistence\]'):
            act()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_devices(tmp_path: Path) -> None:
    file = tmp_path / 'tree'
    there = {'w': torch.ones(2, 3, device='cuda').T, 'count': torch.tensor(3)}
    tree.save(file, there)
    assert_equal(tree.load(file, there), there)
    here = tree.map(lambda x: x.cpu(), there)
    assert_equal(tree.load(file, here), here)
