# SPDX-License-Identifier: Apache-2.0
"""How arguments are divided and results put together, without any other process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import torchopt.distributed as todist

Partitioner = todist.TensorDimensionPartitioner


@pytest.mark.parametrize(
    ('items', 'workers', 'sizes'),
    [
        (8, 3, [3, 3, 2]),
        (7, 3, [3, 2, 2]),
        (9, 3, [3, 3, 3]),
        (2, 3, [1, 1]),
        (1, 3, [1]),
        (5, 1, [5]),
        (100, 7, [15, 15, 14, 14, 14, 14, 14]),
    ],
)
def test_parts_are_balanced(items: int, workers: int, sizes: list[int]) -> None:
    x = torch.arange(items)
    parts = Partitioner(0, keepdim=True, workers=list(range(workers)))(x, scale=2)
    assert [len(args[0]) for _, args, _ in parts] == sizes
    assert [part.weight for part in parts] == sizes
    assert [worker for worker, _, _ in parts] == list(range(len(sizes)))
    assert all(kwargs == {'scale': 2} for _, _, kwargs in parts)
    torch.testing.assert_close(torch.cat([args[0] for _, args, _ in parts]), x)


@pytest.mark.parametrize(
    ('dim', 'keepdim', 'shape'), [(0, True, (1, 5)), (0, False, (5,)), (-1, False, (4,)), (1, True, (4, 1))]
)
def test_exclusive_parts(dim: int, keepdim: bool, shape: tuple[int, ...]) -> None:
    """Every item is a part; the workers take turns."""
    x = torch.arange(20).reshape(4, 5)
    parts = Partitioner(dim, exclusive=True, keepdim=keepdim, workers=[2, 0])({'x': x}, torch.tensor(7))
    assert len(parts) == x.shape[dim]
    assert [worker for worker, _, _ in parts] == [(2, 0)[i % 2] for i in range(len(parts))]
    for i, (_, (tree, number), _) in enumerate(parts):
        expected = x.narrow(dim, i, 1) if keepdim else x.select(dim, i)
        assert tree['x'].shape == shape
        torch.testing.assert_close(tree['x'], expected)
        assert number.item() == 7  # has no dimension to divide


def test_without_tensors_this_process_gets_all() -> None:
    net = torch.nn.Linear(2, 2)
    assert todist.batch_partitioner(net, 3, key=None) == [(0, (net, 3), {'key': None})]


def test_gradients_reach_what_was_divided() -> None:
    x = torch.arange(6.0, requires_grad=True)
    parts = Partitioner(0, keepdim=True, workers=[0, 1])(x)
    sum(args[0].square().sum() for _, args, _ in parts).backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


@pytest.mark.parametrize(
    ('make', 'error', 'text'),
    [
        (lambda: Partitioner(0), ValueError, 'keepdim=False should be used with exclusive=True'),
        (lambda: Partitioner(0, keepdim=True, workers=[]), ValueError, 'workers is empty'),
        (lambda: todist.batch_partitioner(torch.ones(2), [torch.ones(3)]), ValueError, r'args\[1\]\[0\] has size 3'),
        (lambda: todist.batch_partitioner(x=torch.ones(0)), ValueError, r"kwargs\['x'\] has size 0"),
        (
            lambda: todist.dim_partitioner(1)(torch.ones(2)),
            ValueError,
            r'args\[0\] has shape \(2,\), which has no dim=1',
        ),
        (lambda: todist.mean_reducer([]), ValueError, 'no results'),
        (lambda: todist.sum_reducer(iter(())), ValueError, 'no results'),
    ],
)
def test_errors(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    'partitioner',
    [
        Partitioner(1, exclusive=True, keepdim=False, workers=[0, 'worker1']),
        Partitioner(0, keepdim=True),
        todist.dim_partitioner(-1),
    ],
)
@pytest.mark.parametrize('copied', [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_partitioners_can_be_copied(partitioner: Any, copied: Callable[[Any], Any]) -> None:
    again = copied(partitioner)
    assert (again.dim, again.exclusive, again.keepdim, again.workers) == (
        partitioner.dim,
        partitioner.exclusive,
        partitioner.keepdim,
        partitioner.workers,
    )
    assert repr(again) == repr(partitioner)


@pytest.mark.parametrize('partitioner', [todist.batch_partitioner, todist.mean_reducer, todist.on_rank])
def test_functions_pickle_by_name(partitioner: Any) -> None:
    assert pickle.loads(pickle.dumps(partitioner)) is partitioner


def test_reducers() -> None:
    x = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    torch.testing.assert_close(todist.sum_reducer(x), torch.tensor([4.0, 8.0]))
    torch.testing.assert_close(todist.mean_reducer(x), torch.tensor([2.0, 4.0]))
    torch.testing.assert_close(todist.mean_reducer(todist.Results(x, [3, 1])), torch.tensor([1.5, 3.0]))
    trees = [{'a': torch.tensor(1), 'b': None}, {'a': torch.tensor(2), 'b': None}]
    assert todist.mean_reducer(trees) == {'a': torch.tensor(1.5), 'b': None}
    assert todist.sum_reducer(trees)['a'].dtype == torch.int64


def test_a_reduced_mean_is_that_of_all_items() -> None:
    """The default of 0.7.3: means of parts of different sizes, averaged as if these were equal."""
    x = torch.randn(8, dtype=torch.float64, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return x.exp().mean()

    parts = Partitioner(0, keepdim=True, workers=[0, 1, 2])(x)
    results = todist.Results([loss(*args) for _, args, _ in parts], [part.weight for part in parts])
    (grad,) = torch.autograd.grad(todist.mean_reducer(results), x)
    torch.testing.assert_close(grad, torch.autograd.grad(loss(x), x)[0], rtol=1e-14, atol=0)


def test_a_process_that_nobody_launched_is_alone() -> None:
    assert todist.get_world_info() == (0, 1, 0, 1)
    w = torch.ones(2, requires_grad=True)
    assert todist.all_reduce({'w': w})['w'] is w
    assert todist.replicate(w) is w
    todist.map_tasks(lambda w, x: (w * x).sum(), [1.0, 3.0], w).backward()
    torch.testing.assert_close(w.grad, torch.full((2,), 2.0))
    for call in (todist.barrier, todist.get_worker_id, lambda: todist.remote_sync_call(max, args=(1, 2))):
        with pytest.raises(RuntimeError, match='auto_init_rpc'):
            call()


@pytest.mark.parametrize('decorator', [todist.auto_init_rpc, todist.auto_init_process_group])
def test_decorators_have_to_be_called(decorator: Any) -> None:
    with pytest.raises(TypeError):
        decorator()(None)
    with pytest.raises((TypeError, ValueError)):
        decorator(3)


def test_errors_of_workers_pickle() -> None:
    for kind in (todist.WorkerError, todist.WorkerDiedError, todist.WorkerTimeoutError):
        again = pickle.loads(pickle.dumps(kind('text', 3)))
        assert (type(again), str(again), again.worker) == (kind, 'text', 3)
