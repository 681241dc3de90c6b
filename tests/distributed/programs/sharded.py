# SPDX-License-Identifier: Apache-2.0
"""Optimizers on DTensors and on modules under FSDP, and the same training in one process."""

from __future__ import annotations

from typing import Any

import torch
from found import error_of, save
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor, init_device_mesh

import torchopt
import torchopt.distributed as todist

CLASSES = ['SGD', 'Adam', 'AdamW', 'AdaGrad', 'AdaDelta', 'AdaMax', 'RAdam', 'RMSProp']
# Unless eps is large, the first steps of RMSProp depend only on the sign of a gradient that is almost zero.
OPTIONS: dict[str, dict[str, float]] = {'SGD': {'momentum': 0.9}, 'RMSProp': {'eps': 0.1}, 'AdaGrad': {'eps': 1e-2}}
WAYS = ['reverse', 'mixed', 'checkpoint', 'closure']
GENERATOR = torch.Generator().manual_seed(1)
X, Y = torch.randn(8, 5, generator=GENERATOR), torch.randn(8, 3, generator=GENERATOR)


def make_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))  # sizes that two processes cannot halve


def loss_of(net: nn.Module) -> Tensor:
    return (net(X) - Y).square().mean()


def whole(tree: Any) -> Any:
    return torchopt.tree.map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, tree)


def by_class(name: str, mesh: Any) -> tuple[list[Any], bool]:
    """Train a module by a class; return parameters and moments, and whether the moments are sharded."""
    net = make_net() if mesh is None else fully_shard(make_net(), mesh=mesh)
    optimizer = getattr(torchopt, name)(net.parameters(), lr=0.05, **OPTIONS.get(name, {}))
    for _ in range(5):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
    net.zero_grad()
    moments = [x for x in torchopt.tree.leaves(optimizer.state_dict()['state']) if isinstance(x, Tensor) and x.dim()]
    params = [p.detach() for p in net.parameters()]
    return whole([*params, *moments]), all(isinstance(x, DTensor) for x in moments)


def by_function(name: str, mesh: Any) -> tuple[list[Any], bool]:
    """Three differentiable steps with clipping; return parameters, state and meta-gradients."""
    net = make_net()
    params = {k: p.detach() for k, p in net.named_parameters()}
    x, y = X, Y
    if mesh is not None:
        params = {k: distribute_tensor(p, mesh, [Shard(0)]) for k, p in params.items()}
        x, y = (distribute_tensor(t, mesh, [Replicate()]) for t in (X, Y))
    start = params = {k: p.requires_grad_() for k, p in params.items()}
    rate = torch.tensor(0.05, requires_grad=True)
    options = OPTIONS.get(name, {})
    transformation = torchopt.chain(
        torchopt.clip_grad_norm(1.0), getattr(torchopt, name.lower())(rate if name != 'SGD' else 0.05, **options)
    )
    state = transformation.init(params)

    def loss(params: dict[str, Tensor]) -> Tensor:
        return (torch.func.functional_call(net, params, (x,)) - y).square().mean()

    for _ in range(3):
        grads = torch.autograd.grad(loss(params), list(params.values()), create_graph=True)
        updates, state = transformation.update(dict(zip(params, grads)), state, params)
        params = torchopt.apply_updates(params, updates, inplace=False)
    meta = torch.autograd.grad(loss(params), list(start.values()))
    leaves = [p.detach() for p in params.values()]
    moments = [m.detach() for m in torchopt.tree.leaves(state) if isinstance(m, Tensor) and m.dim()]
    return whole([*leaves, *moments, *meta]), all(isinstance(m, DTensor) for m in [*moments, *meta])


def recomputed(way: str, mesh: Any) -> tuple[list[Any], bool]:
    """Meta-gradients through steps whose gradients are recomputed; return them and the parameters."""
    net = make_net()
    x, y = X, Y
    if mesh is not None:
        net = distribute_module(net, mesh, partition_fn=_shard)
        x, y = (distribute_tensor(t, mesh, [Replicate()]) for t in (X, Y))
    start = params = dict(net.named_parameters())

    def loss(params: dict[str, Tensor]) -> Tensor:
        return (torch.func.functional_call(net, params, (x,)) - y).square().mean()

    if way == 'closure':
        optimizer = torchopt.MetaAdam(net, lr=0.05)
        for _ in range(2):
            optimizer.step(lambda: (net(x) - y).square().mean())
        params = dict(net.named_parameters())
    else:
        transformation = torchopt.adam(0.05)
        state = transformation.init(params)
        gradient = torchopt.grad(loss, checkpoint=None if way == 'checkpoint' else way)
        for _ in range(2):
            updates, state = transformation.update(gradient(params), state, params)
            params = torchopt.apply_updates(params, updates, inplace=False)
    last = torchopt.checkpoint(loss) if way == 'checkpoint' else loss
    meta = torch.autograd.grad(last(params), list(start.values()))
    return whole([*(p.detach() for p in params.values()), *meta]), all(isinstance(g, DTensor) for g in meta)


def _gradient(net: nn.Module, checkpoint: str | None) -> Any:
    def loss(params: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, params, (X,)).square().mean()

    return torchopt.grad(loss, checkpoint=checkpoint)(dict(net.named_parameters()))


def _shard(_: str, module: nn.Module, mesh: Any) -> None:
    for name, p in list(module.named_parameters(recurse=False)):
        module.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))


@todist.auto_init_process_group(backend='gloo')
def main() -> None:
    mesh = init_device_mesh('cpu', (todist.get_world_size(),))
    found: dict[str, Any] = {}
    for name in CLASSES:
        for kind, train in (('class', by_class), ('function', by_function)):
            (got, sharded), (expected, _) = train(name, mesh), train(name, None)
            found[f'{name} {kind}'] = (got, expected, sharded)
    for way in WAYS:
        (got, sharded), (expected, _) = recomputed(way, mesh), recomputed(way, None)
        found[f'{way} recomputed'] = (got, expected, sharded)
    net = fully_shard(make_net(), mesh=mesh)
    nested = nn.ModuleDict({'body': fully_shard(make_net(), mesh=mesh)})
    optimizer = torchopt.FuncOptimizer(torchopt.adam(0.1))
    distributed = {k: distribute_tensor(p.detach(), mesh, [Shard(0)]) for k, p in make_net().named_parameters()}
    distributed = {k: p.requires_grad_() for k, p in distributed.items()}
    save(
        {
            'found': found,
            'MetaOptimizer': error_of(lambda: torchopt.MetaAdam(net)),
            'MetaOptimizer of a part': error_of(lambda: torchopt.MetaAdam(nested)),
            'FuncOptimizer': error_of(lambda: optimizer.step(loss_of(net), tuple(net.parameters()))),
            'FuncOptimizer by closure': error_of(lambda: optimizer.step(lambda p: loss_of(net), distributed)),
            'grad': error_of(lambda: _gradient(net, None)),
            'recomputed grad': error_of(lambda: _gradient(net, 'reverse')),
            'checkpoint': error_of(torchopt.checkpoint(lambda: loss_of(net))),
            'map_tasks': error_of(lambda: todist.map_tasks(lambda p, x: p['0.bias'].sum(), [1], distributed)),
        }
    )


if __name__ == '__main__':
    main()
