# SPDX-License-Identifier: Apache-2.0
"""Remote calls with an ``RRef`` or a scripted module as argument, and the same computations in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed.rpc as rpc
import torch.nn.functional as F
from found import error_of, save
from torch import Tensor, nn

import torchopt
import torchopt.distributed as todist


class Holder:
    """An object that is not a tree, so its value is not sent."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net(x), y)


@todist.parallelize()
def by_to_here(reference: Any, x: Tensor, y: Tensor) -> Tensor:
    return loss_of(reference.to_here(), x, y)


@todist.parallelize()
def by_tree(reference: Any, x: Tensor, y: Tensor) -> Tensor:
    return loss_of(reference.to_here()['nets'][0], x, y)


@todist.parallelize()
def by_itself(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return loss_of(net, x, y)


def forwarded(reference: Any, x: Tensor, y: Tensor) -> Tensor:
    """Our own call of another worker."""
    return by_to_here(reference, x, y)


def scaled(reference: Any, x: Tensor) -> Tensor:
    return (reference.to_here() * x).pow(2).sum()


def held(reference: Any, x: Tensor) -> Tensor:
    return (reference.to_here().x * x).pow(2).sum()


def described(reference: Any) -> dict[str, Any]:
    return {
        'owner': reference.owner().id,
        'is owner': reference.is_owner(),
        'on its owner': reference.rpc_sync().__len__(),
        'in a call of torch': rpc.rpc_sync(reference.owner(), length, args=(reference,)),
    }


def length(reference: Any) -> int:
    return len(reference.local_value())


OWN = nn.Parameter(torch.tensor([1.0, 2.0]))


def own_parameter() -> nn.Parameter:
    return OWN


def own_holder() -> Holder:
    return Holder(OWN)


def own_gradient() -> Tensor | None:
    return OWN.grad


def through_torch(x: Tensor) -> Tensor:
    """A call by torch, which its distributed autograd records in a context."""
    return rpc.rpc_sync('worker0', torch.mul, args=(x, 2.0)).sum()


def grads(net: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in net.parameters()]


def by_backward(loss: Callable[[], Tensor], net: nn.Module) -> list[Any]:
    value = loss()
    value.backward()
    return [value.detach(), *grads(net)]


def by_context(loss: Callable[[], Tensor], net: nn.Module) -> list[Any]:
    with todist.autograd.context() as context:
        value = loss()
        todist.autograd.backward(context, value)
    return [value.detach(), *grads(net)]


def by_context_grad(loss: Callable[[], Tensor], net: nn.Module) -> list[Any]:
    with todist.autograd.context() as context:
        value = loss()
        found = todist.autograd.grad(context, value, list(net.parameters()))
    return [value.detach(), *found]


def by_grad(loss: Callable[[], Tensor], net: nn.Module) -> list[Any]:
    value = loss()
    return [value.detach(), *torch.autograd.grad(value, list(net.parameters()))]


def by_second_order(loss: Callable[[], Tensor], net: nn.Module) -> list[Any]:
    """The value, and a function of the gradients, differentiated."""
    params = list(net.parameters())
    value = loss()
    first = torch.autograd.grad(value, params, create_graph=True)
    return [value.detach(), *torch.autograd.grad(sum(g.square().sum() for g in first), params)]


WAYS = {
    'backward': by_backward,
    'backward in a context': by_context,
    'grad in a context': by_context_grad,
    'grad': by_grad,
    'second order': by_second_order,
}
FORMS: dict[str, tuple[Callable[[nn.Module], Any], Callable[..., Tensor]]] = {
    'a module': (rpc.RRef, by_to_here),
    'a clone with the graph': (lambda net: rpc.RRef(torchopt.module_clone(net, by='copy')), by_to_here),
    'a tree': (lambda net: rpc.RRef({'nets': [net], 'name': 'a tree'}), by_tree),
    'a scripted module, itself': (torch.jit.script, by_itself),
}


def pairs() -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    torch.manual_seed(0)
    template = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(7, 3), torch.randn(7, 1)

    def both(form: str, way: str) -> tuple[Any, Any]:
        reference, call = FORMS[form]
        net, local = copy.deepcopy(template), copy.deepcopy(template)
        remote = WAYS[way](lambda: call(reference(net), x, y), net)
        return remote, WAYS['second order' if way == 'second order' else 'grad'](lambda: loss_of(local, x, y), local)

    for form in FORMS:
        for way in WAYS:
            found[f'{form}: {way}'] = both(form, way)

    net, local = copy.deepcopy(template), copy.deepcopy(template)
    remote = todist.remote_sync_call(forwarded, args=(rpc.RRef(net), x, y), partitioner=1)[0]
    remote.backward()
    found['forwarded'] = (grads(net), by_grad(lambda: loss_of(local, x, y), local)[1:])

    w, v = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, 4.0])
    (todist.remote_sync_call(scaled, args=(rpc.RRef(w), v), partitioner=1)[0] + (w**2).sum()).backward()
    found['a tensor'] = (w.grad, 2 * w.detach() * (v**2 + 1))
    w.grad = None
    with torch.no_grad():
        value = todist.remote_sync_call(held, args=(rpc.RRef(Holder(w)), v), partitioner=1)[0]
    found['an object without a graph'] = ([value, value.requires_grad], [(w * v).pow(2).sum().detach(), False])
    value = todist.remote_sync_call(held, args=(rpc.RRef(Holder(w.detach())), v), partitioner=1)[0]
    found['an object without gradients'] = ([value, value.requires_grad], [(w * v).pow(2).sum().detach(), False])

    theirs = rpc.remote('worker1', own_parameter)
    todist.remote_sync_call(scaled, args=(theirs, v), partitioner=1)[0].backward()
    found['what the worker owns'] = (
        todist.remote_sync_call(own_gradient, partitioner=1)[0],
        2 * torch.tensor([1.0, 2.0]) * v**2,
    )
    back = todist.remote_sync_call(give_back, args=(theirs,), partitioner=1)[0]
    found['an RRef comes back'] = ([type(back).__name__, back.to_here().detach()], ['PyRRef', torch.tensor([1.0, 2.0])])

    cyclic: dict[str, Any] = {'w': w, 'name': 'a cycle', 'itself': None}
    cyclic['itself'] = rpc.RRef(cyclic)
    todist.remote_sync_call(of_cycle, args=(cyclic['itself'], v), partitioner=1)[0].backward()
    found['an RRef of what holds it'] = (w.grad, v)
    cyclic.clear()

    numbers = rpc.RRef([1, 2, 3])
    found['what it can do'] = (
        [todist.remote_sync_call(described, args=(numbers,), partitioner=i)[0] for i in range(2)],
        [
            {'owner': 0, 'is owner': True, 'on its owner': 3, 'in a call of torch': 3},
            {'owner': 0, 'is owner': False, 'on its owner': 3, 'in a call of torch': 3},
        ],
    )
    return found


def give_back(reference: Any) -> Any:
    return reference


def of_cycle(reference: Any, x: Tensor) -> Tensor:
    return (reference.to_here()['itself'].to_here()['w'] * x).sum()


def errors() -> dict[str, dict[str, Any]]:
    w, v = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0, 4.0])

    def call(function: Any, *args: Any) -> dict[str, Any]:
        return error_of(lambda: todist.remote_sync_call(function, args=args, partitioner=1))

    def in_context(function: Any, *args: Any) -> dict[str, Any]:
        with todist.autograd.context():
            return call(function, *args)

    third = rpc.remote('worker1', own_holder)
    return {
        'an object': call(held, rpc.RRef(Holder(w)), v),
        'an object in a context': in_context(held, rpc.RRef(Holder(w)), v),
        'an object of another worker': error_of(lambda: todist.remote_sync_call(held, args=(third, v), partitioner=0)),
        'a local value that is elsewhere': call(length, rpc.RRef([1])),
        'a call of torch in a context': in_context(through_torch, w),
    }


@todist.auto_init_rpc()
def main() -> None:
    if todist.get_rank() == 0:
        save({'pairs': pairs(), 'errors': errors()})
    todist.barrier()


if __name__ == '__main__':
    main()
