# SPDX-License-Identifier: Apache-2.0
"""The memory of results: leaves are cut from blocks, copied and saved one by one, and keep what they hold."""

from __future__ import annotations

import copy
import gc
import io
import pickle

import pytest
import torch

import torchopt
from tests._C.cases import assert_same, draw, plain_torch
from torchopt import tree

F32 = torch.float32


def stepped(leaves=200, size=3):
    """A state whose leaves were cut from one block each column, if they are small."""
    params = [draw('~', (size + i % 5,), i, F32) for i in range(leaves)]
    tx = torchopt.adam(0.1)
    updates, state = tx.update(params, tx.init(params), params)
    return tx, params, updates, state


def test_states_are_copied_and_saved():
    tx, params, _, state = stepped()
    wanted = tree.leaves(tx.update(params, state, params))
    for again in (pickle.loads(pickle.dumps(state)), copy.deepcopy(state), copy.copy(state)):
        assert tree.structure(again) == tree.structure(state)
        assert all(map(torch.equal, tree.leaves(tx.update(params, again, params)), wanted))
    buffer = io.BytesIO()
    torch.save(tree.leaves(state)[5], buffer)
    assert buffer.tell() < 4096, 'one leaf is saved without its neighbours'
    copied = copy.deepcopy(tree.leaves(state)[5])
    assert copied.untyped_storage().nbytes() == copied.numel() * 4
    assert pickle.loads(pickle.dumps(copied)).equal(copied)


def test_leaves_of_a_state_share_memory_with_other_processes():
    _, _, _, state = stepped(4)
    leaf = tree.leaves(state)[2]
    value = leaf.clone()
    leaf.share_memory_()
    assert leaf.is_shared()
    assert torch.equal(leaf, value)


def test_leaves_cut_from_a_block_do_not_touch():
    """Writing to one changes no other; and each outlives the others."""
    _, _, updates, state = stepped()
    leaves = [x for x in (*updates, *tree.leaves(state)) if x.dim()]
    values = [x.clone() for x in leaves]
    for x in leaves[::2]:
        x.fill_(7.0)
    assert all(map(torch.equal, leaves[1::2], values[1::2]))
    last, value = leaves[-1], values[-1]
    del leaves, updates, state, _
    gc.collect()
    trash = [torch.full((100,), 3.0) for _ in range(100)]
    assert torch.equal(last, value)
    assert len(trash) == 100


def test_results_are_ordinary_tensors():
    _, _, updates, _ = stepped()
    u = updates[4]
    u.set_(torch.ones(2))
    assert u.tolist() == [1.0, 1.0]
    assert updates[5].data_ptr() % 4 == 0
    assert updates[6].numpy().shape == updates[6].shape
    assert updates[7].is_contiguous() and updates[7].is_leaf and not updates[7].requires_grad


# What outlives the step that made it, as a view of one leaf.
HOLDERS = {
    'a leaf': lambda x: x,
    'a slice': lambda x: x[1:],
    'a detached view': lambda x: x.detach(),
    'an array': lambda x: torch.from_numpy(x.numpy()),
    'another library': torch.from_dlpack,
    'a storage': lambda x: torch.empty(0).set_(x.untyped_storage(), x.storage_offset(), x.shape),
}


@pytest.mark.parametrize('size', [3, 2500, 70_000])
@pytest.mark.parametrize('hold', HOLDERS.values(), ids=HOLDERS)
def test_memory_is_not_used_again_while_something_looks_at_it(hold, size):
    tx, params, updates, state = stepped(20, size)
    held = [hold(x) for x in (updates[3], tree.leaves(state)[7], tree.leaves(state)[-2])]
    assert all(x.dim() for x in held)
    values = [x.clone() for x in held]
    del updates
    for _ in range(20):
        updates, state = tx.update([p + 1.0 for p in params], state, params)
        del updates
    gc.collect()
    assert all(map(torch.equal, held, values))


@pytest.mark.parametrize('size', [4, 2500])
def test_memory_is_not_used_again_while_backward_needs_it(size):
    """Only the graph holds the moments of the steps between."""
    tx, shape = torchopt.adam(0.1), (size,)

    def run():
        start = [draw('~', shape, i).requires_grad_() for i in range(8)]
        p, state = start, tx.init(start)
        for _ in range(6):
            updates, state = tx.update([torch.sin(3 * x) for x in p], state, p)
            p = torchopt.apply_updates(p, updates)
            del updates
        del state
        other = [draw('~', shape, i) for i in range(8)]
        for _ in range(20):
            tx.update(other, tx.init(other), other)
        return torch.autograd.grad(sum((x**3).sum() for x in p), start)

    found = run()
    with plain_torch():
        assert_same(found, run(), 1e-11)


def test_memory_does_not_grow():
    """Steps that nobody looks back at live in the memory of those before."""
    tx, params, _, state = stepped(50)
    alive = []
    for k in range(60):
        _, state = tx.update(params, state, params)
        if k in (9, 59):
            gc.collect()
            alive.append(len([x for x in gc.get_objects() if type(x) is torch.Tensor]))
    assert alive[0] == alive[1]


@pytest.mark.parametrize('dtypes', [(torch.float32, torch.float64), (torch.float64, torch.bfloat16)], ids=str)
def test_empty_tensors_have_an_address_of_their_own(dtypes):
    """`torch.save` refuses two tensors of different dtypes at one address."""
    params = [torch.zeros(0, dtype=dtypes[0]), torch.ones(3, dtype=dtypes[1]), torch.zeros(0, 2, dtype=dtypes[1])]
    optimizer = torchopt.adam(0.1)
    _, state = optimizer.update(params, optimizer.init(params), params)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert all(map(torch.equal, torchopt.tree.leaves(again), torchopt.tree.leaves(state)))
    addresses = [x.untyped_storage().data_ptr() for x in torchopt.tree.leaves((state[0].mu, state[0].nu))]
    assert len(set(addresses)) == len(addresses)
