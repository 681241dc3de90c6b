# SPDX-License-Identifier: Apache-2.0
"""Collectives and shared tasks, and the same computations in this process: pairs of result and expected result."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from found import error_of, save
from torch import Tensor, nn

import torchopt
import torchopt.distributed as todist

Double = torch.float64


def make_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    net[0].bias.requires_grad_(False)
    net.unused = nn.Parameter(torch.zeros(2))
    return net


def adapted(net: nn.Module, task: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """The loss of a task after two inner steps."""
    x, y = task
    start = torchopt.extract_state_dict(net, by='reference')
    inner = torchopt.MetaAdam(net, lr=0.1, eps_root=1e-8)
    for _ in range(2):
        inner.step(F.mse_loss(net(x), y))
    loss = F.mse_loss(net(x), y)
    torchopt.recover_state_dict(net, start)
    return loss, {'loss': loss, 'first': float(x[0, 0])}


def loss_only(net: nn.Module, task: tuple[Tensor, Tensor]) -> Tensor:
    return adapted(net, task)[0]


def wave(params: dict[str, Tensor], x: float) -> Tensor:
    return (torch.sin(params['w'] * x) * params['v']).sum()


def in_one_process(tasks: list[Any], net: nn.Module) -> list[Any]:
    net = copy.deepcopy(net)
    loss = sum(loss_only(net, task) for task in tasks) / len(tasks)
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters())]


def on_all(tasks: list[Any], net: nn.Module, **options: Any) -> list[Any]:
    net = copy.deepcopy(net)
    loss = todist.map_tasks(loss_only, tasks, net, **options)
    loss.backward()
    return [loss.detach(), *(p.grad for p in net.parameters())]


def derivatives(loss: Callable[[], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """First, second and third derivatives of a function."""
    found = []
    value = loss()
    for _ in range(3):
        grads = torch.autograd.grad(value, inputs, create_graph=True)
        found += [g.detach() for g in grads]
        value = sum((g * g * (i + 1)).sum() for i, g in enumerate(grads))
    return found


def training(steps: int, shared: bool) -> list[Tensor]:
    """Train by MAML; return the weights."""
    torch.manual_seed(1)
    net = make_net()
    outer = torchopt.Adam(net.parameters(), lr=0.05)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        tasks = [
            (torch.randn(4, 3, generator=generator).double(), torch.randn(4, 2, generator=generator).double())
            for _ in range(5)
        ]
        outer.zero_grad()
        if shared:
            loss = todist.map_tasks(loss_only, tasks, net)
        else:
            loss = sum(loss_only(net, task) for task in tasks) / len(tasks)
        loss.backward()
        outer.step()
    return [p.detach().clone() for p in net.parameters()]


def pairs() -> dict[str, tuple[Any, Any]]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    net = make_net()
    tasks = [(torch.randn(5, 3).double(), torch.randn(5, 2).double()) for _ in range(7)]
    found: dict[str, tuple[Any, Any]] = {
        'tasks': (on_all(tasks, net), in_one_process(tasks, net)),
        'fewer tasks than ranks': (on_all(tasks[:1], net), in_one_process(tasks[:1], net)),
        'own tasks, unevenly': (
            on_all(tasks[:5] if rank == 0 else tasks[5:] if rank == 1 else [], net, split=False),
            in_one_process(tasks, net),
        ),
        'with graphs': (
            [x for i, x in enumerate(on_all(tasks, net, create_graph=True)) if i != 1],
            [x for i, x in enumerate(in_one_process(tasks, net)) if i != 1],
        ),
        'training': (training(4, shared=True), training(4, shared=False)),
    }
    loss, aux = todist.map_tasks(adapted, tasks, net, has_aux=True)
    own = [adapted(net, task) for task in tasks]
    found['what tasks return beside the loss'] = (
        [loss.detach(), *(a['loss'] for a in aux), *(a['first'] for a in aux), aux[0]['loss'].requires_grad],
        [
            sum(value for value, _ in own).detach() / 7,
            *(value.detach() for value, _ in own),
            *(float(x[0, 0]) for x, _ in tasks),
            False,
        ],
    )

    params = {'w': torch.tensor([1.0, 2.0], dtype=Double), 'v': torch.tensor(0.5, dtype=Double)}
    params = {name: p.requires_grad_() for name, p in params.items()}
    leaves = list(params.values())
    xs = [0.3, 0.5, 0.7, 0.9]

    def whole() -> Tensor:
        return sum(wave(params, x) for x in xs) / len(xs)

    def by_tasks() -> Tensor:
        return todist.map_tasks(wave, xs, params, create_graph=True)

    def by_pieces() -> Tensor:
        own = todist.replicate(params)
        zero = own['w'].sum() * 0
        return todist.all_reduce(sum((wave(own, x) for x in xs[rank::ranks]), start=zero)) / len(xs)

    found['every derivative of tasks'] = (derivatives(by_tasks, leaves), derivatives(whole, leaves))
    found['every derivative of all_reduce'] = (derivatives(by_pieces, leaves), derivatives(whole, leaves))

    # One parameter depends on another, so a wrong derivative may count a path twice.
    def dependent(mapped: bool) -> Tensor:
        a = params['w']
        tree = {'w': a, 'v': a.square().sum()}
        return todist.map_tasks(wave, xs, tree, create_graph=True) if mapped else sum(wave(tree, x) for x in xs) / 4

    found['parameters that depend on each other'] = (
        derivatives(lambda: dependent(True), [params['w']]),
        derivatives(lambda: dependent(False), [params['w']]),
    )
    first_only = [
        torch.autograd.grad(todist.map_tasks(wave, xs, {'w': w, 'v': w.square().sum()}), w)[0] for w in [params['w']]
    ]
    found['parameters that depend on each other, first order'] = (
        first_only,
        list(torch.autograd.grad(dependent(False), params['w'])),
    )

    # A tensor that occurs twice gets its gradient once.
    def tied(mapped: bool) -> Tensor:
        tree = {'w': params['w'], 'v': params['w']}
        return todist.map_tasks(wave, xs, tree, create_graph=True) if mapped else sum(wave(tree, x) for x in xs) / 4

    found['a tensor that occurs twice'] = (
        derivatives(lambda: tied(True), [params['w']]),
        derivatives(lambda: tied(False), [params['w']]),
    )

    # The parameters of the module are results of an inner step.
    def after_a_step(mapped: bool, **options: Any) -> list[Tensor]:
        trained = copy.deepcopy(net)
        start = [p for p in trained.parameters() if p.requires_grad]
        torchopt.MetaSGD(trained, lr=0.1).step(F.mse_loss(trained(tasks[0][0]), tasks[0][1]))
        stepped = list(trained.parameters())
        loss = (
            todist.map_tasks(loss_only, tasks, trained, **options)
            if mapped
            else sum(loss_only(trained, task) for task in tasks) / len(tasks)
        )
        assert all(p is q for p, q in zip(trained.parameters(), stepped, strict=True))
        return list(torch.autograd.grad(loss, start, allow_unused=True, materialize_grads=True))

    expected = after_a_step(False)
    found['parameters after an inner step'] = (after_a_step(True), expected)
    found['parameters after an inner step, with graphs'] = (after_a_step(True, create_graph=True), expected)

    def functional(w: Tensor) -> Tensor:
        w = todist.replicate(w)
        return todist.all_reduce(torch.sin(w * xs[rank]).sum(), 'mean')

    def plain(w: Tensor) -> Tensor:
        return sum(torch.sin(w * x).sum() for x in xs[:ranks]) / ranks

    w, batch = params['w'].detach(), torch.arange(6.0, dtype=Double).reshape(3, 2)
    for name, transform, at in (
        ('torch.func.grad', torch.func.grad, w),
        ('torch.func.hessian', torch.func.hessian, w),
        ('torch.func.jacfwd', torch.func.jacfwd, w),
        ('torch.func.vmap of grad', lambda f: torch.func.vmap(torch.func.grad(f)), batch),
    ):
        found[name] = (transform(functional)(at), transform(plain)(at))

    tree = {
        'half': torch.full((2,), rank + 1.0, dtype=torch.bfloat16),
        'count': torch.tensor(rank),
        'complex': torch.tensor([1j * rank]),
        'strided': (torch.arange(6.0).reshape(2, 3) * (rank + 1)).t(),
        'empty': torch.zeros(0, 3),
        'none': None,
    }
    total, ones = sum(range(ranks)), sum(range(1, ranks + 1))
    found['a tree of all kinds'] = (
        todist.all_reduce(tree),
        {
            'half': torch.full((2,), float(ones), dtype=torch.bfloat16),
            'count': torch.tensor(total),
            'complex': torch.tensor([1j * total]),
            'strided': (torch.arange(6.0).reshape(2, 3) * ones).t(),
            'empty': torch.zeros(0, 3),
            'none': None,
        },
    )
    kinds = ((3, torch.bfloat16), (2, torch.float64), (2, torch.complex64))  # complex after an odd number of elements
    mixed = [torch.ones(size, dtype=dtype).requires_grad_() for size, dtype in kinds]
    todist.map_tasks(
        lambda p, x: sum((q * x).abs().pow(2).sum().double() for q in p), [1.0, 2.0, 3.0], mixed
    ).backward()
    found['gradients of mixed dtypes'] = ([p.grad for p in mixed], [p.detach() * 2 * 14 / 3 for p in mixed])
    group = dist.new_group([0, 1])
    if rank < 2:
        found['a group'] = (todist.all_reduce(torch.tensor(rank + 1.0), group=group), torch.tensor(3.0))
    else:
        found['a group'] = (None, None)
    with torch.no_grad():
        loss = todist.map_tasks(wave, xs, params)
        found['without a graph'] = ([loss, loss.requires_grad], [whole(), False])
    return found


def errors() -> dict[str, dict[str, Any]]:
    w = torch.ones(2, requires_grad=True)
    meta = torch.tensor(2.0, requires_grad=True)

    def fail_on_3(w: Tensor, x: int) -> Tensor:
        if x == 3:
            raise KeyError(f'task {x}')
        return (w * x).sum()

    def linear(w: Tensor, x: float) -> Tensor:
        return (w * x).sum()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        todist.map_tasks(lambda w, x: (w * x * meta).sum(), [1, 2, 3, 4], w)
        todist.map_tasks(lambda w, x: (w * x * torch.ones((), requires_grad=True)).sum(), [1, 2, 3, 4], w)
    rank = dist.get_rank()
    return {
        'warnings': {'texts': [str(c.message) for c in caught]},
        'a task that fails': error_of(lambda: todist.map_tasks(fail_on_3, [0, 1, 2, 3], w)),
        'a task that cannot be had': error_of(lambda: todist.map_tasks(linear, Broken(), w)),
        'a loss that is none': error_of(lambda: todist.map_tasks(lambda w, x: w * x, [1, 2, 3], w)),
        'no tasks': error_of(lambda: todist.map_tasks(linear, [], w)),
        'other tasks': error_of(lambda: todist.map_tasks(linear, [1.0] * (3 + rank), w)),
        'nothing to train': error_of(lambda: todist.map_tasks(linear, [1.0], w.detach())),
        'second order': error_of(lambda: torch.autograd.grad(todist.map_tasks(linear, [1.0], w), w, create_graph=True)),
        'torch.func': error_of(lambda: torch.func.grad(lambda w: todist.map_tasks(linear, [1.0], w))(w)),
        'reduction': error_of(lambda: todist.map_tasks(linear, [1.0], w, reduction='max')),
        'op': error_of(lambda: todist.all_reduce(w, 'max')),
        'mean of integers': error_of(lambda: todist.all_reduce(torch.tensor(1), 'mean')),
        'no tensor': error_of(lambda: todist.all_reduce({'a': 1.0})),
    }


class Broken:
    """A sequence of tasks; reading one of them raises."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> float:
        if i == 3:
            raise OSError('no such task')
        return float(i)


@todist.auto_init_process_group(backend='gloo', timeout=timedelta(seconds=60))
def main() -> None:
    save({'pairs': pairs(), 'errors': errors()})


if __name__ == '__main__':
    main()
