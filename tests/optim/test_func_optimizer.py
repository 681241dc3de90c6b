# SPDX-License-Identifier: Apache-2.0
"""The functional face that keeps its state: trees of all kinds, in place and out of place, differentiable steps."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import torchopt
from torchopt import tree
from torchopt.base import UninitializedState

f64 = torch.float64
Pair = namedtuple('Pair', ['left', 'right'])


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=f64, requires_grad=True)


TREES: dict[str, Callable[[], Any]] = {
    'tensor': lambda: leaf(1.0, -2.0),
    'tuple': lambda: (leaf(1.0), leaf(2.0, 3.0)),
    'list': lambda: [leaf(1.0), leaf(2.0, 3.0)],
    'dict': lambda: {'w': leaf(1.0), 'b': leaf(2.0)},
    'OrderedDict': lambda: OrderedDict(w=leaf(1.0), b=leaf(2.0)),
    'named tuple': lambda: Pair(leaf(1.0), [leaf(2.0)]),
    'nested': lambda: {'layers': [(leaf(1.0), {'w': leaf(2.0)}), (leaf(3.0), {'w': leaf(-4.0)})], 'b': leaf(5.0)},
    'None leaves': lambda: {'w': leaf(1.0), 'b': None, 'c': [None, leaf(2.0)]},
    'empty nodes': lambda: {'w': leaf(1.0), 'b': (), 'c': {}},
    'no dimensions': lambda: [torch.tensor(2.0, dtype=f64, requires_grad=True)],
    'no elements': lambda: [leaf(1.0), leaf()],
}
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    'sgd': lambda: torchopt.sgd(0.1, momentum=0.9),
    'adam': lambda: torchopt.adam(0.1),
    'adamw': lambda: torchopt.adamw(0.1, weight_decay=0.1),
    'rmsprop': lambda: torchopt.rmsprop(0.1, centered=True),
}


def loss_of(p: Any) -> torch.Tensor:
    return sum(((x - 0.5) ** 2).sum() + torch.sin(x).sum() for x in tree.leaves(p))


def written_out(tx: Any, p: Any, steps: int) -> Any:
    """The same steps by hand."""
    state = tx.init(p)
    for _ in range(steps):
        leaves = tree.leaves(p)
        grads = iter(torch.autograd.grad(loss_of(p), leaves, create_graph=True))
        updates, state = tx.update(tree.map(lambda x, grads=grads: next(grads), p), state, p)
        p = torchopt.apply_updates(p, updates, inplace=False)
    return p


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize('shape', TREES)
def test_trees(shape: str, name: str) -> None:
    start = TREES[shape]()
    values = tree.map(lambda x: x.detach().clone(), start)
    optimizer = torchopt.FuncOptimizer(OPTIMIZERS[name]())
    assert optimizer.optim_state == UninitializedState()
    p = start
    for _ in range(3):
        p = optimizer.step(loss_of(p), p)
    assert type(p) is type(start)
    assert tree.structure(p) == tree.structure(start)
    # Not bit for bit: a step onto the parameters is one kernel, whose additions and multiplications are contracted.
    torch.testing.assert_close(p, written_out(OPTIMIZERS[name](), TREES[shape](), 3), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(tree.map(torch.Tensor.detach, start), values, rtol=0.0, atol=0.0)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_steps_can_be_differentiated_through(name: str) -> None:
    def after_three_steps(w: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        optimizer = torchopt.FuncOptimizer(OPTIMIZERS[name]())
        p = {'w': w}
        for _ in range(3):
            p = optimizer.step(((p['w'] - shift) ** 4).sum(), p)
        return p['w']

    assert torch.autograd.gradcheck(after_three_steps, [leaf(1.0, -2.0), leaf(0.3, 0.7)], eps=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_in_place(name: str) -> None:
    first, second = TREES['nested'](), TREES['nested']()
    optimizer = torchopt.FuncOptimizer(OPTIMIZERS[name](), inplace=True)
    assert optimizer.inplace is True
    p = first
    for _ in range(3):
        p = optimizer.step(loss_of(p), p)
    for now, then in zip(tree.leaves(p), tree.leaves(first), strict=True):
        assert now is then
        assert now.is_leaf
        assert now.requires_grad
        assert now.grad is None
    assert not any(s.requires_grad for s in tree.leaves(optimizer.state_dict()))
    expected = written_out(OPTIMIZERS[name](), second, 3)
    torch.testing.assert_close(
        tree.map(torch.Tensor.detach, p), tree.map(torch.Tensor.detach, expected), rtol=1e-12, atol=1e-15
    )


def test_a_step_may_choose_for_itself() -> None:
    w = leaf(1.0)
    optimizer = torchopt.FuncOptimizer(torchopt.sgd(0.25))
    assert optimizer.inplace is False
    (same,) = optimizer.step((w**2).sum(), (w,), inplace=True)
    assert same is w
    (new,) = torchopt.FuncOptimizer(torchopt.sgd(0.25), inplace=True).step((w**2).sum(), (w,), inplace=False)
    assert new is not w
    assert new.grad_fn is not None
    torch.testing.assert_close((w.detach(), new.detach()), (leaf(0.5).detach(), leaf(0.25).detach()))


def test_parameters_of_a_module() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    x = torch.linspace(-1.0, 2.0, 8, dtype=f64).reshape(4, 2)
    twin = copy.deepcopy(net)
    meta, optimizer = torchopt.MetaAdam(twin, lr=0.1), torchopt.FuncOptimizer(torchopt.adam(0.1))
    params = dict(net.named_parameters())
    for _ in range(3):
        params = optimizer.step(torch.func.functional_call(net, params, (x,)).square().mean(), params)
        meta.step(twin(x).square().mean())
    torch.testing.assert_close(params, dict(twin.named_parameters()), rtol=1e-13, atol=1e-15)


def test_decay_under_a_linear_loss() -> None:
    """The gradient has no graph, yet the step depends on the parameter."""
    for tx, slope in ((torchopt.sgd(0.1, weight_decay=0.5), 0.95), (torchopt.adamw(0.1, weight_decay=0.5), 0.95)):
        w = leaf(1.0, 2.0)
        new = torchopt.FuncOptimizer(tx).step(w.sum(), {'w': w})['w']
        (grad,) = torch.autograd.grad(new.sum(), [w])
        torch.testing.assert_close(grad, torch.full_like(w, slope), rtol=1e-12, atol=0.0)


def test_learned_learning_rate() -> None:
    rate, w = torch.tensor(0.1, dtype=f64, requires_grad=True), leaf(1.0)
    optimizer = torchopt.FuncOptimizer(torchopt.sgd(rate))
    (new,) = optimizer.step((w**2).sum(), (w,))
    (new,) = optimizer.step((new**2).sum(), (new,))
    # new = (1 - 2 rate)^2
    torch.testing.assert_close(torch.autograd.grad(new.sum(), [rate])[0], torch.tensor(-3.2, dtype=f64))


def test_states_continue() -> None:
    optimizer, p = torchopt.FuncOptimizer(torchopt.adam(0.1)), {'w': leaf(1.0, -2.0)}
    p = optimizer.step(loss_of(p), p)
    saved = optimizer.state_dict()
    assert saved is optimizer.optim_state
    other = torchopt.FuncOptimizer(torchopt.adam(0.1))
    other.load_state_dict(saved)
    torch.testing.assert_close(optimizer.step(loss_of(p), p), other.step(loss_of(p), p), rtol=0.0, atol=0.0)
    # The step made a new state; the saved one is as it was.
    assert int(saved[0].count) == 1
    optimizer.load_state_dict(saved)
    assert optimizer.state_dict() is saved


@pytest.mark.parametrize('copier', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_continue(copier: Callable[[Any], Any]) -> None:
    optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1), inplace=True)
    p = {'w': leaf(1.0, -2.0)}
    optimizer.step(loss_of(p), p)
    twin, q = copier((optimizer, p))
    assert twin.inplace is True
    for face, params in ((twin, q), (optimizer, p)):
        face.step(loss_of(params), params)
    torch.testing.assert_close(p, q, rtol=0.0, atol=0.0)
    assert [int(face.state_dict()[0].count) for face in (optimizer, twin)] == [2, 2]


def test_unused_parameters_keep_their_state() -> None:
    optimizer = torchopt.FuncOptimizer(torchopt.adamw(0.1))
    p = {'w': leaf(1.0), 'v': leaf(2.0)}
    p = optimizer.step(loss_of(p), p)
    mu, held = optimizer.state_dict()[0].mu, p['v']
    p = optimizer.step(loss_of({'w': p['w']}), p)
    assert p['v'] is held
    assert optimizer.state_dict()[0].mu['v'] is mu['v']
    assert optimizer.state_dict()[0].mu['w'] is not mu['w']


def nodes_behind(tensors: Any) -> int:
    """The size of the graph that some tensors keep alive."""
    stack, seen = [x.grad_fn for x in tree.leaves(tensors) if isinstance(x, torch.Tensor)], set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(n for n, _ in node.next_functions)
    return len(seen)


def training(optimizer: Any, steps: int, release: Callable[[Any], Any] = lambda p: p) -> tuple[Any, list[int]]:
    p, sizes = TREES['nested'](), []
    for _ in range(steps):
        p = release(optimizer.step(loss_of(p), p))
        sizes.append(nodes_behind([p, optimizer.optim_state]))
    return p, sizes


def as_leaves(p: Any) -> Any:
    return tree.map(lambda x: x.detach().requires_grad_(), p)


PLAIN: dict[str, Callable[[], Any]] = {
    **OPTIMIZERS,
    'a learned rate': lambda: torchopt.adam(torch.tensor(0.1, dtype=f64, requires_grad=True)),
    'decay and clipping': lambda: torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.adamw(0.1, weight_decay=0.1)),
    'a state of parameters': lambda: torchopt.contrib.madgrad(0.05),
}


@pytest.mark.parametrize('name', PLAIN)
def test_plain_training_keeps_no_graph(name: str) -> None:
    optimizer = torchopt.FuncOptimizer(PLAIN[name](), differentiable=False)
    assert optimizer.differentiable is False
    found, sizes = training(optimizer, 4)
    assert sizes == [0] * 4
    assert all(x.is_leaf and x.requires_grad for x in tree.leaves(found))
    assert not any(x.requires_grad for x in tree.leaves(optimizer.optim_state))
    wanted, grown = training(torchopt.FuncOptimizer(PLAIN[name]()), 4)
    assert grown == sorted(set(grown))  # the differentiable loop is as it was
    torch.testing.assert_close(found, as_leaves(wanted), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('name', PLAIN)
@pytest.mark.parametrize('way', ['leaves', 'stop_gradient'])
def test_letting_go_of_the_past(way: str, name: str) -> None:
    """The state goes with the parameters; the values are those of the loop that is not cut."""
    optimizer = torchopt.FuncOptimizer(PLAIN[name]())
    cut = as_leaves if way == 'leaves' else lambda p: torchopt.module_detach_([p, optimizer])[0]
    found, sizes = training(optimizer, 4, cut)
    assert len(set(sizes[1:])) == 1
    if way == 'stop_gradient':
        assert sizes == [0] * 4
    wanted, _ = training(torchopt.FuncOptimizer(PLAIN[name]()), 4)
    torch.testing.assert_close(as_leaves(found), as_leaves(wanted), rtol=1e-12, atol=1e-15)


def test_plain_training_leaves_frozen_parameters_alone() -> None:
    optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1), differentiable=False)
    p = {
        'w': leaf(1.0),
        'frozen': torch.ones(1, dtype=f64),
        'count': torch.tensor(3),
        'unused': leaf(2.0),
        'none': None,
    }
    new = optimizer.step((p['w'] * p['frozen']).sum(), p)
    assert all(new[name] is p[name] for name in ('frozen', 'count', 'unused', 'none'))
    assert new['w'] is not p['w']
    assert p['w'] == 1.0
    assert not new['frozen'].requires_grad
    (same,) = torchopt.FuncOptimizer(torchopt.sgd(0.1), differentiable=False).step(
        p['w'].sum(), (p['w'],), inplace=True
    )
    assert same is p['w']


def test_stop_gradient_of_a_functional_optimizer() -> None:
    optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1))
    torchopt.stop_gradient(optimizer)  # there is no state yet
    start = {'w': leaf(1.0)}
    p = optimizer.step(loss_of(start), start)
    assert nodes_behind(optimizer.optim_state)
    moment = optimizer.optim_state[0].mu['w']
    torchopt.stop_gradient({'nested': [optimizer]})
    assert nodes_behind(optimizer.optim_state) == 0
    assert optimizer.optim_state[0].mu['w'] is moment  # in place, as for others
    assert nodes_behind(p)
    twin = torchopt.module_clone(optimizer, by='copy')
    assert twin.optim_state[0].mu['w'] is not moment
    torch.testing.assert_close(twin.optim_state[0].mu['w'], moment)


def product(p: Any) -> torch.Tensor:
    return (p['a'] * p['b'][0] ** 2).sum()


@pytest.mark.parametrize('loss', ['tensor', None, 'reverse', 'mixed'])
@pytest.mark.parametrize('alone', [False, True])
def test_a_tensor_that_occurs_twice_has_its_whole_gradient_at_each_place(loss: str | None, alone: bool) -> None:
    """With a function, each place had the gradient of its own occurrence."""
    start = torch.tensor([1.0, 2.0], dtype=f64, requires_grad=True)
    other = torch.tensor([3.0, 5.0], dtype=f64, requires_grad=True)
    params = {'a': start, 'b': [start, other], 'c': torch.tensor(1)}
    fun = product if alone else lambda p: product(p) + (p['b'][1] * p['a']).sum()
    optimizer = torchopt.FuncOptimizer(torchopt.sgd(0.1))
    options = {} if loss == 'tensor' else {'checkpoint': loss}
    new = optimizer.step(fun(params) if loss == 'tensor' else fun, params, **options)
    expected = start - 0.1 * (3.0 * start**2 + (0.0 if alone else other))
    for x in (new['a'], new['b'][0]):
        torch.testing.assert_close(x, expected)
    torch.testing.assert_close(new['b'][1], other if alone else other - 0.1 * start)
    found = torch.autograd.grad(new['a'].sum() + 2.0 * new['b'][0].sum(), start)[0]
    torch.testing.assert_close(found, 3.0 * (1.0 - 0.6 * start.detach()))
    copies = {'a': start.detach().clone().requires_grad_(), 'b': [None, other]}
    copies['b'][0] = copies['a']
    with pytest.warns(UserWarning, match=r'occurs more than once in params.* moves it once for each'):
        optimizer.step(fun(copies) if loss == 'tensor' else fun, copies, inplace=True, **options)
    torch.testing.assert_close(copies['a'].detach(), (2.0 * expected - start).detach())
