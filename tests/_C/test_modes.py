# SPDX-License-Identifier: Apache-2.0
"""Modes, tracers, fake and distributed tensors: whoever wants to see every operation of torch, sees them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests._C.alike import MAKERS, assert_alike, each_maker, steps
from tests._C.cases import assert_same, draw, plain_torch
from tests.snapshot import Snapshot
from torchopt import tree

F32 = torch.float32


@each_maker
def test_fake_tensors(make):
    """Made by a mode, within it and after it has been left."""
    with FakeTensorMode() as mode:
        params = [torch.randn(3), torch.randn(())]
        moved, *_ = steps(make, params, params)
        assert all(p.fake_mode is mode for p in moved)
    with mode:
        assert steps(make, params, params, inplace=True)[0][0].shape == (3,)
    if make is not MAKERS['adagrad']:  # whose plain rule makes a tensor, which takes the mode
        assert steps(make, params, params)[0][0].fake_mode is mode


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@each_maker
def test_modes_and_tracers(make):
    params, grads = [draw('~', (3,), 0, F32)], [draw('~', (3,), 1, F32)]
    with Counting() as here:
        found = steps(make, params, grads)
    with Counting() as there, plain_torch():
        wanted = steps(make, params, grads)
    assert here.count == there.count > 0, 'a dispatch mode sees every operation'
    assert_same(tree.leaves(found), tree.leaves(wanted), 0.0)
    with Functions():
        assert_alike(lambda: steps(make, params, grads))

    tx = make()
    state = tx.init(params)  # outside, as the step count is read

    def once(p, g):
        return tx.update([g], state, [p])[0][0]

    graph = make_fx(once)(*params, *grads)
    assert len(graph.graph.nodes) > 5
    other = (draw('~', (3,), 5, F32), draw('~', (3,), 6, F32))
    assert_same([graph(*other)], [once(*other)], 1e-6)


@pytest.mark.filterwarnings('ignore')  # tracing is deprecated, and warns of constants
@each_maker
def test_jit_trace(make):
    def once(p, g):
        return steps(make, [p], [g], count=1)[0][0]

    example = (draw('~', (3,), 0, F32), draw('~', (3,), 1, F32))
    other = (draw('~', (3,), 5, F32), draw('~', (3,), 6, F32))
    assert_same([torch.jit.trace(once, example)(*other)], [once(*other)], 1e-6)


@pytest.mark.parametrize('inplace', [False, True])
def test_inference_tensors(inplace):
    with torch.inference_mode():
        params, grads = [draw('~', (3,), 0, F32)], [draw('~', (3,), 1, F32)]
        assert_alike(lambda: steps(MAKERS['adam'], [p.clone() for p in params], grads, inplace))
        state = MAKERS['adam']().init(params)
    assert_alike(lambda: steps(MAKERS['adam'], params, grads))
    assert_alike(lambda: MAKERS['adam']().update(grads, state, params))
    # torch forbids writing to what was made in inference mode.
    before = Snapshot(state)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r'[Ii]nference'):
            MAKERS['adam']().update(grads, state, params, inplace=True)
    before.check()


def test_a_mode_refuses_what_asks_for_the_engine():
    p = [draw('~', (3,), 0, F32)]
    with Counting(), pytest.raises(RuntimeError, match=r'use_accelerated_op=True.*mode'):
        steps(lambda: MAKERS['adam'](use_accelerated_op=True), p, p)


@pytest.fixture
def mesh(tmp_path):
    """One process is a mesh, too."""
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        yield init_device_mesh('cpu', (1,))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason='this torch has no torch.distributed')
@pytest.mark.filterwarnings('ignore')
@each_maker
def test_distributed_tensors(mesh, make):
    """Sharded and replicated: they stay distributed, and their values are those of their local parts."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    for placement in (Replicate(), Shard(0)):
        local = [draw('~', (4, 2), 0, F32), draw('~', (3,), 1, F32)]
        params = [distribute_tensor(x, mesh, [placement]) for x in local]
        grads = [distribute_tensor(2 * x, mesh, [placement]) for x in local]
        wanted = steps(make, local, [2 * x for x in local])
        for inplace in (False, True):
            moved, updates, state = steps(make, params, grads, inplace)
            tensors = [x for x in tree.leaves((moved, updates, state)) if x.dim()]
            assert all(isinstance(x, DTensor) for x in tensors)
            assert_same([x.full_tensor() for x in moved], wanted[0], 1e-6)
